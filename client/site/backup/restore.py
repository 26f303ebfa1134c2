"""How a backup is read back: all of it is checked before the home is touched."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Final, cast

from pydantic import ValidationError

from vitrael.client.site.backup.contents import (
    DATABASES,
    JOURNAL,
    MANIFEST,
    Counter,
    Manifest,
    is_kept,
    read_counter,
    save_counter,
)
from vitrael.client.site.backup.heads import (
    demand_newest,
    find_head,
    holds,
    known_heads,
    older,
    read_witness,
)
from vitrael.client.site.backup.own_store import Stays, choose_stays, demand_nothing_owed
from vitrael.client.site.backup.restored import (
    Restored,
    forget_mark,
    read_mark,
    save_mark,
)
from vitrael.client.site.enrollment.home_lock import ENROLLMENT_LOCK, only_one_enrollment
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.ingest.versions import join_versions, mark_withdrawn
from vitrael.client.site.settings import STEWARD_LOCK
from vitrael.client.site.store import Store
from vitrael.core.digest import canonical_json, write_atomically
from vitrael.core.errors import (
    CohortError,
    ProcessError,
    StorageError,
    UsageError,
    storage_error,
)
from vitrael.privacy.journal import Entry, Journal, Kept, tell_faults, verify_journal
from vitrael.privacy.sealed_file import SealedReader

_STAGING: Final = ".partial-restore"
_MOST_MANIFEST: Final = 1 << 16
_OURS: Final = frozenset({_STAGING, STEWARD_LOCK, ENROLLMENT_LOCK, "home.lock", "lost+found"})
"""What lies in a home that holds nothing yet."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was restored, and whether it is known to be the newest."""

    manifest: Manifest
    confirmed: bool
    stays: Stays


def restore_backup(
    file: Path,
    home: Path,
    *,
    passphrase: bytes,
    expected: Kept | None,
    clock: Callable[[], datetime],
    dry_run: bool = False,
) -> Outcome:
    """Return what was restored into a home, which may be new, empty, or have lost some of this.

    A home's store stays where it knows all that the backup does, and with it every decision; of a
    home whose journal is damaged and has gone on, the damaged lines alone are restored.
    ``expected`` is the last line of the journal that the coordinator was told. With ``dry_run`` all
    is read and checked and nothing stays. Raises AuthError for another passphrase, StorageError for
    a file that is cut or changed and for a backup that is older than what the home or ``expected``
    knows, UsageError for the home of another site. Then the home is as it was.
    """
    made = not home.exists()
    empty = made or not any(home.iterdir())
    done = False
    try:
        with _held(home), _staging(home) as staging:
            manifest = _unpack(file, staging, passphrase=passphrase)
            _check_journal(staging, manifest)
            stays: Stays = "nothing"
            if _is_used(home):
                _demand_same_home(home, staging)
                stays = _choose_newest(home, staging, manifest)
            if expected is not None:
                demand_newest(staging / JOURNAL[0], expected)
            outcome = Outcome(manifest, confirmed=expected is not None, stays=stays)
            if dry_run:
                return outcome
            done = True
            mark = _mark(manifest, now=clock())
            _place(staging, home, manifest, mark=mark)
            _note(home, manifest, clock=clock)
            _finish(home, mark, confirmed=outcome.confirmed)
            return outcome
    except OSError as error:
        raise storage_error("the site's home", error) from error
    finally:
        if empty and not done:
            _leave_nothing(home, made=made)


def _leave_nothing(home: Path, *, made: bool) -> None:
    """Let an empty home be empty again, and one that was made be gone."""
    for name in (STEWARD_LOCK, ENROLLMENT_LOCK):
        (home / name).unlink(missing_ok=True)
    if made:
        with contextlib.suppress(OSError):
            home.rmdir()


