"""What is in use stays; what goes is the cache's own and nothing else."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.factories.cohort import write_cohort
from vitrael.core.data.latent_cache import LatentCache
from vitrael.core.data.manifest import Manifest
from vitrael.core.data.retention import Removed, gc_cache, list_cache, purge_items
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import StorageError

NOW = datetime(2031, 5, 1, 12, tzinfo=UTC)
OLD, NEW = digest_bytes(b"old codec"), digest_bytes(b"new codec")
LATENT = np.ones((1, 2, 2, 2), dtype=np.float32)


def set_age(path: Path, **age: float) -> Path:
    written = (NOW - timedelta(**age)).timestamp()
    os.utime(path, (written, written))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cohort"


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    """Return 4 items with latents of two codecs; every file is 40 days old."""
    manifest = write_cohort(folder, patients=4)
    latents = LatentCache(folder / "latents")
    for item in manifest.items:
        for codec in (OLD, NEW):
            latents.put(codec, item.digest, LATENT)
    for path in folder.rglob("*"):
        set_age(path, days=40)
    return manifest


def digests(manifest: Manifest) -> list[Digest]:
    return [item.digest for item in manifest.items]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_list_tells_what_each_file_is(folder: Path, manifest: Manifest) -> None:
    first, *others = digests(manifest)
    entries = list_cache(folder, now=NOW, keep={*others, NEW})
    told = sorted((entry.kind, entry.in_use) for entry in entries)
    assert told == (
        [("latent", False)] * 5
        + [("latent", True)] * 3
        + [("shard", False)]
        + [("shard", True)] * 3
    )
    assert {round(entry.age_days, 6) for entry in entries} == {40}
    assert {entry.name for entry in entries} == tree(folder) - {"manifest.json"}
    for entry in entries:
        assert entry.size_bytes == (folder / entry.name).stat().st_size
        assert first[7:] not in repr(entry)


def test_only_old_orphans_go(folder: Path, manifest: Manifest) -> None:
    others = digests(manifest)[2:]
    keep = {*others, NEW}
    set_age(folder / "shards" / manifest.items[1].shard, days=1)
    before = tree(folder)
    orphans = [entry for entry in list_cache(folder, now=NOW, keep=keep) if not entry.in_use]
    planned = gc_cache(folder, now=NOW, keep=keep, older_than_days=30, dry_run=True)
    assert tree(folder) == before
    removed = gc_cache(folder, now=NOW, keep=keep, older_than_days=30)
    assert removed == planned
    assert removed.files == len(before) - len(tree(folder)) == len(orphans) - 1
    assert removed.size_bytes == sum(entry.size_bytes for entry in orphans if entry.age_days > 30)
    left = tree(folder)
    assert f"shards/{manifest.items[0].shard}" not in left
    assert f"shards/{manifest.items[1].shard}" in left  # an orphan, but of yesterday
    assert {f"shards/{item.shard}" for item in manifest.items[2:]} <= left
    latents = {f"latents/{NEW[7:23]}/{code[7:]}-plain.safetensors" for code in others}
    assert {name for name in left if name.startswith("latents")} == latents
    assert gc_cache(folder, now=NOW, keep=keep, older_than_days=30) == Removed()


def test_what_is_kept_stays_however_old(folder: Path, manifest: Manifest) -> None:
    before = tree(folder)
    keep = {*digests(manifest), OLD, NEW}
    later = NOW + timedelta(days=9999)
    assert gc_cache(folder, now=later, keep=keep, older_than_days=0) == Removed()
    assert tree(folder) == before


def test_partial_file_is_an_orphan_after_an_hour(folder: Path, manifest: Manifest) -> None:
    keep = {*digests(manifest), OLD, NEW}
    stale = [
        folder / ".partial-a",
        folder / "shards" / ".partial-b",
        (folder / "shards" / manifest.items[0].shard).parent / ".partial-c",
        folder / "latents" / OLD[7:23] / ".partial-d",
    ]
    for path in stale:
        set_age(path.write_bytes(b"x") and path, minutes=61)
    fresh = folder / "shards" / ".partial-e"
    set_age(fresh.write_bytes(b"x") and fresh, minutes=59)
    partial = [e.in_use for e in list_cache(folder, now=NOW, keep=keep) if e.kind == "partial"]
    assert sorted(partial) == [False] * 4 + [True]
    assert gc_cache(folder, now=NOW, keep=keep, older_than_days=9999) == Removed(4, 4)
    assert fresh.exists()


def test_purge_takes_a_patients_shards_and_latents_and_no_others(
    folder: Path, manifest: Manifest
) -> None:
    before = tree(folder)
    gone = manifest.items[1]
    removed = purge_items(folder, iter([gone.digest]))
    left = tree(folder)
    assert before - left == {name for name in before if gone.digest[7:] in name}
    assert removed.files == len(before) - len(left) == 3
    assert purge_items(folder, [gone.digest]) == Removed()


def test_nothing_else_is_touched_and_no_link_is_followed(
    folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    outside = write_cohort(tmp_path / "outside", patients=9)
    LatentCache(tmp_path / "outside" / "latents").put(OLD, outside.items[8].digest, LATENT)
    shard = outside.items[8].shard
    own = folder / "shards" / shard
    own.parent.mkdir(exist_ok=True)
    own.symlink_to(tmp_path / "outside" / "shards" / shard)  # a file that is a link
    for prefix in sorted({item.shard[:2] for item in outside.items}):
        link = folder / "shards" / prefix
        if not link.exists():
            link.symlink_to(tmp_path / "outside" / "shards" / prefix)  # a folder that is
    codec = folder / "latents" / OLD[7:23]
    codec.rename(folder / "aside")
    codec.symlink_to(tmp_path / "outside" / "latents" / OLD[7:23])
    deep = folder / "shards" / shard[:2] / "deep"
    deep.mkdir()
    for path in (deep / Path(shard).name, folder / Path(shard).name, folder / "shards" / "a.txt"):
        path.write_bytes(b"mine")
    for path in (tmp_path).rglob("*"):
        if not path.is_symlink():
            set_age(path, days=400)
    before = tree(tmp_path)
    removed = gc_cache(folder, now=NOW, keep=set(), older_than_days=1)
    removed += purge_items(folder, [item.digest for item in outside.items])
    gone = before - tree(tmp_path)
    assert len(gone) == removed.files == 4 + 4  # the cohort's own shards, and latents of NEW
    assert gone == {name for name in gone if name.startswith(("cohort/shards", "cohort/latents"))}
    assert manifest.items[0].shard in " ".join(gone)


def test_linked_folder_of_shards_is_not_followed(tmp_path: Path) -> None:
    real = write_cohort(tmp_path / "real")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "shards").symlink_to(tmp_path / "real" / "shards")
    assert list_cache(tmp_path / "other", now=NOW, keep=set()) == []
    assert purge_items(tmp_path / "other", digests(real)) == Removed()
    (tmp_path / "here").symlink_to(tmp_path / "real")  # the operator's own choice of a disk
    assert purge_items(tmp_path / "here", digests(real)).files == 6


def test_cohort_without_a_cache_has_no_files(tmp_path: Path) -> None:
    assert list_cache(tmp_path / "none", now=NOW, keep=set()) == []
    assert gc_cache(tmp_path, now=NOW, keep=set(), older_than_days=0) == Removed()


def test_file_that_cannot_be_removed_is_told(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(StorageError, match="cache of prepared items") as caught:
        purge_items(folder, digests(manifest))
    assert str(folder) not in str(caught.value)
