"""Refusals of what proves no origin: a line a minute at most, with the count of the others.

Whoever can write to the spool can be refused as often as he likes. A line for each would let
unsigned rubbish fill the disk, and without disk nothing leaves. So within ``EVERY`` of a line the
next refusals are counted only, and their count and bytes stand in the line that follows: the next
refusal's after that time, or one of its own before the next signed task is answered and when the
steward ends. Only a steward that is killed loses a count. What such a refusal tells its bearer is
one fixed sentence, never a word about a patient.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from vitrael.privacy.journal import Clock

EVERY: Final = timedelta(minutes=1)
"""1440 lines a day at most, half a megabyte."""


class Refusals:
    """Counts refusals between two lines of the journal."""

    def __init__(self, write: Callable[[str, int], object], *, clock: Clock) -> None:
        """Take what writes a reason and a number of bytes into the journal."""
        self._write = write
        self._clock = clock
        self._written: datetime | None = None
        self._held = 0
        self._held_bytes = 0

    def note(self, reason: str, size: int) -> None:
        """Write a refusal down, or count it when a line stands there for this minute.

        Raises StorageError when the journal cannot be written; this refusal is then counted too.
        """
        now = self._clock()
        others = f"{self._held} more since the line before, then: " if self._held else ""
        self._held += 1
        self._held_bytes += size
        if self._written is None or not timedelta(0) <= now - self._written < EVERY:
            self._put(f"{others}{reason}", now=now)

    def settle(self) -> None:
        """Write down what was only counted; raise StorageError as ``note`` does."""
        if self._held:
            told = f"{self._held} more since the line before; steward.log names the reasons"
            self._put(told, now=self._clock())

    def _put(self, reason: str, *, now: datetime) -> None:
        self._write(reason, self._held_bytes)
        self._written, self._held, self._held_bytes = now, 0, 0
