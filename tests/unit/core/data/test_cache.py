"""What is put into a shard comes out of it, and what is no whole shard is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from vitrael.core.data import cache
from vitrael.core.data.cache import (
    decode,
    open_shard,
    pack_arrays,
    verify_shard,
    write_private,
    write_shard,
)
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import CohortError, StorageError
from vitrael.core.rng import stream

HALF_STEP = 0.5 / 32767 * 1.01  # and float32's own rounding


def image(*shape: int) -> np.ndarray:
    return stream(1, "image", *shape).random(shape, dtype=np.float32)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_int16_is_off_by_half_a_step_at_most_and_keeps_the_ends(tmp_path: Path) -> None:
    values = image(1, 8, 9, 10)
    values.flat[:2] = 0, 1
    shard = write_shard(tmp_path, {"image": values}, store="int16")
    stored = open_shard(tmp_path / shard.name)["image"]
    assert stored.dtype == np.int16
    back = decode(stored)
    assert back.dtype == np.float32
    assert 0 < np.abs(back - values).max() <= HALF_STEP
    assert back.flat[:2].tolist() == [0, 1]


def test_storing_what_was_decoded_changes_nothing() -> None:
    every = np.arange(32768, dtype=np.int16)
    assert np.array_equal(np.rint(decode(every) * np.float32(32767)), every)
    once = pack_arrays({"image": image(1, 4, 5, 6)}, store="int16")
    values = np.frombuffer(once, "<i2")[-120:].reshape(1, 4, 5, 6)
    assert pack_arrays({"image": decode(values)}, store="int16") == once


def test_bfloat16_rounds_as_torch_does(tmp_path: Path) -> None:
    import torch

    values = stream(1, "wide").normal(0, 30, size=5000).astype(np.float32)
    values[:4] = 1 + 2**-8, 1 + 3 * 2**-8, 0, -(2.0**-140)  # two ties and a subnormal number
    shard = write_shard(tmp_path, {"latent": values}, store="bfloat16")
    back = decode(open_shard(tmp_path / shard.name)["latent"])
    assert np.array_equal(back, torch.from_numpy(values).bfloat16().float().numpy())
    large = np.abs(values) > 1e-30
    assert np.abs(back / np.where(large, values, 1) - 1)[large].max() <= 1 / 256


def test_float32_and_bytes_are_kept_as_they_are(tmp_path: Path) -> None:
    arrays = {"image": image(2, 3) - 5, "lesion": np.eye(3, dtype=np.uint8)}
    shard = write_shard(tmp_path, arrays, store="float32")
    back = open_shard(tmp_path / shard.name)
    assert {name: array.dtype for name, array in back.items()} == {
        "image": np.float32,
        "lesion": np.uint8,
    }
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    assert decode(np.array([0, 255], dtype=np.uint8)).tolist() == [0, 1]


def test_what_is_opened_cannot_be_written(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, {"image": image(3)}, store="int16")
    with pytest.raises(ValueError, match="read-only"):
        open_shard(tmp_path / shard.name)["image"][0] = 1


def test_equal_arrays_make_equal_bytes_and_one_file(tmp_path: Path) -> None:
    values = image(4, 6)
    mask = np.arange(7, dtype=np.uint8)
    first = write_shard(tmp_path, {"image": values, "lesion": mask}, store="int16")
    turned = {"lesion": mask, "image": np.asfortranarray(values)}
    again = write_shard(tmp_path, turned, store="int16")
    assert first == again
    assert len(list(tmp_path.rglob("*.*"))) == 1
    assert first.name == f"{first.digest[7:9]}/{first.digest[7:]}.safetensors"
    assert first.size_bytes == (tmp_path / first.name).stat().st_size
    assert write_shard(tmp_path, {"image": values}, store="int16") != first
    zero = np.zeros(3, dtype=np.float32)
    assert pack_arrays({"a": zero}, store="float32") == pack_arrays({"a": -zero}, store="float32")


def test_every_array_lies_where_it_can_be_mapped_and_others_can_read_it(tmp_path: Path) -> None:
    arrays = {"aa": np.ones(3, dtype=np.uint8), "image": image(5), "zz": image(7)}
    shard = write_shard(tmp_path, arrays, store="int16")
    data = (tmp_path / shard.name).read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert (8 + length) % 64 == 0
    places = [entry["data_offsets"] for entry in json.loads(data[8 : 8 + length]).values()]
    assert places == [[0, 10], [10, 24], [24, 27]]
    with safetensors.safe_open(tmp_path / shard.name, framework="np") as other:
        ours = open_shard(tmp_path / shard.name)
        assert set(other.keys()) == set(arrays)
        assert all(np.array_equal(other.get_tensor(name), ours[name]) for name in arrays)


def test_files_and_folders_are_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        shard = write_shard(tmp_path / "home" / "shards", {"image": image(3)}, store="int16")
    finally:
        os.umask(before)
    path = tmp_path / "home" / "shards" / shard.name
    assert mode(path) == 0o600
    assert {mode(path.parent), mode(path.parents[1]), mode(path.parents[2])} == {0o700}


def test_shard_that_is_there_is_not_written_again_and_a_damaged_one_is_mended(
    tmp_path: Path,
) -> None:
    arrays = {"image": image(50)}
    shard = write_shard(tmp_path, arrays, store="int16")
    path = tmp_path / shard.name
    number = path.stat().st_ino
    write_shard(tmp_path, arrays, store="int16")
    assert path.stat().st_ino == number
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CohortError, match="not what was taken in"):
        verify_shard(path, shard.digest)
    write_shard(tmp_path, arrays, store="int16")
    verify_shard(path, shard.digest)


@pytest.mark.parametrize(
    ("array", "store", "told"),
    [
        (np.array([0.5, np.nan], dtype=np.float32), "int16", "not finite"),
        (np.array([0.5, np.nan], dtype=np.float32), "bfloat16", "not finite"),
        (np.array([np.inf], dtype=np.float32), "float32", "not finite"),
        (np.array([1.001], dtype=np.float32), "int16", "outside of 0 to 1"),
        (np.array([-0.001], dtype=np.float32), "int16", "outside of 0 to 1"),
        (np.array([3.4e38], dtype=np.float32), "bfloat16", "too large"),
        (np.array([0.5]), "int16", "neither float32 nor uint8"),
        (np.zeros((3, 0), dtype=np.float32), "int16", "empty"),
        (np.float32(1), "int16", "empty or has no axes"),
    ],
)
def test_array_that_would_lose_its_meaning_is_refused(
    tmp_path: Path, array: np.ndarray, store: str, told: str
) -> None:
    with pytest.raises(CohortError, match=told):
        write_shard(tmp_path, {"image": array}, store=store)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "Jane Doe", "../image", "__metadata__"])
def test_array_without_a_plain_name_is_refused(name: str) -> None:
    with pytest.raises(CohortError, match="plain name"):
        pack_arrays({name: image(2)}, store="int16")
    with pytest.raises(CohortError, match="plain name"):
        pack_arrays({}, store="int16")


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("ab/abcd.safetensors", "a prepared item"),
        ("p-01/1.2.826.dcm", "a de-identified copy"),
        ("keys/split.key", "split.key"),
        ("withdrawn.json", "withdrawn.json"),
    ],
)
def test_what_cannot_be_written_is_called_by_what_it_is(
    name: str, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(cache, "write_atomically", refuse)
    with pytest.raises(StorageError) as caught:
        write_private(tmp_path / name, b"secret")
    assert caught.value.what == f"{called} cannot be read or written"
    assert "let this user read and write there" in caught.value.fix
    assert "make room" not in caught.value.sentence()
    assert str(tmp_path) not in caught.value.sentence()


def test_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match="no disk space left") as caught:
            write_shard(tmp_path, {"image": image(5000)}, store="int16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert str(tmp_path) not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def shard_of(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def padded(header: object) -> bytes:
    text = json.dumps(header).encode()
    return text + b" " * (-(8 + len(text)) % 64)


def entry(dtype: object = "I16", shape: object = (4,), offsets: object = (0, 8)) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE = {
    "empty": b"",
    "no header": bytes(7),
    "header of length 0": bytes(8) + bytes(8),
    "header longer than the file": (1 << 40).to_bytes(8, "little") + bytes(100),
    "huge length": b"\xff" * 8 + bytes(100),
    "header over the limit": (70_000).to_bytes(8, "little") + b" " * 70_000 + bytes(8),
    "no JSON": shard_of(b"{" * 56),
    "deep JSON": shard_of(b"[" * 60_000),
    "no ASCII": shard_of('{"\u00e9": 1}'.encode().ljust(56)),
    "key twice": shard_of(b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{}}'),
    "no table": shard_of(padded([1, 2])),
    "no array": shard_of(padded({}), b""),
    "only notes": shard_of(padded({"__metadata__": {"a": "b"}}), b""),
    "notes no text": shard_of(padded({"__metadata__": {"a": 1}, "image": entry()})),
    "notes no table": shard_of(padded({"__metadata__": "a", "image": entry()})),
    "entry no table": shard_of(padded({"image": 3})),
    "entry without a shape": shard_of(padded({"image": {"dtype": "I16", "data_offsets": [0, 8]}})),
    "unknown type": shard_of(padded({"image": entry("F64", (1,))})),
    "type no text": shard_of(padded({"image": entry(["I16"])})),
    "shape no list": shard_of(padded({"image": entry(shape=4)})),
    "shape without axes": shard_of(padded({"image": entry(shape=(), offsets=(0, 2))}), bytes(2)),
    "negative shape": shard_of(padded({"image": entry(shape=(-2, -2))})),
    "shape of truths": shard_of(padded({"image": entry(shape=(True, 4))})),
    "shape of fractions": shard_of(padded({"image": entry(shape=(4.0,))})),
    "zero in the shape": shard_of(padded({"image": entry(shape=(0,), offsets=(0, 0))}), b""),
    "many axes": shard_of(padded({"image": entry(shape=(1,) * 60 + (4,))})),
    "huge shape": shard_of(padded({"image": entry(shape=(1 << 62, 1 << 62))})),
    "shape larger than the place": shard_of(padded({"image": entry(shape=(5,))})),
    "place beyond the file": shard_of(padded({"image": entry(shape=(8,), offsets=(0, 16))})),
    "place before the data": shard_of(padded({"image": entry(offsets=(-8, 0))})),
    "place of three": shard_of(padded({"image": entry(offsets=(0, 8, 8))})),
    "place turned round": shard_of(padded({"image": entry(offsets=(8, 0))})),
    "gap": shard_of(padded({"image": entry(shape=(2,), offsets=(4, 8))})),
    "rest": shard_of(padded({"image": entry(shape=(2,), offsets=(0, 4))})),
    "overlap": shard_of(padded({"a": entry(), "b": entry()})),
    "crooked": shard_of(
        padded({"a": entry("U8", (1,), (0, 1)), "b": entry("I16", (3,), (1, 7))}), bytes(7)
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_file_that_is_no_whole_shard_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / "Jane.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(CohortError, match="a prepared item cannot be read: ") as caught:
        open_shard(path)
    assert "Jane" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_header_of_the_same_kind_is_read(tmp_path: Path) -> None:
    """The control of the refusals above: nothing else in those files is wrong."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(shard_of(padded({"__metadata__": {"a": "b"}, "image": entry()})))
    assert open_shard(path)["image"].tolist() == [0, 0, 0, 0]


