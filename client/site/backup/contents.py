"""What a backup holds: all that nothing can make again, and never a scan.

Cohorts are taken in again from the hospital's own files; which versions they have had is kept. What
a training has learned so far is computed again. The spool is in transit.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import Field, ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import write_atomically
from vitrael.core.errors import StorageError
from vitrael.core.messages import Head, UtcField
from vitrael.core.protocols import Name

MANIFEST: Final = "backup.json"
"""First in the file; in a home it remembers how many backups there were."""

DATABASES: Final = ("store.sqlite", "ledger.sqlite")
"""Copied by SQLite itself. The second is the privacy ledger, where there is one."""
JOURNAL: Final = ("journal.jsonl", "journal.head.json")

_FILES: Final = (
    *("site.toml", "coordinator.json", "authority.pem", "roster.json", "standing.json"),
    *("withdrawn.json", "cohorts/told.json"),
)
_FOLDERS: Final = ("keys", "keys.next", "keys.old", "studies", "records", "updates")
_TRAINING: Final = "training"
_VERSIONS: Final = "cohorts/*/versions.json"
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class Manifest(Section):
    """What a backup says of itself."""

    format: Literal["vitrael-backup/1"] = "vitrael-backup/1"
    site: Name
    home: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Drawn at a home's first backup: the numbers of one home are compared."""
    number: int = Field(ge=1)
    """Counts the backups of a home."""
    created_utc: UtcField
    package_version: str
    journal: Head


class Counter(Section):
    """What a home remembers of its backups."""

    home: str = Field(pattern=r"^[0-9a-f]{32}$")
    number: int = Field(ge=0)
    """That was drawn last."""
    made: int = Field(ge=0)
    """The newest that lies in a file: one that failed is none."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of a home and its name in a backup."""

    name: str
    path: Path


def is_kept(name: str) -> bool:
    """Return whether a file of this name, below a home, belongs into a backup."""
    parts = PurePosixPath(name).parts
    if name in {*_FILES, *DATABASES, *JOURNAL}:
        return True
    if not all(_PART.fullmatch(part) for part in parts):
        return False
    if len(parts) == len(_VERSIONS.split("/")) and PurePosixPath(name).match(_VERSIONS):
        return True
    if len(parts) < 2 or parts[0] not in _FOLDERS:  # noqa: PLR2004 - folder and file
        return False
    return not (parts[0] == "records" and _TRAINING in parts)


def list_kept(home: Path) -> Iterator[Kept]:
    """Yield the files of a home that go into a backup as they are, sorted; links are passed over.

    Databases and journal are not among them: they change, and are copied together.
    """
    for name in sorted(_FILES):
        if _is_plain(home / name):
            yield Kept(name, home / name)
    found = (path for folder in _FOLDERS for path in sorted((home / folder).rglob("*")))
    for path in (*found, *sorted(home.glob(_VERSIONS))):
        name = path.relative_to(home).as_posix()
        if is_kept(name) and _is_plain(path):
            yield Kept(name, path)


def read_counter(home: Path) -> Counter | None:
    """Return what a home remembers of its backups; StorageError when that is damaged."""
    try:
        return Counter.model_validate_json((home / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise StorageError(
            f"{MANIFEST} in the site's home cannot be read",
            why="it counts the backups, so that an older one is not restored",
            fix="remove it if you know which backup is the newest",
        ) from error


def save_counter(home: Path, counter: Counter) -> None:
    """Remember how many backups there were."""
    write_atomically(home / MANIFEST, counter.model_dump_json().encode() + b"\n")


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False
