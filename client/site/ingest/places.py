"""Where a site keeps its cohorts, and the keyed codes that stand for what must not be written.

Layout below ``cohorts/NAME`` in the home folder, all of it for the site's user alone::

    manifest.json        the items of the present version
    shards/  latents/    prepared images, and what a codec made of them
    index.sqlite         what was read before
    report.html          what a data steward should see; stays here
    summary.json         counts; the only part that may leave, noted in ../told.json
    versions.json        all versions so far, and who is in them
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vitrael.client.site.settings import SPLIT_KEY_BYTES, STEWARD_LOCK, read_split_key
from vitrael.core.data.cache import make_private_folder, write_private
from vitrael.core.data.manifest import MANIFEST_NAME, Manifest, read_manifest
from vitrael.core.data.retention import LATENTS_NAME
from vitrael.core.digest import canonical_json
from vitrael.core.errors import CohortError, StorageError, UsageError, storage_error

SPLIT_KEY: Final = "split.key"
BEGUN: Final = ".partial-*"
"""Names of files that are written at this moment, or were when a command was killed."""
_HOME_LOCK = "home.lock"
_PATIENCE_S = 10.0
"""Longest wait for a lock that is held for the time of a small file."""
_GLANCE_S = 0.02


@dataclass(frozen=True, slots=True)
class CohortPlace:
    """The folder of one cohort."""

    folder: Path

    @property
    def manifest(self) -> Path:
        """Items of the present version."""
        return self.folder / MANIFEST_NAME

    @property
    def shards(self) -> Path:
        """Prepared images."""
        return self.folder / "shards"

    @property
    def latents(self) -> Path:
        """What codecs made of them."""
        return self.folder / LATENTS_NAME

    @property
    def index(self) -> Path:
        """What was read before."""
        return self.folder / "index.sqlite"

    @property
    def report(self) -> Path:
        """For the data steward; stays at the site."""
        return self.folder / "report.html"

    def read(self) -> Manifest | None:
        """Return the present version, or None where no intake has ended yet.

        Raises CohortError for a damaged manifest, which another intake alone would not mend.
        """
        if not self.manifest.exists():
            return None
        try:
            return read_manifest(self.manifest)
        except CohortError as error:
            raise CohortError(
                f"the manifest of cohort {self.folder.name} cannot be used",
                why=": ".join(filter(None, (error.what, error.why))),
                fix=f"restore {MANIFEST_NAME} from a backup, or remove it and take the folder in "
                "again: its versions and withdrawals are then counted from the start",
            ) from None


@dataclass(frozen=True, slots=True)
class Home:
    """The parts of a site's home folder that ingest uses; the site need not be enrolled."""

    folder: Path

    def cohort(self, name: str) -> CohortPlace:
        """Return the place of a cohort, which may not exist yet."""
        return CohortPlace(self.folder / "cohorts" / name)

    def cohorts(self) -> dict[str, CohortPlace]:
        """Return all cohorts by name, sorted; also one whose first intake was never finished."""
        found = sorted((self.folder / "cohorts").glob("[!.]*"))
        return {path.name: CohortPlace(path) for path in found if path.is_dir()}

    def demand(self) -> None:
        """Raise UsageError unless this is a home that has taken something in, or can."""
        if not (self.folder / "keys" / SPLIT_KEY).exists():
            raise UsageError(
                f"{self.folder} is no home of a site",
                why=f"it holds no keys/{SPLIT_KEY}",
                fix="name the site's home with --home",
            )

    @property
    def withdrawn(self) -> Path:
        """Pseudonyms of the patients that must not come back."""
        return self.folder / "withdrawn.json"

    def read_withdrawn(self) -> frozenset[str]:
        """Return the pseudonyms of all patients that were taken out.

        Raises CohortError when the list is damaged: nobody may come back by accident.
        """
        try:
            names = json.loads(self.withdrawn.read_bytes())["subjects"]
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise TypeError  # noqa: TRY301 - as any other damage
            return frozenset(names)
        except FileNotFoundError:
            return frozenset()
        except (ValueError, KeyError, TypeError, RecursionError, OSError):
            raise CohortError(
                "the list of withdrawn patients cannot be read",
                why=f"{self.withdrawn.name} is damaged",
                fix="restore it from a backup; without it a withdrawn patient would come back",
            ) from None

    def add_withdrawn(self, subjects: Collection[str]) -> None:
        """Write more pseudonyms on the list; those of two who do so at once all stand on it."""
        with self._locked():
            names = sorted({*self.read_withdrawn(), *subjects})
            write_private(self.withdrawn, canonical_json({"subjects": names}))

    def find_key(self) -> bytes | None:
        """Return the site's secret, or None for a home that is still to be made.

        Raises AuthError when the key is open to others or damaged, and UsageError for a folder that
        is used for something else.
        """
        keys = self.folder / "keys"
        if (keys / SPLIT_KEY).exists():
            return read_split_key(keys)
        if not _is_unused(self.folder):
            raise UsageError(
                f"{self.folder} is no home of a site",
                why=f"it is not empty and holds no keys/{SPLIT_KEY}",
                fix="name the site's home, or a new folder, with --home",
            )
        return None

    def key(self) -> bytes:
        """Return the site's secret for pseudonyms, codes and splits; a new home gets one.

        Two commands that make one home at once have the same. Raises as ``find_key`` does.
        """
        if (known := self.find_key()) is not None:
            return known
        with self._locked():
            if (known := self.find_key()) is not None:
                return known
            fresh = secrets.token_bytes(SPLIT_KEY_BYTES)
            write_private(self.folder / "keys" / SPLIT_KEY, fresh)
            return fresh

    @contextlib.contextmanager
    def without_steward(self) -> Iterator[None]:
        """Hold the home for a change of its cohorts; StorageError when a steward runs.

        None starts before this ends, while other commands may change other cohorts.
        """
        with _open_lock(self.folder / STEWARD_LOCK) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StorageError(
                    "no cohort can be changed while the site's steward runs",
                    why="it has the images in memory, and a study may be on its way",
                    fix="end the steward, run this command again, and start the steward "
                    "afterwards: what it finished is kept",
                ) from None
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the home's own lock, for the time of one small file."""
        with _open_lock(self.folder / _HOME_LOCK) as handle:
            take_lock(handle, "the site's home")
            yield


