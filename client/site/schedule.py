"""The hours in which a steward computes: ``[schedule]`` of site.toml, in the site's local time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Self

from vitrael.client.site.settings import Schedule

Local = Callable[[datetime], datetime]
"""Returns a time in UTC as the site's own clock on the wall shows it."""


def local_time(utc: datetime) -> datetime:
    """Return a time in the time zone of this machine."""
    return utc.astimezone()


@dataclass(frozen=True, slots=True)
class Hours:
    """A window of every day, from ``start`` until just before ``end``; it may pass midnight.

    Equal ends mean the whole day.
    """

    start: time
    end: time

    @classmethod
    def of(cls, schedule: Schedule) -> Self:
        """Return the window that a site.toml writes as ``20:00-06:00``."""
        start, end = (time.fromisoformat(part) for part in schedule.hours.split("-"))
        return cls(start, end)

    def holds(self, now: datetime) -> bool:
        """Return whether a local time falls into the window."""
        clock = now.time()
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end

    def opens_in(self, now: datetime) -> timedelta:
        """Return how long after a local time the window opens next; nothing while it is open.

        On a day on which clocks are changed it may be an hour off; who waits looks again.
        """
        if self.holds(now):
            return timedelta(0)
        clock = now.time()
        ahead = datetime.combine(now.date(), self.start) - datetime.combine(now.date(), clock)
        return ahead % timedelta(days=1)
