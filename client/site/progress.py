"""Progress of the task in work: counts in ``progress.jsonl``, for whoever watches the site."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from vitrael.core.digest import canonical_json
from vitrael.privacy.journal import Clock

_LEAST_S = 0.5


class ProgressFile:
    """Appends lines ``{stage, round, done, total, utc}``, at most two a second."""

    def __init__(
        self, path: Path, *, clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the file and the two clocks."""
        self._path = path
        self._clock = clock
        self._monotonic = monotonic
        self._stage, self._round = "", 0
        self._last = -_LEAST_S

    def begin(self, stage: str, number: int) -> None:
        """Say which stage and round the next counts belong to."""
        self._stage, self._round = stage, number
        self._last = self._monotonic() - _LEAST_S

    def report(self, done: int, total: int) -> None:
        """Write the counts; a full disk stops no task for the sake of its progress."""
        now = self._monotonic()
        if done < total and now - self._last < _LEAST_S:
            return
        self._last = now
        line = {
            "stage": self._stage,
            "round": self._round,
            "done": done,
            "total": total,
            "utc": self._clock().isoformat(timespec="milliseconds"),
        }
        with contextlib.suppress(OSError), self._path.open("ab") as file:
            file.write(canonical_json(line) + b"\n")
