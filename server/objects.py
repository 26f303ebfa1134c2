"""The coordinator's object store: bytes named by their digest, written once, verified when read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vitrael.core.digest import Digest, canonical_json, digest_bytes, digest_file, write_atomically
from vitrael.core.errors import DISK_FULL, StorageError, WeightsError
from vitrael.core.weights import Tensors, pack_tensors, unpack_tensors

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


class DamagedError(StorageError):
    """An object is missing or its bytes are not what they were; whoever made it can again."""

    def __init__(self, digest: Digest, what: str, *, why: str, fix: str) -> None:
        """Keep the object's name beside the sentence."""
        super().__init__(what, why=why, fix=fix)
        self.digest = digest


class ObjectStore:
    """A folder of immutable objects, one file each, named by the digest of the file's bytes."""

    def __init__(self, root: Path) -> None:
        """Keep objects under ``root``; the folder is made when the first is put."""
        self._root = root

    def put_bytes(self, data: bytes) -> Digest:
        """Return the digest under which the bytes are now on disk, whole and synced.

        Putting the same bytes twice stores them once; a damaged file is replaced.

        Raises StorageError with the free space when the disk is full.
        """
        digest = digest_bytes(data)
        path = self._path(digest)
        try:
            if not (path.is_file() and digest_file(path) == digest):
                write_atomically(path, data)
        except OSError as error:
            raise self._explain(error, len(data)) from error
        return digest

    def put_json(self, value: Any) -> Digest:  # noqa: ANN401 - any JSON value
        """Return the digest of a stored JSON value; equals ``digest_json(value)``."""
        return self.put_bytes(canonical_json(value))

    def put_tensors(self, tensors: Tensors) -> Digest:
        """Return the digest of the stored safetensors file of these arrays."""
        return self.put_bytes(pack_tensors(tensors))

    def get_bytes(self, digest: Digest) -> bytes:
        """Return the bytes that have this digest.

        Raises DamagedError when the object is missing or its bytes no longer have the digest,
        StorageError when the disk cannot be read.
        """
        path = self._path(digest)
        with self._explaining(digest):
            data = path.read_bytes()
        _check(digest_bytes(data), digest, path)
        return data

    def path(self, digest: Digest) -> Path:
        """Return the object's file, verified now, for a reader that takes it part by part.

        Memory stays at 1 MiB whatever the size; raises as ``get_bytes``.
        """
        path = self._path(digest)
        with self._explaining(digest):
            found = digest_file(path)
        _check(found, digest, path)
        return path

    def get_json(self, digest: Digest) -> Any:  # noqa: ANN401 - any JSON value
        """Return the JSON value that has this digest; raises as ``get_bytes``."""
        data = self.get_bytes(digest)
        try:
            return json.loads(data)
        except ValueError as error:
            raise StorageError(f"object {digest} is no JSON document") from error

    def get_tensors(self, digest: Digest) -> dict[str, np.ndarray]:
        """Return the arrays of the safetensors file; raises as ``get_bytes``."""
        data = self.get_bytes(digest)
        try:
            return unpack_tensors(data)
        except WeightsError as error:
            raise StorageError(f"object {digest} is no safetensors file") from error

    def __contains__(self, digest: Digest) -> bool:
        """Tell whether a file with this name exists; its bytes are verified when it is read."""
        return self._path(digest).is_file()

    def _path(self, digest: Digest) -> Path:
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise StorageError("an object is asked for by a name that is no digest")
        name = match.group(1)
        return self._root / name[:2] / name[2:]

    @contextmanager
    def _explaining(self, digest: Digest) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DamagedError(
                digest,
                f"object {digest} is missing",
                why="it was never stored here or its file was removed",
                fix="run the stage again that made it",
            ) from error
        except OSError as error:
            raise self._explain(error, 0) from error

    def _explain(self, error: OSError, size: int) -> StorageError:
        if error.errno in DISK_FULL:
            free = shutil.disk_usage(_existing(self._root)).free
            return StorageError(
                f"{size:,} bytes cannot be stored",
                why=f"the disk of {self._root} has {free:,} bytes free",
                fix="free disk space and resume; nothing that was finished is lost",
            )
        return StorageError(
            f"the object store {self._root} cannot be used",
            why=error.strerror or "",
            fix="check it",
        )


def _check(found: Digest, digest: Digest, path: Path) -> None:
    if found != digest:
        raise DamagedError(
            digest,
            f"object {digest} is damaged",
            why="its bytes have another digest",
            fix=f"remove {path} and run the stage again that made it",
        )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
