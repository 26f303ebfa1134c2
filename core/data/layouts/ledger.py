"""What is told of a folder while it is laid out: files that are left out, and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vitrael.core.data.sources import LeftOut


class Ledger:
    """Collects reasons and counts; holds paths, so it never leaves the memory."""

    def __init__(self) -> None:
        self._left: list[LeftOut] = []
        self._counts: Counter[str] = Counter()

    def leave(self, paths: Iterable[Path], reason: str, *, expected: bool = False) -> None:
        """Note files that become nothing together, and why."""
        self._left.append(LeftOut(tuple(paths), reason, expected=expected))

    def count(self, what: str, number: int = 1) -> None:
        """Add to what an operator is told with its count; nothing is told of a count of 0."""
        self._counts[what] += number

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """All that was left out, in the order in which it was."""
        return tuple(self._left)

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each thing that was counted, such as ``hidden files: 3``."""
        return tuple(f"{what}: {n}" for what, n in sorted(self._counts.items()) if n)
