"""A small disk of its own for a home, to fill and to empty again."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FILLER = "filler"
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Disk:
    """A mounted file system of bounded size."""

    place: Path

    def fill(self) -> None:
        """Leave no block free."""
        block = bytes(_BLOCK)
        with (self.place / _FILLER).open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def empty(self) -> None:
        """Take away what filled it."""
        (self.place / _FILLER).unlink(missing_ok=True)


def missing() -> str:
    """Return why no disk can be made here, empty when one can."""
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    with tempfile.TemporaryDirectory() as folder:
        if _mount(Path(folder), mbytes=1):
            return "this machine allows no mount"
        _unmount(Path(folder))
    return ""


@contextlib.contextmanager
def small_disk(place: Path, *, mbytes: int) -> Iterator[Disk]:
    """Yield a disk that is mounted at a place until the block ends."""
    place.mkdir(parents=True, exist_ok=True)
    assert _mount(place, mbytes=mbytes) == 0
    try:
        yield Disk(place)
    finally:
        _unmount(place)


def _mount(place: Path, *, mbytes: int) -> int:
    command = ["mount", "-t", "tmpfs", "-o", f"size={mbytes}m,mode=755", "none", str(place)]
    return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode


def _unmount(place: Path) -> None:
    command = ["umount", "-l", str(place)]  # also while a process that ends has a file open
    subprocess.run(command, capture_output=True, check=False, timeout=20)
