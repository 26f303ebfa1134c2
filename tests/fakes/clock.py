"""A clock that shows the time that it is set to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

START = datetime(2031, 5, 1, 12, tzinfo=UTC)


@dataclass(slots=True)
class FakeClock:
    """Shows the time that it is set to."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **parts: float) -> None:
        self.now += timedelta(**parts)
