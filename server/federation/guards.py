"""What surrounds a rehearsal: the lock on its home, and how signals end it."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from vitrael.core.errors import DISK_FULL, UsageError, storage_error

Handler = Callable[[int, FrameType | None], None] | signal.Handlers


@contextlib.contextmanager
def locked(home: Path, *, name: str = "rehearsal.lock", what: str = "rehearsal") -> Iterator[None]:
    """Hold a home's lock; raise UsageError when another of the same kind does."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / name).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another {what} runs in {home}", fix="wait for it, end it, or use another home"
            ) from error
        yield


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this program as Ctrl-C does."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    with _handled((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Keep an impatient second Ctrl-C from leaving processes behind."""
    with _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Handler) -> Iterator[None]:
    """Handle signals in a way of our own for a while; other threads than the main one cannot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def explained_storage(home: Path) -> Iterator[None]:
    """Turn a full disk into a StorageError that names the home."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise storage_error(str(home), error, fix="free some, then resume") from error
