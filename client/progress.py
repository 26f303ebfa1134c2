"""Progress on stderr: a moving line with ETA on a terminal, a line for each tenth elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TextIO

_REDRAW_S = 0.1
_TENTHS = 10
_MIB = 1 << 20


class Progress:
    """Counts one piece of work and shows how far it is; thread-safe it is not."""

    def __init__(
        self,
        label: str,
        *,
        total: int,
        stream: TextIO,
        unit: Literal["MiB", "files"] = "MiB",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet. ``total`` counts bytes, or files; ``clock`` counts seconds."""
        self._label = label
        self._unit = unit
        self._total = max(total, 1)
        self._stream = stream
        self._clock = clock
        self._live = stream.isatty()
        self._started = self._drawn = clock()
        self._done = 0
        self._tenth = 0

    def advance(self, count: int) -> None:
        """Count and show what is done when it is time."""
        self._done += count
        now = self._clock()
        if self._live:
            if now - self._drawn >= _REDRAW_S or self._done >= self._total:
                self._drawn = now
                end = "\n" if self._done >= self._total else ""
                self._stream.write(f"\r\033[K{self._line(now)}{end}")
                self._stream.flush()
        elif (tenth := self._done * _TENTHS // self._total) > self._tenth:
            self._tenth = tenth
            self._stream.write(self._line(now) + "\n")

    def _line(self, now: float) -> str:
        share = min(self._done / self._total, 1.0)
        spent = now - self._started
        eta = f", {spent * (1 - share) / share:.0f} s left" if 0 < share < 1 else ""
        return f"{self._label}: {share:4.0%}, {self._amount()}{eta}"

    def _amount(self) -> str:
        if self._unit == "MiB":
            return f"{self._done / _MIB:.1f} of {self._total / _MIB:.1f} MiB"
        return f"{self._done} of {self._total} {self._unit}"
