"""A study as a sequence of Flower runs: where one was lost, the next goes on from what is finished.

The file ``runs.json`` in the home says which run belongs to which order, so that a coordinator
that is started again knows what it was at. A run counts as lost when its ServerApp ended without a
word, never said one, was stopped, or could not reach the SuperLink; what the ServerApp itself says
went wrong ends the study. Bounded: ``MOST_RUNS`` in a row that finish no further round end it too.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import psutil
from pydantic import ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, write_atomically
from vitrael.core.errors import EXIT_INTERRUPTED, ConfigError, NetworkError, ProcessError
from vitrael.core.messages import DigestField
from vitrael.core.protocols import Name
from vitrael.server.federation.processes import is_alive
from vitrael.server.federation.run_state import ENDED, LOST_CODES, RUNS, RunState, read_run
from vitrael.server.orders import Order, read_order

MOST_RUNS = 5
"""Runs in a row without a finished round, after which a study has failed."""
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_ASK_EVERY_S = 3.0
BEGINS_S = 180.0
"""After so long without a word of its ServerApp a run is taken for lost."""
_SERVER_APP = "flwr-serverapp"
_END_S = 5.0
_POLL_S = 0.05
_LOG = logging.getLogger(__name__)

StudyStatus = Literal["waiting", "running", "finished", "partial", "failed", "stopped"]
"""``partial``: it came to its end, and a site was absent from a round."""

AT_WORK: frozenset[StudyStatus] = frozenset({"waiting", "running"})


class RunControl(Protocol):
    """What is asked of a SuperLink."""

    def start_run(self, bundle: Path, *, config: dict[str, str]) -> int:
        """Start a run of an app folder and return its number."""

    def stop_runs(self) -> list[int]:
        """Stop every run that is not finished and return their numbers."""

    def run_status(self, run_id: int) -> str:
        """Return a run's status in Flower's words."""


class StudyState(Section):
    """How the study that was ordered goes."""

    study: Name
    protocol: DigestField
    order: DigestField
    status: StudyStatus
    run_id: str = ""
    """Flower's number of the present or last run."""
    runs: int = 0
    """How many Flower runs the order has taken."""
    in_vain: int = 0
    """How many of the last of them finished no round."""
    finished: int = 0
    """How many stages and rounds were finished when the present run began."""
    sentence: str = ""
    exit_code: int = 0


