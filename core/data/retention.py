"""What the cache of a cohort holds, and what of it may go: old latents, orphans, withdrawn items.

Only files that the cache itself has named are ever seen, two folders deep; links are not followed.
So nothing else is listed or removed, wherever a link may point.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

from vitrael.core.data.cache import SHARDS_NAME
from vitrael.core.digest import Digest
from vitrael.core.errors import storage_error

LATENTS_NAME = "latents"
"""Folder of the latents in a cohort's folder."""

PARTIAL_S = 3600
"""A file that was begun and not finished is an orphan after an hour."""

_SECONDS_PER_DAY = 86_400
_SHARD = re.compile(r"([0-9a-f]{2})/(?P<item>\1[0-9a-f]{62})\.safetensors")
_LATENT = re.compile(
    r"(?P<codec>[0-9a-f]{16})/(?P<item>[0-9a-f]{64})-(?:plain|mirrored)\.safetensors"
)
_PARTIAL_PREFIX = ".partial-"
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache."""

    kind: Literal["shard", "latent", "partial"]
    name: str = field(repr=False)
    """Below the cohort's folder."""
    size_bytes: int
    age_days: float
    """Since it was written."""
    in_use: bool
    """A shard whose item is kept; a latent whose item and codec are; a partial file that someone
    may be writing. Anything else is an orphan."""


@dataclass(frozen=True, slots=True)
class Removed:
    """How much was removed."""

    files: int = 0
    size_bytes: int = 0

    def __add__(self, other: Removed) -> Removed:
        """Return the sum of two."""
        return Removed(self.files + other.files, self.size_bytes + other.size_bytes)


def latent_name(codec: Digest, item: Digest, *, view: str) -> str:
    """Return where a latent lies, below the folder of latents."""
    code = codec.removeprefix("sha256:")[:16]
    return f"{code}/{item.removeprefix('sha256:')}-{view}.safetensors"


def list_cache(folder: Path, *, now: datetime, keep: AbstractSet[Digest]) -> list[CacheEntry]:
    """Return every file of a cohort's cache, in the order of their names.

    ``keep`` are the digests of what is needed: the manifest's items, and codecs. A cohort without
    a cache has none. Raises StorageError when a folder cannot be read.
    """
    entries: list[CacheEntry] = []

    def note(entry: CacheEntry) -> bool:
        entries.append(entry)
        return False

    _sweep_cohort(folder, note, now=now, keep=keep)
    return sorted(entries, key=lambda entry: entry.name)


def gc_cache(
    folder: Path,
    *,
    now: datetime,
    keep: AbstractSet[Digest],
    older_than_days: float,
    dry_run: bool = False,
) -> Removed:
    """Remove what is not in use and older than so many days, and partial files after an hour.

    A latent whose codec is not in ``keep`` counts as not in use: it can be computed again. With
    ``dry_run`` nothing is removed, only counted. Raises StorageError when a file cannot be
    removed.
    """
    waste = Removed()

    def may_go(entry: CacheEntry) -> bool:
        nonlocal waste
        old = entry.kind == "partial" or entry.age_days > older_than_days
        if entry.in_use or not old:
            return False
        waste += Removed(files=1, size_bytes=entry.size_bytes)
        return not dry_run

    removed = _sweep_cohort(folder, may_go, now=now, keep=keep)
    return waste if dry_run else removed


def purge_items(folder: Path, items: Iterable[Digest]) -> Removed:
    """Remove the shards and latents of these items, whatever their age; it is on disk at the end.

    The manifest is to be written without them first. Raises StorageError when a file cannot be
    removed.
    """
    digests = tuple(items)
    shards = _purge(folder.resolve() / SHARDS_NAME, _SHARD, digests)
    return shards + _purge(folder.resolve() / LATENTS_NAME, _LATENT, digests)


def _purge(base: Path, pattern: re.Pattern[str], items: Iterable[Digest]) -> Removed:
    codes = {item.removeprefix("sha256:") for item in items}

    def is_theirs(name: str, _: os.stat_result) -> bool:
        match = pattern.fullmatch(name)
        return match is not None and match["item"] in codes

    return _sweep(base, is_theirs, depth=1)


def _sweep_cohort(
    folder: Path,
    may_go: Callable[[CacheEntry], bool],
    *,
    now: datetime,
    keep: AbstractSet[Digest],
) -> Removed:
    kept = {digest.removeprefix("sha256:") for digest in keep}
    kept_codecs = {code[:16] for code in kept}

    def judge(place: str, name: str, status: os.stat_result) -> bool:
        age_s = now.timestamp() - status.st_mtime
        kind: Literal["shard", "latent", "partial"]
        if match := _SHARD.fullmatch(name):
            kind, in_use = "shard", match["item"] in kept
        elif match := _LATENT.fullmatch(name):
            kind, in_use = "latent", match["item"] in kept and match["codec"] in kept_codecs
        elif name.rpartition("/")[2].startswith(_PARTIAL_PREFIX):
            kind, in_use = "partial", age_s <= PARTIAL_S
        else:
            return False
        return may_go(
            CacheEntry(
                kind=kind,
                name=f"{place}{name}",
                size_bytes=status.st_size,
                age_days=age_s / _SECONDS_PER_DAY,
                in_use=in_use,
            )
        )

    base = folder.resolve()
    removed = _sweep(base, partial(judge, ""), depth=0)
    for place in (SHARDS_NAME, LATENTS_NAME):
        removed += _sweep(base / place, partial(judge, f"{place}/"), depth=1)
    return removed


def _sweep(base: Path, may_go: Callable[[str, os.stat_result], bool], *, depth: int) -> Removed:
    """Remove the plain files in a folder, and so deep below it, that may go.

    A missing folder and one that is a link hold none. Each file is reached through the handle of
    its folder, so that nobody can put a link in between.
    """
    try:
        return _sweep_below(None, str(base), may_go, depth=depth, prefix="")
    except OSError as error:
        fix = "check the rights of the cohort's folder and run the command again"
        raise storage_error("the cache of prepared items", error, fix=fix) from None


def _sweep_below(
    parent: int | None,
    folder: str,
    may_go: Callable[[str, os.stat_result], bool],
    *,
    depth: int,
    prefix: str,
) -> Removed:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in _NO_FOLDER:
            return Removed()
        raise
    removed = below = Removed()
    try:
        with os.scandir(handle) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            try:
                status = os.stat(name, dir_fd=handle, follow_symlinks=False)
            except FileNotFoundError:  # someone else was faster
                continue
            if stat.S_ISDIR(status.st_mode) and depth:
                inner = f"{prefix}{name}/"
                below += _sweep_below(handle, name, may_go, depth=depth - 1, prefix=inner)
            elif stat.S_ISREG(status.st_mode) and may_go(f"{prefix}{name}", status):
                os.unlink(name, dir_fd=handle)
                removed += Removed(files=1, size_bytes=status.st_size)
        if removed.files:
            os.fsync(handle)
    finally:
        os.close(handle)
    return removed + below
