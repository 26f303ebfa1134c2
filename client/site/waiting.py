"""Waiting of the steward: bounded by the task's deadline, and it hears who wants it to end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from vitrael.client.site.permits import Permits
from vitrael.client.site.schedule import Hours, Local
from vitrael.client.site.store import Finished, Store
from vitrael.core.digest import canonical_json
from vitrael.core.errors import ConsentError, TaskStopped, VitraelError
from vitrael.core.messages import StageName, Task
from vitrael.privacy.journal import Clock, Entry, Journal

POLL_S: Final = 0.5
"""How often the steward looks whether it may go on."""

WAY_BACK_FRAC: Final = 0.1
WAY_BACK_MOST_S: Final = 30.0
"""Left of a deadline for the answer's way back: this share of it, and never more than this."""

NEVER_HELD: Final[frozenset[StageName]] = frozenset({"consent"})
"""What its operator has signed for by itself: the consent, and the counts that go with it."""


class Waiting:
    """Waits for the hours in which the site computes, and for its operator's release."""

    def __init__(
        self,
        permits: Permits,
        *,
        clock: Clock,
        sleep: Callable[[float], None],
        stopping: Callable[[], bool],
    ) -> None:
        """Take the time, and what says that the process is to end."""
        self._permits = permits
        self._clock = clock
        self._sleep = sleep
        self._stopping = stopping

    def demand_running(self) -> None:
        """Raise TaskStopped when the process is to end: the task is not answered."""
        if self._stopping():
            raise TaskStopped(
                "the steward was told to end",
                why="the task is kept as far as it came",
                fix="start the steward again and send the task again",
            )

    def for_hours(self, task: Task, hours: Hours, *, local: Local) -> None:
        """Return once the window is open: at once where it is, whatever the deadline.

        Raises ConsentError at once when it opens after the task's deadline, or when the consent is
        taken back; TaskStopped when the process is to end.
        """
        now = self._clock()
        if hours.holds(local(now)):
            return
        until = answer_by(task, now=now)
        opens = now + hours.opens_in(local(now))

        def opened() -> bool:
            return hours.holds(local(self._clock()))

        if opens > until or not self._wait(task, opened, until=until):
            raise ConsentError(
                f"this site computes from {hours.start:%H:%M} to {hours.end:%H:%M} alone",
                why=f"it is {local(now):%H:%M} there, and the task's deadline is before it opens",
                fix=f"ask again after {opens.isoformat(timespec='minutes')}",
            )

    def for_release(self, task: Task, finished: Finished, store: Store, journal: Journal) -> None:
        """Return once the operator has released the result of a task.

        It is held from the first time on that it is asked for. Raises ConsentError when it is
        rejected, VitraelError when nothing was decided in time, else as ``for_hours``.
        """
        until = answer_by(task, now=self._clock())
        self._hold(task, finished, store, journal, until=until)

        def decided() -> bool:
            held = store.decisions.find_held(task)
            return held is not None and held.state != "held"

        if not self._wait(task, decided, until=until):
            raise VitraelError(
                f"the result of round {task.round + 1} of {task.stage} is held for release",
                why="this site's operator looks at all that leaves, and has not decided yet",
                fix="ask again later: it is finished, and `vitrael site release` lets it go",
            )
        demand_not_rejected(task, store)

    def _hold(
        self, task: Task, finished: Finished, store: Store, journal: Journal, *, until: datetime
    ) -> None:
        size = len(canonical_json(dict(finished.body))) + sum(
            array.nbytes for tensors in finished.tensors.values() for array in tensors.values()
        )
        names = sorted(finished.body) + sorted(finished.tensors)
        entry = Entry(
            event="held",
            protocol=task.protocol,
            roster=task.roster,
            stage=task.stage,
            round=task.round,
            fields=tuple(names),
        )
        with store.acting():
            number = store.decisions.hold(
                task,
                fields=", ".join(names),
                size=size,
                now=self._clock(),
                until=until,
                owed=entry,
            )
            if number is not None:
                journal.append(entry)
                store.decisions.settled(number)

    def _wait(self, task: Task, done: Callable[[], bool], *, until: datetime) -> bool:
        """Return whether it was done in time.

        The time is also counted in naps: a clock that is set back prolongs nothing.
        """
        left_s = (until - self._clock()).total_seconds()
        while not done():
            self.demand_running()
            self._permits.demand_still(task)
            if left_s <= 0 or self._clock() >= until:
                return False
            self._sleep(min(POLL_S, left_s))
            left_s -= POLL_S
        return True


def demand_not_rejected(task: Task, store: Store) -> None:
    """Raise ConsentError when the operator has rejected the result of a task."""
    held = store.decisions.find_held(task)
    if held is not None and held.state == "rejected":
        raise ConsentError(
            f"this site's operator has rejected the result of round {task.round + 1} of "
            f"{task.stage}",
            why=held.reason or "no reason was given",
            fix="go on without this site, or talk to its operator",
        )


def answer_by(task: Task, *, now: datetime) -> datetime:
    """Return until when an answer must go to be there in time.

    The deadline runs from when the task was issued, and at the latest from ``now``: two clocks may
    differ. Some of it is left for the way back.
    """
    whole = timedelta(seconds=task.deadline_s)
    back = timedelta(seconds=min(WAY_BACK_MOST_S, WAY_BACK_FRAC * task.deadline_s))
    issued = datetime.fromisoformat(task.issued_utc)
    return min(issued, now) + whole - back
