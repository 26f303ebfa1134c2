"""What the cohorts take up is told as it is, and only what nobody needs goes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.factories.intake import (
    NOW,
    PLANE,
    files_below,
    leftovers,
    make_home,
    manifest_of,
    shard_files,
    take_in,
    write_brain,
    write_brains,
    write_pictures,
    write_slices,
)
from vitrael.client.site.ingest import pipeline
from vitrael.client.site.ingest.keeping import describe_caches, sweep_caches
from vitrael.client.site.ingest.places import Home, only_one
from vitrael.client.site.ingest.withdraw import find_patient, remove_patient
from vitrael.core.data.cache import write_private
from vitrael.core.data.recipes import settings_for
from vitrael.core.data.retention import latent_name
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import StorageError

SHARD_BYTES = 16**3 * 2 + 128


@pytest.fixture
def usual_rights() -> Iterator[None]:
    """Files are open to others unless someone says otherwise, as for most users."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with brains and pictures, two latents, and an image that nobody needs."""
    write_brains(tmp_path / "scans")
    write_pictures(tmp_path / "pictures")
    home = make_home(tmp_path / "home")
    take_in(tmp_path / "scans", home)
    take_in(tmp_path / "pictures", home, PLANE, name="pictures")
    item = manifest_of(home).items[0]
    for codec, data in ((b"one", b"x" * 100), (b"two", b"y" * 50)):
        name = latent_name(digest_bytes(codec), item.digest, view="plain")
        write_private(home.cohort("main").latents / name, data)
    code = "ab" + "0" * 62
    write_private(home.cohort("main").shards / "ab" / f"{code}.safetensors", b"z" * 30)
    return home


def written(home: Home) -> datetime:
    """Return a time a little after everything was written."""
    newest = max(path.stat().st_mtime for path in home.folder.rglob("*"))
    return datetime.fromtimestamp(newest, NOW.tzinfo) + timedelta(seconds=1)


def test_cohorts_are_told_with_what_they_take_up(home: Home) -> None:
    before = files_below(home.folder)
    main, pictures = describe_caches(home, now=written(home))
    assert (main.name, main.recipe, main.version) == ("main", "brain-t1", 1)
    assert (main.digest, main.items, main.patients) == (manifest_of(home).digest, 3, 3)
    assert (main.image_bytes, main.latent_bytes, main.orphan_bytes) == (3 * SHARD_BYTES, 150, 30)
    on_disk = sum(len(data) for name, data in before.items() if name.endswith(".safetensors"))
    every = (main, pictures)
    told = sum(c.image_bytes + c.latent_bytes + c.orphan_bytes for c in every)
    assert told == on_disk
    assert (pictures.name, pictures.orphan_bytes, pictures.latent_bytes) == ("pictures", 0, 0)
    assert main.line().startswith("main  brain-t1, version 1: 3 items of 3 patients")
    assert main.document()["orphan_bytes"] == 30
    assert files_below(home.folder) == before


def test_only_what_no_item_needs_is_removed(home: Home) -> None:
    now = written(home)
    before = files_below(home.folder)
    foreseen = sweep_caches(home, now=now, older_than_days=0, dry_run=True)
    assert files_below(home.folder) == before
    removed = sweep_caches(home, now=now, older_than_days=0, dry_run=False)
    assert foreseen == removed
    assert (removed.files, removed.size_bytes) == (3, 180)
    gone = before.keys() - files_below(home.folder).keys()
    assert len(gone) == 3
    assert all("latents/" in name or "ab0000" in name for name in gone)
    assert leftovers(home) == set()
    assert len(shard_files(home)) == 3
    assert sweep_caches(home, now=now, older_than_days=0, dry_run=False).files == 0


def test_what_is_young_is_kept_as_long_as_asked_for(home: Home) -> None:
    now = written(home)
    assert sweep_caches(home, now=now, older_than_days=30, dry_run=False).files == 0
    later = now + timedelta(days=31)
    assert sweep_caches(home, now=later, older_than_days=30, dry_run=True).files == 3
    assert sweep_caches(home, now=later, older_than_days=30, dry_run=False).files == 3


