"""Batches hold what the shards hold, in the order asked for, and nothing of another file."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.factories.cohort import recipe_settings, write_cohort
from vitrael.core.data.cache import Store, decode, open_shard, pack_arrays, write_shard
from vitrael.core.data.manifest import Item, read_manifest
from vitrael.core.data.shard_set import ShardSet
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import CohortError
from vitrael.core.rng import stream

GRID = (30, 70, 80)  # more than one block
ITEMS = 7


def draw(patient: int, visit: int) -> np.ndarray:
    return stream(patient, "image", visit).random((1, *GRID), dtype=np.float32)


def write(folder: Path, store: Store = "int16") -> ShardSet:
    recipe = recipe_settings(GRID)
    manifest = write_cohort(folder, recipe=recipe, patients=ITEMS, draw=draw, store=store)
    return ShardSet(folder / "shards", manifest.items, keep_bytes=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cohort")


@pytest.fixture(scope="module")
def shards(folder: Path) -> ShardSet:
    return write(folder)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[ShardSet, list[Path]]]:
    shards = write(tmp_path)
    return shards, [path for path, _ in shards._files]


@pytest.mark.parametrize(
    ("store", "error"), [("int16", 0.51 / 32767), ("bfloat16", 1 / 256), ("float32", 0)]
)
def test_batch_is_the_items_in_the_order_asked_for(
    tmp_path: Path, store: Store, error: float
) -> None:
    shards = write(tmp_path, store)
    rows = [5, 0, 0, 6]
    batch = shards.batch(rows)
    assert batch.shape == (4, 1, *GRID)
    assert batch.dtype == np.float32
    assert np.abs(batch - np.stack([draw(row, 0) for row in rows])).max() <= error
    for row, image in zip(rows, batch, strict=True):
        stored = open_shard(shards._files[row][0])["image"]
        assert np.array_equal(image, decode(stored))


def test_given_array_is_filled_and_a_wrong_one_refused(shards: ShardSet) -> None:
    out = np.empty((2, 1, *GRID), dtype=np.float32)
    assert shards.batch([3, 4], out=out) is out
    assert np.array_equal(out, shards.batch(np.array([3, 4])))
    for wrong in (out.astype(np.float64), out[:1], out.swapaxes(2, 4)):
        with pytest.raises(ValueError, match="out must be"):
            shards.batch([3, 4], out=wrong)


def test_no_row_and_no_item_give_length_zero(shards: ShardSet) -> None:
    assert shards.batch([]).shape == (0, 1, *GRID)
    assert ShardSet(Path("nowhere"), []).batch([]).shape == (0,)
    assert (len(shards), len(ShardSet(Path("nowhere"), []))) == (ITEMS, 0)


def test_bytes_of_a_clip_become_shares_of_white(tmp_path: Path) -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    written = write_shard(tmp_path, {"image": frames}, store="int16")
    item = Item.model_construct(shard=written.name, digest=written.digest)
    batch = ShardSet(tmp_path, [item]).batch([0])
    assert np.array_equal(batch[0], frames.astype(np.float32) / 255)


def test_changed_item_is_refused_when_first_read(own: tuple[ShardSet, list[Path]]) -> None:
    shards, files = own
    files[2].write_bytes(files[3].read_bytes())
    shards.batch([0, 1, 3])
    with pytest.raises(CohortError, match="item 2 of the cohort is not what was taken in"):
        shards.batch([0, 2])


def test_missing_and_shortened_items_are_refused(own: tuple[ShardSet, list[Path]]) -> None:
    shards, files = own
    shards.batch([1])
    files[0].unlink()
    os.truncate(files[1], files[1].stat().st_size - 2)
    with pytest.raises(CohortError, match="item 0 of the cohort cannot be opened") as caught:
        shards.batch([0])
    assert "safetensors" not in str(caught.value)
    with pytest.raises(CohortError, match="item 1 of the cohort was cut off"):
        shards.batch([1])


@pytest.mark.parametrize("kept", [0, 3, ITEMS])
def test_so_much_is_kept_in_memory_and_the_same_comes_out(
    folder: Path, shards: ShardSet, kept: int
) -> None:
    size = 2 * math.prod(GRID)
    items = read_manifest(folder / "manifest.json").items
    keeping = ShardSet(folder / "shards", items, keep_bytes=size * (kept + 1) - 1)
    rows = [4, 1, 0, 6, 2, 5, 3]
    first = shards.batch(rows)
    assert np.array_equal(keeping.batch(rows), first)
    assert sum(array.nbytes for array in keeping._kept.values()) == kept * size
    assert sorted(keeping._kept) == sorted(rows[:kept])
    assert np.array_equal(keeping.batch(rows), first)
    assert np.array_equal(keeping.batch(rows[::-1]), first[::-1])
    with pytest.raises(CohortError, match="another size"):
        keeping.batch(rows, out=np.empty((ITEMS, 1, 2, 2, 2), dtype=np.float32))


def test_item_that_could_not_be_read_is_not_kept(own: tuple[ShardSet, list[Path]]) -> None:
    shards, files = own
    shards.batch([1])
    shards._keep_bytes = 1 << 30
    os.truncate(files[1], files[1].stat().st_size - 2)
    with pytest.raises(CohortError, match="item 1 of the cohort was cut off"):
        shards.batch([1])
    assert shards._kept == {}


def test_item_of_another_size_or_without_the_array_is_refused(tmp_path: Path) -> None:
    sizes = [{"image": np.ones((1, 4, 4), dtype=np.float32)}, {"image": np.ones(8, np.float32)}]
    written = [write_shard(tmp_path, arrays, store="int16") for arrays in sizes]
    items = [Item.model_construct(shard=s.name, digest=s.digest) for s in written]
    with pytest.raises(CohortError, match="item 1 of the cohort has another size"):
        ShardSet(tmp_path, items).batch([0, 1])
    with pytest.raises(CohortError, match="item 1 of the cohort has no lesion"):
        ShardSet(tmp_path, items, array="lesion").batch([1])


def test_file_with_the_right_digest_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    data = pack_arrays({"image": np.ones(8, np.float32)}, store="int16")[:-1]
    (tmp_path / "a").write_bytes(data)
    item = Item.model_construct(shard="a", digest=digest_bytes(data))
    with pytest.raises(CohortError, match="item 0 of the cohort cannot be read"):
        ShardSet(tmp_path, [item]).batch([0])


def test_set_is_small_when_sent_and_shows_nothing(folder: Path) -> None:
    shards = ShardSet(folder / "shards", read_manifest(folder / "manifest.json").items)
    shards.batch(range(ITEMS))
    assert len(shards._kept) == ITEMS
    assert len(pickle.dumps(shards)) < 600 * ITEMS
    assert repr(shards) == "ShardSet(private)"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_and_threads_read_the_same(shards: ShardSet, method: str) -> None:
    rows = [[1, 2], [3, 0], [5, 5], [6, 4]]
    expected = [shards.batch(part) for part in rows]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as processes:
        assert all(map(np.array_equal, processes.map(shards.batch, rows), expected))
    with ThreadPoolExecutor(4) as threads:
        assert all(map(np.array_equal, threads.map(shards.batch, rows * 3), expected * 3))
