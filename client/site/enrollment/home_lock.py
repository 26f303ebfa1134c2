"""One command at a time that changes a home's keys, roster or studies, or copies its keys."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrael.core.errors import ProcessError, storage_error

ENROLLMENT_LOCK = "enrollment.lock"


@contextmanager
def only_one_enrollment(home: Path) -> Iterator[None]:
    """Hold a home for such a command; ProcessError when another one does."""
    try:
        handle = os.open(home / ENROLLMENT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error("the site's home", error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProcessError(
                "another command changes the keys or the roster of this home, or copies them",
                why=f"it holds {ENROLLMENT_LOCK}",
                fix="wait until it has ended, and run this one again",
            ) from None
        yield
    finally:
        os.close(handle)