def test_file_that_was_begun_long_ago_is_foreseen_and_removed(home: Home) -> None:
    begun = home.cohort("main").folder / ".partial-0123"
    write_private(begun, b"half a report")
    soon, later = (written(home) + timedelta(hours=hours) for hours in (0, 2))
    assert sweep_caches(home, now=soon, older_than_days=30, dry_run=True).files == 0
    assert sweep_caches(home, now=later, older_than_days=30, dry_run=True).files == 1
    assert sweep_caches(home, now=later, older_than_days=30, dry_run=False).files == 1
    assert not begun.exists()


def test_images_of_an_intake_that_never_ended_are_removed(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No manifest tells of them, so nobody else would."""

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "conclude", kill)
        with pytest.raises(KeyboardInterrupt):
            take_in(tmp_path / "scans", home, name="begun")
    assert len(shard_files(home, "begun")) == 3
    now = written(home)
    begun, main, _ = describe_caches(home, now=now)
    assert (begun.version, begun.recipe, begun.digest, begun.items) == (0, "", "", 0)
    assert (begun.orphan_bytes, main.orphan_bytes) == (3 * SHARD_BYTES, 30)
    assert begun.line().startswith("begun  no intake has ended yet; 0.0 MiB images")
    sweep_caches(home, now=now, older_than_days=1, dry_run=False)
    assert len(shard_files(home, "begun")) == 3, "control: they are young"
    sweep_caches(home, now=now, older_than_days=0, dry_run=False)
    assert shard_files(home, "begun") == set()
    assert [cohort.name for cohort in describe_caches(home, now=now)] == ["main", "pictures"]
    assert take_in(tmp_path / "scans", home, name="begun").items == 3


def test_cohort_that_is_being_changed_is_not_swept(home: Home) -> None:
    with only_one(home.cohort("main")), pytest.raises(StorageError, match="another process"):
        sweep_caches(home, now=written(home), older_than_days=0, dry_run=False)
    assert leftovers(home) != set()


def test_home_without_a_cohort_has_nothing(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    assert describe_caches(home, now=NOW) == []
    assert sweep_caches(home, now=NOW, older_than_days=0, dry_run=False).files == 0


def test_intake_clears_what_an_earlier_one_left(home: Home, tmp_path: Path) -> None:
    begun = home.cohort("main").shards / "ab" / ".partial-0123"
    write_private(begun, b"half an image")
    latents = list(home.cohort("main").latents.rglob("*.safetensors"))
    take_in(tmp_path / "scans", home)
    assert leftovers(home) == set()
    assert all(path.exists() for path in latents), "of items that are there still"
    write_brain(tmp_path / "scans" / "sub-00_T1w.nii.gz", 0, shift=200)
    write_brain(tmp_path / "scans" / "sub-01_T1w.nii.gz", 1, shift=200)
    write_brain(tmp_path / "scans" / "sub-02_T1w.nii.gz", 2, shift=200)
    take_in(tmp_path / "scans", home)
    assert not any(path.exists() for path in latents), "of an image that changed"


@pytest.mark.usefixtures("usual_rights")
def test_everything_below_the_home_is_the_users_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.key()
    root = tmp_path / "scans"
    write_brains(root)
    write_slices(root / "pacs", 7)
    rights: dict[str, int] = {}

    def note(*_: object) -> None:
        rights.update(rights_below(home.folder))

    take_in(root, home, tell=note)
    take_in(root, home, settings_for("brain-t1", grid_vox=(12, 12, 12), spacing_mm=16.0))
    remove_patient(home, find_patient(home, "sub-01"))
    rights.update(rights_below(home.folder))
    names = {Path(name).name for name in rights}
    assert {"split.key", "lock", "index.sqlite", "manifest.json", "withdrawn.json"} <= names
    assert "index.sqlite-wal" in names, "control: what was there in between is looked at too"
    assert {name: oct(mode) for name, mode in rights.items() if mode & 0o077} == {}
    other = tmp_path / "other"
    other.write_text("")
    assert stat.S_IMODE(other.stat().st_mode) == 0o644, "control: it is not the user's habit"


def rights_below(folder: Path) -> dict[str, int]:
    paths = [folder, *folder.rglob("*")]
    return {str(path): stat.S_IMODE(path.stat().st_mode) for path in paths}