@dataclass(slots=True)
class StudyRuns:
    """Holds the study of a home to what is ordered; ``tend`` is called again and again."""

    home: Path
    bundle: Path
    control: RunControl
    count_finished: Callable[[Digest], int]
    """Returns how many stages and rounds of a protocol are finished."""
    clock: Callable[[], float] = time.monotonic
    _start_at: float = 0.0
    _ask_at: float = 0.0
    _begin_by: float = field(default=0.0, init=False)
    _state: StudyState | None = field(default=None, init=False)
    _kept: bool = field(default=True, init=False)
    """Whether the state was written; a full disk is tried again."""

    def __post_init__(self) -> None:
        """Remember what was at work when a coordinator of this home ended."""
        self._state = read_state(self.home)
        self._begin_by = self.clock() + BEGINS_S

    @property
    def state(self) -> StudyState | None:
        """How the study goes; None when none was ever ordered."""
        return self._state

    def tend(self) -> None:
        """Start, watch, continue or stop the study's run.

        Raises ConfigError for a damaged order, OSError when the state cannot be written, and
        ProcessError for a ServerApp that cannot be ended; the next call tries again, as it asks a
        SuperLink again that does not answer.
        """
        if self._state is not None and not self._kept:
            self._keep(self._state)
        order = read_order(self.home)
        if order is None:
            return
        if self._state is None or self._state.order != order.digest:
            self._take(order)
        with contextlib.suppress(NetworkError):
            self._hold(order)

    def _take(self, order: Order) -> None:
        """Begin with a new order; the run of an earlier one ends with its SuperLink run."""
        status: StudyStatus = "waiting"
        before = self._state
        same = before is not None and before.protocol == order.protocol
        run_id = before.run_id if before is not None and same else ""
        self._start_at = self.clock()
        state = StudyState(
            study=order.study,
            protocol=order.protocol,
            order=order.digest,
            status=status,
            run_id=run_id if order.wanted == "stop" else "",
        )
        self._keep(state)

    def _hold(self, order: Order) -> None:
        state = self._state
        if state is None or state.status not in AT_WORK:
            return
        if order.wanted == "stop":
            self._stop(state)
        elif state.status == "running":
            self._watch(state)
        elif self.clock() >= self._start_at:
            self._start(state)

    def _start(self, state: StudyState) -> None:
        end_server_app(self.home)
        self.control.stop_runs()
        run_id = self.control.start_run(self.bundle, config={"home": str(self.home)})
        self._ask_at, self._begin_by = self.clock() + _ASK_EVERY_S, self.clock() + BEGINS_S
        finished = self.count_finished(state.protocol)
        _LOG.info("a run was started", extra={"study": state.study, "count": state.runs + 1})
        self._keep(
            state.model_copy(
                update={
                    "status": "running",
                    "run_id": str(run_id),
                    "runs": state.runs + 1,
                    "finished": finished,
                }
            )
        )

    def _watch(self, state: StudyState) -> None:
        said = self._said(state)
        if said is not None and said.status in ENDED:
            status: StudyStatus = "partial" if said.status == "partial" else "finished"
            self._end(state, status, sentence=said.sentence, code=said.exit_code)
        elif said is not None and said.status == "failed" and said.exit_code not in LOST_CODES:
            self._end(state, "failed", sentence=said.sentence, code=said.exit_code)
        elif said is not None and said.status == "failed":
            self._continue(state, said.sentence)
        elif said is not None and not is_alive(said.pid) and self._said(state) == said:
            self._continue(state, "the ServerApp ended without a word")
        elif self._is_over(state) and self._said(state) == said:
            end_server_app(self.home)
            self._continue(state, "the SuperLink or the ServerApp was lost")
        elif said is None and self.clock() >= self._begin_by:
            self._continue(state, f"its ServerApp did not begin within {BEGINS_S:.0f} s")

    def _said(self, state: StudyState) -> RunState | None:
        """Return what the ServerApp of the present run said last."""
        said = read_run(self.home)
        return said if said is not None and said.run_id == state.run_id else None

    def _is_over(self, state: StudyState) -> bool:
        """Say, now and then, whether the SuperLink has given the run up."""
        if self.clock() < self._ask_at:
            return False
        self._ask_at = self.clock() + _ASK_EVERY_S
        return self.control.run_status(int(state.run_id)).startswith("finished")

    def _continue(self, state: StudyState, why: str) -> None:
        """Have the next run go on after a pause, or end the study when that leads nowhere."""
        progressed = self.count_finished(state.protocol) > state.finished
        in_vain = 0 if progressed else state.in_vain + 1
        if in_vain >= MOST_RUNS:
            sentence = f"{in_vain} runs in a row finished no round, the last because {why}"
            self._end(state, "failed", sentence=sentence, code=1)
            return
        pause = min(_FIRST_PAUSE_S * 2.0**in_vain, _LONGEST_PAUSE_S)
        self._start_at = self.clock() + pause
        _LOG.warning("a run was lost", extra={"study": state.study, "seconds": pause})
        update = {"status": "waiting", "in_vain": in_vain, "sentence": why}
        self._keep(state.model_copy(update=update))

    def _stop(self, state: StudyState) -> None:
        end_server_app(self.home)  # also while the SuperLink does not answer
        self.control.stop_runs()
        self._end(state, "stopped", sentence="the operator stopped it", code=EXIT_INTERRUPTED)

    def _end(
        self, state: StudyState, status: StudyStatus, *, sentence: str = "", code: int = 0
    ) -> None:
        _LOG.info("a study has ended", extra={"study": state.study, "exit_code": code})
        update = {"status": status, "sentence": sentence, "exit_code": code}
        self._keep(state.model_copy(update=update))

    def _keep(self, state: StudyState) -> None:
        self._state, self._kept = state, False
        write_atomically(self.home / RUNS, state.model_dump_json(indent=1).encode() + b"\n")
        self._kept = True


def read_state(home: Path) -> StudyState | None:
    """Return what ``runs.json`` says, None when nothing ran yet."""
    path = home / RUNS
    try:
        return StudyState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be used",
            why=type(error).__name__,
            fix="remove it; what the study has finished is kept elsewhere",
        ) from error


def end_server_app(home: Path) -> None:
    """End the ServerApp that ``run.json`` names, if it is one and still runs.

    A run that was given up must not go on beside the one that follows it. Raises ProcessError when
    it does not even obey SIGKILL.
    """
    said = read_run(home)
    if said is None:
        return
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process = psutil.Process(said.pid)
        if not any(_SERVER_APP in word for word in process.cmdline()):
            return
        for send in (process.terminate, process.kill):
            send()
            until = time.monotonic() + _END_S
            while is_alive(said.pid) and time.monotonic() < until:  # its parent may reap it late
                time.sleep(_POLL_S)
            if not is_alive(said.pid):
                return
        raise ProcessError(
            "the ServerApp of the last run does not end",
            why=f"process {said.pid} has not obeyed SIGKILL within {_END_S:.0f} s",
            fix="look what it waits for: mostly a disk",
        )
