"""Parcels that came: folders of the spool that another user may have written.

Nothing of a parcel is read before it is asked for. So the steward reads a small envelope, and the
attachments, up to gigabytes, only when the coordinator has signed for them and they are needed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

from vitrael.core.errors import DataError
from vitrael.core.messages import ENTRY_NAME, ENVELOPE

LONGEST_ENVELOPE_BYTES: Final = 256 << 10
"""A task names at most 64 attachments, each in less than 200 bytes; this is ten times as much."""

_MOST_ENTRIES = 64


class SpooledParcel(Mapping[str, bytes]):
    """A parcel whose entries are read when they are asked for, within a bound for all together."""

    def __init__(self, place: int, names: tuple[str, ...], *, most: int) -> None:
        """Take the open folder, the names in it, and how many bytes may be read of it."""
        self._place = place
        self._names = names
        self._left = most

    def __getitem__(self, name: str) -> bytes:
        """Return an entry; raise DataError for a link, a device, or more bytes than are left."""
        if name not in self._names:
            raise KeyError(name)
        most = min(self._left, LONGEST_ENVELOPE_BYTES) if name == ENVELOPE else self._left
        data = _read_entry(self._place, name, most=most)
        self._left -= len(data)
        return data

    def __iter__(self) -> Iterator[str]:
        """Go through the names; nothing is read."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return how many entries the folder has."""
        return len(self._names)


@contextmanager
def open_parcel(folder: Path, *, most: int) -> Iterator[SpooledParcel]:
    """Open a folder of the spool as a parcel of which no more than ``most`` bytes are read.

    Links are not followed. Raises DataError for a folder that is none and for names that no
    entry may have.
    """
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise DataError("the spool has no such parcel", why=error.strerror or "") from error
    try:
        # By its descriptor, so that no link is followed, and no further than it may go: there may
        # be millions of names.
        with os.scandir(place) as found:
            names = sorted(entry.name for entry in islice(found, _MOST_ENTRIES + 1))
        if len(names) > _MOST_ENTRIES or not all(ENTRY_NAME.fullmatch(name) for name in names):
            raise DataError("the parcel holds entries that are not allowed")
        yield SpooledParcel(place, tuple(names), most=most)
    finally:
        os.close(place)


def _read_entry(place: int, name: str, *, most: int) -> bytes:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    except OSError as error:
        raise DataError("the parcel holds an entry that cannot be read") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError("the parcel holds an entry that is no plain file")
    with os.fdopen(handle, "rb") as file:
        if os.fstat(handle).st_size > most:
            raise _too_large()
        data = file.read(most + 1)
    if len(data) > most:
        raise _too_large()
    return data


def _too_large() -> DataError:
    return DataError(
        "the parcel is larger than this site takes",
        fix="raise limits.parcel_bytes in site.toml if that is intended",
    )
