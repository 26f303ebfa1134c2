"""Images that the disk has damaged are found when they are read, and come back as it is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.factories.intake import make_home, manifest_of, take_in, write_brains
from vitrael.client.site.ingest.places import Home
from vitrael.core.data.shard_set import ShardSet
from vitrael.core.errors import CohortError


@pytest.fixture
def home(tmp_path: Path) -> Home:
    write_brains(tmp_path / "scans")
    home = make_home(tmp_path / "home")
    take_in(tmp_path / "scans", home)
    return home


def read(home: Home) -> None:
    items = manifest_of(home).items
    ShardSet(home.cohort("main").shards, items).batch(range(len(items)))


def harm(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.unlink()
    if damage == "one bit":
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-7])
    elif damage == "a link":
        path.symlink_to(path.parent)


@pytest.mark.parametrize("damage", ["one bit", "cut", "gone", "a link"])
def test_damaged_image_is_mended_as_the_error_says(home: Home, tmp_path: Path, damage: str) -> None:
    read(home)
    digest = manifest_of(home).digest
    path = home.cohort("main").shards / manifest_of(home).items[1].shard
    harm(path, damage)
    with pytest.raises(CohortError, match="item 1 of the cohort") as caught:
        read(home)
    assert "remove the cohort's folder shards and take the scans in again" in caught.value.fix
    shutil.rmtree(home.cohort("main").shards)
    take_in(tmp_path / "scans", home)
    read(home)
    assert manifest_of(home).digest == digest
    assert manifest_of(home).version == 1
