"""How far a command is, on standard error: one line that moves, or a line for each tenth."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

import click

Tell = Callable[[str, int, int], None]
"""Called with the step, what is done of it, and the whole of it."""

_TENTHS: Final = 10
_MINUTE_S: Final = 60


def silent(_step: str, _done: int, _total: int) -> None:
    """Tell nothing."""


class Progress:
    """Shows each step in turn: with the time that is left on a terminal, by tenths elsewhere."""

    def __init__(
        self,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] | None = None,
    ) -> None:
        """Begin before the first step; ``terminal`` is found out when it is None."""
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._clock = clock
        self._write = write or (lambda text: click.echo(text, err=True, nl=False))
        self._step = ""
        self._tenth = 0
        self._first, self._began_s = 0, 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show that so much of a step is done."""
        if step != self._step:
            self._step, self._tenth = step, 0
            self._first, self._began_s = done, self._clock()
            if done < total:
                return
        tenth = done * _TENTHS // max(total, 1)
        if self._terminal:
            end = "\n" if done >= total else ""
            self._write(f"\r{step}: {done} of {total}{self._left(done, total):<16}{end}")
        elif tenth > self._tenth:
            self._write(f"{step}: {done} of {total}\n")
        self._tenth = tenth

    def _left(self, done: int, total: int) -> str:
        new = done - self._first
        if new <= 0 or done >= total:
            return ""
        left_s = round((self._clock() - self._began_s) / new * (total - done))
        return f", {left_s // _MINUTE_S}:{left_s % _MINUTE_S:02d} left"
