"""Whether a process of a site lives: a note in a file that it locks, and the kernel unlocks.

A process number says nothing in another container, and stands in the file of a process that was
killed. A lock ends with its process, however that ends, and whoever may read the file can tell.

As a program, for a container's health check: ``python -m vitrael.client.site.life FILE`` ends with
0 when the process that wrote the note is alive, and with 1 when not.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def note_of_life(path: Path, note: Mapping[str, object]) -> Iterator[None]:
    """Keep a locked note there, readable for the group, until the block or the process ends.

    Raises OSError when it cannot be written.
    """
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else has seen it yet
        os.write(handle, json.dumps(note).encode())
        os.fchmod(handle, 0o640)  # whatever the umask: who asks may be another user
        draft.replace(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def is_alive(path: Path) -> bool:
    """Say whether the process that wrote a note lives; False where nobody can tell."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


if __name__ == "__main__":
    sys.exit(not is_alive(Path(sys.argv[1])))
