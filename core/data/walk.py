"""Every file below a folder, one at a time, in one order on every machine; nothing is opened.

A link to a folder is not followed: it could lead in a circle or out of what the operator named. A
link to a file is followed, since archives often keep their bytes elsewhere. Whatever is no file
that can be read comes with its reason, so that it can be told.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitrael.core.errors import CohortError

HIDDEN = "hidden"
"""The refusal of what a name with a leading dot hides: skipped, and only counted."""
LINKED_FOLDER = "a link to a folder, which is not followed"
BROKEN_LINK = "a link to nothing"
CIRCLE = "a link that leads in a circle"
SPECIAL = "neither a file nor a folder"
CLOSED_FOLDER = "a folder that may not be read"
CLOSED_FILE = "a file that may not be read"
UNSEEN = frozenset({CLOSED_FOLDER, CLOSED_FILE})
"""The refusals of what may hold scans: nobody could look."""

_OWN_RIGHTS = os.access in os.supports_effective_ids


@dataclass(frozen=True, slots=True, repr=False)
class FoundFile:
    """One file, or one thing in a folder that cannot be used as a file."""

    path: Path
    """Below the folder as it was given; may hold bytes that are no text (surrogates)."""
    size_bytes: int = 0
    mtime_ns: int = 0
    refusal: str = ""
    """Why it cannot be used; empty for a file that can be read."""

    def __repr__(self) -> str:
        """Show no name."""
        return f"FoundFile({self.refusal or self.size_bytes})"


def walk_files(root: Path) -> Iterator[FoundFile]:
    """Yield all that lies below a folder, sorted within each folder by the bytes of the names.

    Hidden files and folders come once each, with the refusal ``HIDDEN``, and are not entered.
    Links to folders, broken links, circles, devices, pipes, sockets and what may not be read come
    with their refusal. One folder's names are held at a time. Raises CohortError when the root is
    no folder or may not be read.
    """
    try:
        open_folders = [_entries(os.fspath(root))]
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise CohortError(
            "the folder of scans cannot be read",
            why="it is not a folder" if missing else "it may not be opened",
            fix="check the path and its rights",
        ) from None
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
        elif entry.name.startswith("."):
            yield FoundFile(Path(entry.path), refusal=HIDDEN)
        elif entry.is_dir(follow_symlinks=False):
            try:
                open_folders.append(_entries(entry.path))
            except OSError:
                yield FoundFile(Path(entry.path), refusal=CLOSED_FOLDER)
        else:
            yield _judge(entry)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: os.fsencode(entry.name)))


def _judge(entry: os.DirEntry[str]) -> FoundFile:
    path = Path(entry.path)
    try:
        facts = entry.stat()
    except OSError as error:
        reasons = {errno.ELOOP: CIRCLE, errno.ENOENT: BROKEN_LINK, errno.ENOTDIR: BROKEN_LINK}
        return FoundFile(path, refusal=reasons.get(error.errno or 0, CLOSED_FILE))
    if stat.S_ISDIR(facts.st_mode):
        return FoundFile(path, refusal=LINKED_FOLDER)
    if not stat.S_ISREG(facts.st_mode):
        return FoundFile(path, refusal=SPECIAL)
    if not os.access(entry.path, os.R_OK, effective_ids=_OWN_RIGHTS):
        return FoundFile(path, refusal=CLOSED_FILE)
    return FoundFile(path, size_bytes=facts.st_size, mtime_ns=facts.st_mtime_ns)