def demand_name(name: str) -> None:
    """Raise UsageError for a name that no cohort may have."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,47}", name):
        raise UsageError(
            "the cohort's name cannot be used",
            why="up to 48 lower-case letters, digits and hyphens are allowed, a letter first",
            fix="give another name with --cohort",
        )


def demand_apart(scans: Path, folder: Path, what: str) -> None:
    """Raise UsageError for a folder that is or lies in that of the scans: nothing is written there.

    The folders need not exist; links are followed.
    """
    if _lies_in(folder, scans):
        raise UsageError(
            f"{what} may not lie in the folder of the scans",
            why="nothing is changed there, and the next command would find what this one wrote",
            fix="name a folder elsewhere",
        )


def demand_outside(home: Path, copies: Path) -> None:
    """Raise UsageError for copies within a home, which withdrawals and clearing would not reach."""
    if _lies_in(copies, home):
        raise UsageError(
            "the folder of the copies may not lie in the site's home",
            why="a withdrawal would not find them there",
            fix="name a folder elsewhere",
        )


def _lies_in(folder: Path, other: Path) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(other))


@contextlib.contextmanager
def only_one(place: CohortPlace) -> Iterator[None]:
    """Hold a cohort's lock; StorageError when another process changes the cohort."""
    with _open_lock(place.folder / "lock") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"cohort {place.folder.name} is being changed by another process",
                fix="wait until it has ended, and run this command again",
            ) from None
        yield


def take_lock(handle: int, what: str) -> None:
    """Lock an open file for this process alone; StorageError when another one keeps it too long."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise StorageError(
                    f"{what} is held by another process",
                    why=f"it was not let go within {_PATIENCE_S:g} s",
                    fix="wait until that process has ended, or end it, and run this command again",
                ) from None
            time.sleep(_GLANCE_S)
        else:
            return


@contextlib.contextmanager
def _open_lock(path: Path) -> Iterator[int]:
    try:
        make_private_folder(path.parent)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error("the site's home", error, fix="check its rights") from None
    try:
        yield handle
    finally:
        os.close(handle)


def _is_unused(folder: Path) -> bool:
    """Say whether a folder is missing or empty, but for what a home's making may have begun.

    ``vitrael-site.tmpfiles.conf`` makes folders of other users' processes before the home is one.
    """
    keys = folder / "keys"
    made = {keys, *(path for path in (folder / "spool", folder / "flower") if path.is_dir())}
    found = [path for each in (folder, keys) if each.is_dir() for path in each.iterdir()]
    return all(path.name == _HOME_LOCK or path.match(BEGUN) for path in found if path not in made)


def code_of(kind: str, value: str, *, key: bytes) -> str:
    """Return the 32 hexadecimal digits that stand for a path or an identifier of some kind."""
    text = os.fsencode(f"vitrael/{kind}/1\0{value}")
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:32]
