"""How a site's keys take the place of older ones, whatever is killed in between.

::

    keys/        in use
    keys.next/   made by ``vitrael site rotate``, until the coordinator has approved them
    keys.old/    those before, until the coordinator has answered under the new ones
    keys.unused-N/    of a request that ended, set aside by ``vitrael site join --new-keys``

``split.key`` stays where it is: with another one patients would change their names. From the
moment that ``keys.next/approved`` exists the new keys hold, and whoever loads keys first copies
them into ``keys``; done again, every step gives the same.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Final

from vitrael.core.digest import write_atomically
from vitrael.core.errors import storage_error

ROTATED: Final = ("signing.pem", "sealing.pem", "node", "node.pub")
"""What a rotation replaces."""

_APPROVED = "approved"


def next_keys(home: Path) -> Path:
    """Return the folder of the keys that wait for the coordinator's approval."""
    return home / "keys.next"


def old_keys(home: Path) -> Path:
    """Return the folder of the keys before."""
    return home / "keys.old"


def key_folders(home: Path) -> list[Path]:
    """Return where a home may have keys: in use, next, old, and set aside."""
    aside = sorted(home.glob("keys.unused-*"))
    return [home / "keys", next_keys(home), old_keys(home), *aside]


def is_rotating(home: Path) -> bool:
    """Return whether new keys wait for the coordinator's approval."""
    folder = next_keys(home)
    return (folder / "signing.pem").exists() and not (folder / _APPROVED).exists()


def adopt_keys(home: Path) -> None:
    """Put the next keys in the place of those in use, which stay in ``keys.old``.

    Raises StorageError when the disk refuses; then the keys in use are those from before, or the
    next call of ``settle_rotation`` ends the work.
    """
    try:
        for name in ROTATED:
            with contextlib.suppress(FileNotFoundError):
                _copy(home / "keys" / name, old_keys(home) / name)
        write_atomically(next_keys(home) / _APPROVED, b"")
    except OSError as error:
        raise storage_error("the site's keys", error) from error
    settle_rotation(home)


def settle_rotation(home: Path) -> None:
    """End a rotation that was approved; do nothing when there is none."""
    folder = next_keys(home)
    if not (folder / _APPROVED).exists():
        return
    try:
        for name in ROTATED:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                _copy(folder / name, home / "keys" / name)
        for name in (*ROTATED, _APPROVED):  # the mark last: until then all is done again
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise storage_error("the site's keys", error) from error


def forget_old_keys(home: Path) -> bool:
    """Remove the keys before; return whether there were any."""
    there = old_keys(home).exists()
    shutil.rmtree(old_keys(home), ignore_errors=True)
    return there


def _copy(source: Path, target: Path) -> None:
    data = source.read_bytes()
    target.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(target, data)
    target.chmod(0o600)