SOUND = pack_arrays(
    {"image": image(1, 3, 4, 5), "lesion": np.eye(4, dtype=np.uint8)}, store="int16"
)


@given(st.integers(0, len(SOUND) - 1))
def test_shard_cut_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(CohortError):
        read_bytes(SOUND[:cut])


@given(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=9))
def test_damage_anywhere_is_refused_or_found_by_the_digest(place: int, junk: bytes) -> None:
    damaged = SOUND[:place] + junk + SOUND[place + len(junk) :]
    try:
        arrays = read_bytes(damaged)
    except CohortError:
        return
    assert all(decode(array).dtype == np.float32 for array in arrays.values())
    assert (digest_bytes(damaged) == digest_bytes(SOUND)) == (damaged == SOUND)


def read_bytes(data: bytes) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(data)
        return {name: array.copy() for name, array in open_shard(path).items()}


def test_only_a_plain_file_is_opened(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, {"image": image(3)}, store="int16")
    (tmp_path / "link").symlink_to(tmp_path / shard.name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "pipe", "folder", "nothing"):
        with pytest.raises(CohortError, match="cannot be opened"):
            open_shard(tmp_path / name)
        with pytest.raises(CohortError, match="cannot be opened"):
            verify_shard(tmp_path / name, shard.digest)
