"""Seconds that pass when they are told to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Ticker:
    """Stands for ``time.monotonic``."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds

    def move(self, seconds: float) -> None:
        self.seconds += seconds
