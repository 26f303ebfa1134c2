"""How a backup is written: store and journal of one moment, then all else, then one rename."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import secrets
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Final, cast

from vitrael.client.site.backup.contents import (
    DATABASES,
    JOURNAL,
    MANIFEST,
    Counter,
    Manifest,
    list_kept,
    read_counter,
    save_counter,
)
from vitrael.client.site.backup.heads import find_head, read_witness
from vitrael.client.site.enrollment.home_lock import only_one_enrollment
from vitrael.client.site.rotation import settle_rotation
from vitrael.client.site.settings import SiteSettings
from vitrael.core.errors import StorageError, UsageError, storage_error
from vitrael.core.messages import Head
from vitrael.core.version import package_version
from vitrael.privacy.journal import tell_faults, verify_journal
from vitrael.privacy.journal_lock import lock_in_time
from vitrael.privacy.keys import demand_passphrase
from vitrael.privacy.sealed_file import COST, SealedWriter

_SNAPSHOT: Final = ".partial-backup"
_BUSY_S: Final = 30.0


def save_backup(
    settings: SiteSettings,
    file: Path,
    *,
    passphrase: bytes,
    clock: Callable[[], datetime],
    cost: int = COST,
) -> Manifest:
    """Return what a backup says of itself, once it lies in ``file``, for its owner alone.

    The steward may run meanwhile. Raises UsageError when the file exists or the passphrase is too
    short, ProcessError while another command changes the keys, StorageError when the journal is not
    whole, a file belongs to another user, or a disk refuses; then there is no file.
    """
    demand_passphrase(passphrase)
    if file.exists():
        raise UsageError(f"{file} exists already", fix="give each backup a name of its own")
    home = settings.home
    try:
        with only_one_enrollment(home), _snapshot(home) as copies:
            settle_rotation(home)  # else a steward that starts now does it during the copying
            head = _demand_whole(copies)
            counter = read_counter(home) or Counter(home=secrets.token_hex(16), number=0, made=0)
            counter = counter.model_copy(update={"number": counter.number + 1})
            save_counter(home, counter)
            manifest = Manifest(
                site=settings.name,
                home=counter.home,
                number=counter.number,
                created_utc=clock().isoformat(timespec="seconds"),
                package_version=package_version(),
                journal=head,
            )
            _write(file, manifest, home=home, copies=copies, passphrase=passphrase, cost=cost)
            try:
                save_counter(home, counter.model_copy(update={"made": counter.number}))
            except OSError:
                file.unlink()  # a failure leaves no file, and an older one is the newest still
                raise
    except OSError as error:
        raise storage_error("the backup", error) from error
    return manifest


@contextlib.contextmanager
def _snapshot(home: Path) -> Iterator[Path]:
    """Yield a folder with copies of databases and journal as they stood at one moment.

    A line is appended under the journal's lock, which is held. The store may not remember it yet.
    """
    folder = home / _SNAPSHOT
    shutil.rmtree(folder, ignore_errors=True)  # of a command that was killed
    folder.mkdir(mode=0o700)
    try:
        with _journal_lock(home / JOURNAL[0]):
            for name in DATABASES:
                if (home / name).exists():
                    _copy_database(home / name, folder / name)
            for name in JOURNAL:
                if (home / name).exists():
                    shutil.copyfile(home / name, folder / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _journal_lock(path: Path) -> Iterator[None]:
    if not path.exists():
        yield
        return
    with path.open("rb") as file:
        lock_in_time(file.fileno(), fcntl.LOCK_EX)
        yield


def _copy_database(source: Path, target: Path) -> None:
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=_BUSY_S)) as old,
            contextlib.closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
            (answer,) = new.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        answer = str(error)
    if answer != "ok":
        raise StorageError(
            f"{source.name} cannot be copied",
            why=answer.partition("\n")[0],
            fix="restore an older backup, or wait until no other program holds it",
        )


def _demand_whole(copies: Path) -> Head:
    """Return where the copied journal ends; StorageError unless it is whole, as the store says."""
    journal = copies / JOURNAL[0]
    if faults := verify_journal(journal, kept=read_witness(copies / DATABASES[0])):
        raise tell_faults(faults)
    return find_head(journal)


def _write(
    file: Path, manifest: Manifest, *, home: Path, copies: Path, passphrase: bytes, cost: int
) -> None:
    partial = file.with_name(f".partial-{file.name}")
    partial.unlink(missing_ok=True)  # of a command that was killed, or what somebody has put there
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as raw:
            writer = SealedWriter(raw, passphrase, cost=cost)
            stream = cast("IO[bytes]", writer)
            with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                document = manifest.model_dump_json().encode()
                _add(tar, MANIFEST, io.BytesIO(document), len(document))
                for name in (*DATABASES, *JOURNAL):
                    if (copies / name).exists():
                        _add_file(tar, name, copies / name)
                for kept in list_kept(home):
                    _add_file(tar, kept.name, kept.path)
            writer.finish()
            raw.flush()
            os.fsync(raw.fileno())
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _add_file(tar: tarfile.TarFile, name: str, path: Path) -> None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return  # it was just cleared
    except PermissionError as error:
        raise StorageError(
            f"{name} cannot be read",
            why="it is another user's, and without it the backup would not be whole",
            fix="run this command as the steward's user; with the users of deploy/systemd run "
            "`systemd-tmpfiles --create` first",
        ) from error
    with file:
        _add(tar, name, file, os.fstat(file.fileno()).st_size)


def _add(tar: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    tar.addfile(member, file)
