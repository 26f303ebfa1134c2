"""Keeps a coordinator's child processes up: one that ended is started again, ever more slowly.

Bounded: a child that fell ``MOST_FALLS`` times in a row, never up for ``STEADY_S``, is given up.
If the coordinator cannot be without it that ends the coordinator, whose service unit decides what
comes then; if it can, as without its record in MLflow, the rest goes on and the status says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vitrael.core.configs import Section
from vitrael.core.errors import ProcessError
from vitrael.server.federation.processes import Child, ProcessGroup

MOST_FALLS = 8
STEADY_S = 60.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LOG_BYTES = 32 << 20
"""Of a child's log and of the one older log beside it."""
_LOG = logging.getLogger(__name__)

ChildStatus = Literal["running", "waiting", "given up"]


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """One process that is to run as long as the coordinator does."""

    name: str
    """One lower-case word."""
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    vital: bool = True
    """Whether the coordinator ends when this child is given up."""
    ends: bool = False
    """Whether exit code 0 is its natural end, after which it is not started again."""


class ChildState(Section):
    """What the status says of one child."""

    name: str
    status: ChildStatus
    pid: int | None = None
    falls: int = 0
    """How often it has ended since the coordinator started."""
    why: str = ""
    """How it ended last, with the last line of its log."""


@dataclass(slots=True)
class _Watched:
    plan: ChildPlan
    child: Child
    since: float
    falls: int = 0
    in_a_row: int = 0
    why: str = ""
    again_at: float | None = None
    given_up: bool = False


@dataclass(slots=True)
class Supervisor:
    """Starts children and keeps them up; ``tend`` is called again and again."""

    group: ProcessGroup
    clock: Callable[[], float] = time.monotonic
    _watched: dict[str, _Watched] = field(default_factory=dict)

    def start(self, plan: ChildPlan) -> bool:
        """Start a child, unless one of that name is watched already; return whether it was."""
        if plan.name in self._watched:
            return False
        self._watched[plan.name] = _Watched(plan, self._spawn(plan), self.clock())
        return True

    def stop(self, name: str) -> None:
        """End a child and watch it no more."""
        if self._watched.pop(name, None) is not None:
            self.group.end_one(name)

    def restart(self, name: str) -> None:
        """End a child that hangs: ``tend`` counts it as one that ended, and starts it again."""
        if self.is_up(name):
            self.group.end_one(name)

    def forgive(self, name: str) -> None:
        """Watch a child no more that was given up, so that it can be started once more."""
        one = self._watched.get(name)
        if one is not None and one.given_up:
            self.stop(name)

    def tend(self) -> list[str]:
        """Start again what has ended and has waited long enough; return the names of those.

        Raises ProcessError, which names the child and its last words, when one without which
        nothing works is given up.
        """
        again = []
        for name, one in list(self._watched.items()):
            now = self.clock()
            if one.given_up:
                continue
            if one.again_at is None and (how := one.child.ended()):
                if one.plan.ends and one.child.process.returncode == 0:
                    self.stop(name)
                else:
                    self._note_fall(one, how, now=now)
            elif one.again_at is not None and now >= one.again_at:
                one.child, one.since, one.again_at = self._spawn(one.plan), now, None
                again.append(name)
                _LOG.info("a child was started again", extra={"child": name, "pid": one.child.pid})
        return again

    def trim_logs(self) -> None:
        """Lay aside what a child has written when it is too much, and let it write on."""
        for one in self._watched.values():
            log = one.plan.log
            with contextlib.suppress(OSError):
                if log.stat().st_size > _LOG_BYTES:
                    shutil.copyfile(log, log.with_name(log.name + ".1"))
                    os.truncate(log, 0)  # it is open for appending

    def states(self) -> tuple[ChildState, ...]:
        """Return what is to be said of each child."""
        return tuple(_state(one) for one in self._watched.values())

    def down(self) -> list[str]:
        """Return the names of those that do not run and without which nothing works."""
        return [
            name for name, one in self._watched.items() if one.plan.vital and not self.is_up(name)
        ]

    def is_up(self, name: str) -> bool:
        """Say whether a child of that name is watched and runs."""
        one = self._watched.get(name)
        return one is not None and one.again_at is None and not one.given_up

    def _spawn(self, plan: ChildPlan) -> Child:
        return self.group.start(plan.name, plan.command, environment=plan.environment, log=plan.log)

    def _note_fall(self, one: _Watched, how: str, *, now: float) -> None:
        name = one.plan.name
        self.group.end_one(name)  # with whatever it had started and left behind
        one.falls += 1
        one.in_a_row = 1 if now - one.since >= STEADY_S else one.in_a_row + 1
        said = "" if how.startswith("signal") else one.child.last_words()
        one.why = f"{how}: {said}" if said else how
        told = {"child": name, "count": one.in_a_row}
        if one.in_a_row < MOST_FALLS:
            pause = min(_FIRST_PAUSE_S * 2.0 ** (one.in_a_row - 1), _LONGEST_PAUSE_S)
            one.again_at = now + pause
            _LOG.warning("a child ended", extra={**told, "seconds": pause})
            return
        one.given_up = True
        _LOG.error("a child is given up", extra=told)
        if one.plan.vital:
            raise ProcessError(
                f"the process {name} ended {MOST_FALLS} times in a row",
                why=one.why,
                fix=f"read {one.plan.log}, mend what it says, and start the coordinator again",
            )


def _state(one: _Watched) -> ChildState:
    status: ChildStatus = "running"
    if one.given_up:
        status = "given up"
    elif one.again_at is not None:
        status = "waiting"
    pid = one.child.pid if status == "running" else None
    return ChildState(name=one.plan.name, status=status, pid=pid, falls=one.falls, why=one.why)