@contextlib.contextmanager
def _held(home: Path) -> Iterator[None]:
    """Hold a home against stewards and other commands; ProcessError when one is at work."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with only_one_enrollment(home):
        handle = os.open(home / STEWARD_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProcessError(
                    "nothing can be restored while a steward runs, or a cohort is being changed",
                    why=f"{STEWARD_LOCK} is held",
                    fix="end it, and run this command again",
                ) from None
            yield
        finally:
            os.close(handle)


@contextlib.contextmanager
def _staging(home: Path) -> Iterator[Path]:
    folder = home / _STAGING
    shutil.rmtree(folder, ignore_errors=True)  # of a command that was killed
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(file: Path, staging: Path, *, passphrase: bytes) -> Manifest:
    """Return the manifest of a backup whose files lie in ``staging``, once its end was read."""
    try:
        raw = file.open("rb")
    except OSError as error:
        why = error.strerror or ""
        raise UsageError(f"{file} cannot be read", why=why, fix="check the path") from None
    with raw:
        reader = SealedReader(raw, passphrase)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", reader), mode="r|") as tar:
                manifest = _read_manifest(tar)
                while (member := tar.next()) is not None:
                    _extract(tar, member, staging)
            reader.drain()
        except (tarfile.TarError, ValidationError, EOFError) as error:
            raise StorageError(
                f"{file.name} is no backup of a site",
                why="it opens, and holds something else",
                fix="check the path",
            ) from error
    return manifest


def _read_manifest(tar: tarfile.TarFile) -> Manifest:
    member = tar.next()
    source = tar.extractfile(member) if member and member.name == MANIFEST else None
    return Manifest.model_validate_json(source.read(_MOST_MANIFEST) if source else b"")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, staging: Path) -> None:
    source = tar.extractfile(member) if member.isreg() and is_kept(member.name) else None
    if source is None:
        raise tarfile.ExtractError(member.name)
    path = staging / member.name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())


def _check_journal(staging: Path, manifest: Manifest) -> None:
    journal = staging / "journal.jsonl"
    if faults := verify_journal(journal, kept=read_witness(staging / "store.sqlite")):
        raise tell_faults(faults)
    if find_head(journal) != manifest.journal:
        raise StorageError(
            "the backup does not hold the journal that it says",
            fix="take another backup",
        )


def _is_used(home: Path) -> bool:
    return any(path.name not in _OURS for path in home.iterdir())


def _demand_same_home(home: Path, staging: Path) -> None:
    """Raise UsageError when the home is another site's, or its patients have other names."""
    for name, what in (("keys/split.key", "patients"), ("coordinator.json", "coordinator")):
        mine, theirs = home / name, staging / name
        if mine.exists() and theirs.exists() and mine.read_bytes() != theirs.read_bytes():
            raise UsageError(
                "the backup is of another home",
                why=f"{name} differs: the {what} would not be the same",
                fix="name a new folder with --home",
            )


def _choose_newest(home: Path, staging: Path, manifest: Manifest) -> Stays:
    """Return what of the home stays; StorageError when it knows more than the backup."""
    mark = read_mark(home)
    again = mark is not None and not mark.complete and mark.names(manifest)
    counter = read_counter(home)
    known = counter is not None and counter.home == manifest.home
    if counter is not None and known and not again and counter.made > manifest.number:
        raise older(f"it is number {manifest.number}, and number {counter.made} was made since")
    stays = choose_stays(home, staging, manifest.journal, again=again)
    if stays == "nothing":
        if not again:  # cut short: what the home knows is what was restored
            _demand_not_older(home, staging, manifest)
        demand_nothing_owed(home)
    return stays


def _demand_not_older(home: Path, staging: Path, manifest: Manifest) -> None:
    """Raise StorageError when the home's journal has gone on since the backup."""
    for known in known_heads(home):
        if known.lines > manifest.journal.lines:
            raise older(
                f"its journal has {manifest.journal.lines} lines, and the home's has {known.lines}"
            )
        if known.hash and not holds(staging / "journal.jsonl", known):
            raise older(f"its journal has another line {known.lines} than the home knows")


def _place(staging: Path, home: Path, manifest: Manifest, *, mark: Restored) -> None:
    """Put the files in their places; until the end no steward answers."""
    _join_withdrawn(home, staging)
    save_mark(home, mark)
    for name in DATABASES:
        for ending in ("-wal", "-shm"):
            (staging / f"{name}{ending}").unlink(missing_ok=True)  # of looking at it
            if (staging / name).exists():  # the other half of what is replaced
                (home / f"{name}{ending}").unlink(missing_ok=True)
    folders = {home}
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            target = home / path.relative_to(staging)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.rename(target)
            folders.add(target.parent)
    for folder in folders:
        _sync(folder)
    known = read_counter(home)
    number = manifest.number
    if known is not None and known.home == manifest.home:
        number = max(number, known.number)
    save_counter(home, Counter(home=manifest.home, number=number, made=manifest.number))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _join_withdrawn(home: Path, staging: Path) -> None:
    """Let who has withdrawn since the backup stay withdrawn, and every version known."""
    try:
        names = Home(home).read_withdrawn() | Home(staging).read_withdrawn()
        for name, place in Home(staging).cohorts().items():
            join_versions(place.folder, Home(home).cohort(name).folder)
            mark_withdrawn(place.folder, names)
    except CohortError as error:
        raise StorageError(
            error.what,
            why=error.why,
            fix="if it is the home's, move it away, restore, and withdraw again who withdrew since "
            "the backup",
        ) from error
    if names:
        data = canonical_json({"subjects": sorted(names)})
        write_atomically(staging / "withdrawn.json", data)


def _note(home: Path, manifest: Manifest, *, clock: Callable[[], datetime]) -> None:
    said = f"backup {manifest.number} of {manifest.created_utc}"
    with contextlib.closing(Store(home / "store.sqlite", updates=home / "updates")) as store:
        journal = Journal(home / "journal.jsonl", clock=clock, witness=store)
        journal.append(Entry(event="restored", reason=said))


def _finish(home: Path, mark: Restored, *, confirmed: bool) -> None:
    if confirmed:
        forget_mark(home)
    else:
        save_mark(home, mark.model_copy(update={"complete": True}))


def _mark(manifest: Manifest, *, now: datetime) -> Restored:
    return Restored(
        home=manifest.home,
        number=manifest.number,
        created_utc=manifest.created_utc,
        restored_utc=now.isoformat(),
        complete=False,
    )
