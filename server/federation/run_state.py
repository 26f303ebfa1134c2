"""``run.json``: the one word on the state of a run, which its ServerApp writes and others read."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vitrael.core.configs import Section
from vitrael.core.errors import EXIT_INTERRUPTED, NetworkError, ProcessError, UsageError
from vitrael.server.federation.guards import locked

RUNS = "runs.json"
"""Where the coordinator says which run is the present one."""
TURN_S = 30.0
_POLL_S = 0.1

RunStatus = Literal["running", "finished", "partial", "failed"]
"""``partial``: the study ended, and a site was absent from a round; the sentence says which."""

ENDED: frozenset[RunStatus] = frozenset({"finished", "partial"})
"""What a run says that came to its own end."""

LOST_CODES = frozenset({NetworkError.exit_code, EXIT_INTERRUPTED})
"""Exit codes of a failed run that another Flower run may continue: nothing was wrong with it."""


class RunState(Section):
    """What ``run.json`` says."""

    status: RunStatus
    run_id: str
    """Flower's number of the run, as text: JSON readers round integers of 64 bits."""
    pid: int
    utc: str
    sentence: str = ""
    exit_code: int = 0


def read_run(home: Path) -> RunState | None:
    """Return what ``run.json`` says, None when no run has started or it cannot be used.

    The next ServerApp writes it anew, as after another version of the package.
    """
    try:
        return RunState.model_validate_json((home / "run.json").read_bytes())
    except (OSError, ValidationError):
        return None


@contextlib.contextmanager
def taking_turn(home: Path, *, run_id: str, seconds: float = TURN_S) -> Iterator[None]:
    """Be the one ServerApp of a home while the body runs.

    Raises ProcessError when another does not end in time, and when the coordinator has given this
    run up and holds another for the present one: two would each undo what the other finished.
    """
    until = time.monotonic() + seconds
    with ExitStack() as stack:
        while not (_is_present(home, run_id) and _is_locked(home, stack)):
            if time.monotonic() >= until:
                raise ProcessError(
                    f"run {run_id} does not begin",
                    why="it was given up, or the ServerApp of another has not ended",
                    fix="wait until the other has ended, then run `vitrael study start NAME`",
                )
            time.sleep(_POLL_S)
        yield


def _is_present(home: Path, run_id: str) -> bool:
    try:
        return bool(json.loads((home / RUNS).read_bytes())["run_id"] == run_id)
    except FileNotFoundError:
        return True  # no coordinator holds this home
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_locked(home: Path, stack: ExitStack) -> bool:
    try:
        stack.enter_context(locked(home, name="run.lock", what="ServerApp"))
    except UsageError:
        return False
    return True
