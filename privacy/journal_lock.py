"""A lock on a journal's file that is waited for, but never without end."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vitrael.core.errors import StorageError

PATIENCE_S: Final = 30.0
"""How long a process waits for another one that writes a line or reads all of them."""

_POLL_S: Final = 0.02
_LOCKS: Final = Path("/proc/locks")


def lock_in_time(
    handle: int,
    kind: int,
    *,
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Lock an open file (``kind`` as of ``fcntl.flock``) for as long as it stays open.

    Raises StorageError, which names the process that holds it where the system tells, when the
    lock cannot be had within ``patience_s`` seconds.
    """
    until = clock() + patience_s
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if clock() >= until:
                raise StorageError(
                    "the journal is locked",
                    why=f"{_find_holder(handle)} has held it for {patience_s:g} s",
                    fix="wait until that has ended, or end it; then run the command again",
                ) from error
            sleep(_POLL_S)
        else:
            return


def _find_holder(handle: int) -> str:
    """Return ``process N`` from the system's table of locks, or words for a process not told."""
    inode = str(os.fstat(handle).st_ino)
    try:
        table = _LOCKS.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return "another process"
    for row in table:  # 1: FLOCK ADVISORY WRITE 4711 08:01:1234 0 EOF
        parts = row.split()
        if len(parts) > 5 and parts[1] == "FLOCK" and parts[5].rpartition(":")[2] == inode:  # noqa: PLR2004
            return f"process {parts[4]}"
    return "another process"
