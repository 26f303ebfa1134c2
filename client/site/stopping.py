"""How ``vitrael site run`` ends: the step in work is finished first, but never without end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

PATIENCE_S: Final = 30
"""How long a step may still take after SIGTERM; a second SIGTERM does not wait for it."""


class Stop:
    """Says whether the process was told to end; hears SIGTERM inside ``listening``."""

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        """Take how long the step in work may still take."""
        self._patience_s = patience_s
        self._asked = False

    def __call__(self) -> bool:
        """Return whether SIGTERM came."""
        return self._asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take a first SIGTERM as a wish; a second one and the end of patience raise SystemExit.

        Its code is 0: what is finished is on disk, and what is not runs again.
        """
        before = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._ask),
            signal.SIGALRM: signal.signal(signal.SIGALRM, self._end),
        }
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGTERM, self._end)
        signal.setitimer(signal.ITIMER_REAL, self._patience_s)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)  # another one would disturb the tidying up
        raise SystemExit(0)
