"""Objects are named by their content, stored whole or not at all, and verified when read."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from vitrael.core.digest import Digest, digest_bytes, digest_json
from vitrael.core.errors import StorageError
from vitrael.server import objects
from vitrael.server.objects import DamagedError, ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_what_was_put_comes_back(store: ObjectStore) -> None:
    value = {"b": [1, 2.5, None], "a": "vitral"}
    tensors = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([3], np.int64)}
    assert store.get_bytes(store.put_bytes(b"pane")) == b"pane"
    assert store.put_json(value) == digest_json(value)
    assert store.get_json(store.put_json(value)) == value
    read = store.get_tensors(store.put_tensors(tensors))
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[name], tensors[name]) for name in tensors)


def test_same_bytes_are_stored_once(store: ObjectStore, tmp_path: Path) -> None:
    assert store.put_bytes(b"pane") == store.put_bytes(b"pane")
    assert len(_files(tmp_path)) == 1
    store.put_bytes(b"other")
    assert len(_files(tmp_path)) == 2


def test_damaged_object_is_refused_and_healed_by_putting_it_again(
    store: ObjectStore, tmp_path: Path
) -> None:
    digest = store.put_bytes(b"pane")
    (path,) = _files(tmp_path)
    path.write_bytes(b"pone")
    with pytest.raises(DamagedError, match="damaged: its bytes have another digest") as caught:
        store.get_bytes(digest)
    assert caught.value.digest == digest
    with pytest.raises(StorageError, match="damaged"):
        store.path(digest)
    store.put_bytes(b"pane")
    assert store.path(digest) == path
    assert store.get_bytes(digest) == b"pane"


def test_missing_object_is_refused(store: ObjectStore) -> None:
    absent = digest_bytes(b"absent")
    assert absent not in store
    assert store.put_bytes(b"absent") in store
    with pytest.raises(StorageError, match="is missing"):
        store.get_bytes(digest_bytes(b"never"))
    with pytest.raises(StorageError, match="is missing"):
        store.path(digest_bytes(b"never"))


def test_name_that_is_no_digest_never_becomes_a_path(store: ObjectStore) -> None:
    for name in ("sha256:../../etc/passwd", "../x", "sha256:" + "A" * 64):
        with pytest.raises(StorageError, match="no digest"):
            store.get_bytes(Digest(name))


def test_object_of_another_kind_is_refused(store: ObjectStore) -> None:
    digest = store.put_bytes(b"\xffpane")
    with pytest.raises(StorageError, match="no JSON document"):
        store.get_json(digest)
    with pytest.raises(StorageError, match="no safetensors file"):
        store.get_tensors(digest)


def test_full_disk_is_told_with_free_bytes(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(objects, "write_atomically", fail)
    with pytest.raises(StorageError, match=r"4 bytes cannot be stored.* [\d,]+ bytes free.*resume"):
        store.put_bytes(b"pane")
    assert _files(tmp_path) == []


def test_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot be used"):
        ObjectStore(tmp_path / "objects").put_bytes(b"pane")
