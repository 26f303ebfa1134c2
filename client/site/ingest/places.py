"""Where a site keeps its cohorts, and the keyed codes that stand for what must not be written.

Layout below ``cohorts/NAME`` in the home folder, all of it for the site's user alone::

    manifest.json        the items of the present version
    shards/  latents/    prepared images, and what a codec made of them
    index.sqlite         what was read before
    report.html          what a data steward should see; stays here
    summary.json         counts; the only part that may leave, with a consent
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vitrael.core.data.cache import make_private_folder, write_private
from vitrael.core.data.manifest import MANIFEST_NAME
from vitrael.core.data.retention import LATENTS_NAME
from vitrael.core.digest import canonical_json
from vitrael.core.errors import CohortError, StorageError, UsageError, storage_error
from vitrael.privacy.keys import read_private

SPLIT_KEY: Final = "split.key"
_KEY_BYTES = 32


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


@dataclass(frozen=True, slots=True)
class Home:
    """The parts of a site's home folder that ingest uses; the site need not be enrolled."""

    folder: Path

    def cohort(self, name: str) -> CohortPlace:
        """Return the place of a cohort, which may not exist yet."""
        return CohortPlace(self.folder / "cohorts" / name)

    def cohorts(self) -> dict[str, CohortPlace]:
        """Return all cohorts by name, sorted."""
        found = sorted((self.folder / "cohorts").glob(f"*/{MANIFEST_NAME}"))
        return {path.parent.name: CohortPlace(path.parent) for path in found}

    def places(self) -> list[CohortPlace]:
        """Return the places of all cohorts, also of one whose first intake was never finished."""
        folder = self.folder / "cohorts"
        return [CohortPlace(path) for path in sorted(folder.glob("[!.]*")) if path.is_dir()]

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
            names = json.loads(self.withdrawn.read_bytes())
            return frozenset(str(name) for name in names["subjects"])
        except FileNotFoundError:
            return frozenset()
        except (ValueError, KeyError, TypeError, OSError):
            raise CohortError(
                "the list of withdrawn patients cannot be read",
                why=f"{self.withdrawn.name} is damaged",
                fix="restore it from a backup; without it a withdrawn patient would come back",
            ) from None

    def add_withdrawn(self, subject: str) -> None:
        """Write one more pseudonym on the list; two who do so at once both stand on it."""
        handle = _open_lock(self.folder / "withdrawn.lock")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # held for the time of one small file
            subjects = sorted({*self.read_withdrawn(), subject})
            write_private(self.withdrawn, canonical_json({"subjects": subjects}))
        finally:
            os.close(handle)

    def key(self) -> bytes:
        """Return the site's secret for pseudonyms, codes and splits.

        A folder that is new or empty gets one. Raises AuthError when the key is open to others, and
        UsageError for a folder that is used for something else.
        """
        path = self.folder / "keys" / SPLIT_KEY
        if not path.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise UsageError(
                    f"{self.folder} is no home of a site",
                    why=f"it is not empty and holds no keys/{SPLIT_KEY}",
                    fix="name the site's home, or a new folder, with --home",
                )
            write_private(path, secrets.token_bytes(_KEY_BYTES))
        return read_private(
            path, fix=f"restore keys/{SPLIT_KEY}; with another key every patient gets a new name"
        )


def demand_name(name: str) -> None:
    """Raise UsageError for a name that no cohort may have."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,47}", name):
        raise UsageError(
            "the cohort's name cannot be used",
            why="up to 48 lower-case letters, digits and hyphens are allowed, a letter first",
            fix="give another name with --cohort",
        )


@contextlib.contextmanager
def only_one(place: CohortPlace) -> Iterator[None]:
    """Hold a cohort's lock; StorageError when another process changes the cohort."""
    handle = _open_lock(place.folder / "lock")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"cohort {place.folder.name} is being changed by another process",
                fix="wait until it has ended",
            ) from None
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    try:
        make_private_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error("the site's home", error, fix="check its rights") from None


def code_of(kind: str, value: str, *, key: bytes) -> str:
    """Return the 32 hexadecimal digits that stand for a path or an identifier of some kind."""
    text = os.fsencode(f"vitrael/{kind}/1\0{value}")
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:32]
