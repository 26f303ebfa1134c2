"""Image files opened for reading, so that a fault of the system is told from damage of the file.

A share that drops, a disk that fails or a right that is missing says nothing of an image: such a
file must be tried again. Decoders swallow, rename or print what the system says. So it reads like
the end of the file, and is raised when the file is closed, whatever was made of its bytes.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vitrael.core.errors import ScanError, StorageError


@contextmanager
def open_file(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Give a file and its size in bytes.

    Raises OSError, without the path, when the system cannot give the file's bytes, also where that
    happens after opening; ScanError when the file is empty.
    """
    try:
        raw = _Watched(path.open("rb", buffering=0))
        size_bytes = os.fstat(raw.file.fileno()).st_size
    except OSError as error:
        raise without_path(error) from None
    with raw.file, io.BufferedReader(raw) as file:
        if size_bytes == 0:
            raise ScanError("the file is empty", fix="copy it again")
        try:
            yield file, size_bytes
        finally:
            if raw.fault is not None:
                raise without_path(raw.fault) from None


class _Watched(io.RawIOBase):
    """A file that ends where the system fails, and remembers the fault."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self.file = file
        self.fault: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - its type has no name at run time
        try:
            return self.file.readinto(buffer) or 0
        except OSError as error:
            self.fault = error
            return 0

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return self.file.seek(offset, whence)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a place before the beginning is a decoder's mistake
                self.fault = error
            raise

    def tell(self) -> int:
        return self.file.tell()


def without_path(error: OSError) -> OSError:
    """Return the same fault without the name of the file, which may name a patient."""
    return OSError(error.errno, error.strerror)


def demand_free(folder: Path) -> None:
    """Raise StorageError when something lies where a folder shall be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(
            f"{folder} holds something already",
            why="nothing is written over",
            fix="choose another folder, or remove this one",
        )
