"""Shards: the arrays of one prepared item in one file, named by its content, never unpickled.

A shard is a safetensors file (https://huggingface.co/docs/safetensors): the length of the header
in 8 bytes, the header in JSON, then the arrays without a gap, the first of them at a multiple of
64 bytes. So any array can be mapped or read from its place, and no other file tells where that
is. Equal arrays make equal bytes, and the SHA-256 of the bytes is the file's name.

How values are stored: float32 in [0, 1] as int16 ``round(32767 x)``, off by at most half a step
(1 / 65534, to the rounding of float32); or as bfloat16, off by at most 1 / 256 of the value; or as
it is. uint8 stays uint8.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

from vitrael.core.digest import Digest, digest_bytes, write_atomically
from vitrael.core.errors import CohortError, storage_error

SHARDS_NAME = "shards"
"""Folder of the shards in a cohort's folder."""

Store = Literal["int16", "bfloat16", "float32"]
"""How float32 arrays are kept."""

FULL_SCALE: Final = 32767
"""What 1.0 is stored as in int16."""

DAMAGE_FIX = "remove the cohort's folder shards and take the scans in again"
"""An intake makes what is missing anew; it does not read again what is there."""

_STEP: Final = np.float32(1 / FULL_SCALE)
_WHITE: Final = np.float32(255)
_ALIGNMENT = 64
_MOST_HEADER_BYTES = 1 << 16
_MOST_AXES = 8
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CALLED: Final = {".safetensors": "a prepared item", ".dcm": "a de-identified copy"}
"""Files whose names stand for patients; of all others the name says what they are."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_NOTES = "__metadata__"
_DTYPES: Final[Mapping[str, np.dtype[np.generic]]] = {
    "I16": np.dtype("<i2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
}
_STORED: Final[Mapping[Store, str]] = {"int16": "I16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True, slots=True)
class Shard:
    """A file that was written."""

    name: str = field(repr=False)
    """Below the folder of shards: ``ab/<64 hexadecimal digits>.safetensors``."""
    digest: Digest = field(repr=False)
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where one array lies in a shard."""

    dtype: np.dtype[np.generic]
    """Of the stored numbers; the bits of a bfloat16 are a uint16."""
    shape: tuple[int, ...]
    offset: int
    """From the start of the file, bytes."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_shard(folder: Path, arrays: Mapping[str, np.ndarray], *, store: Store) -> Shard:
    """Write the arrays of one item, float32 or uint8, and return where they lie.

    The file appears whole or not at all, is on disk when this returns, and is the owner's alone.
    A shard that is there already is left as it is; one that was damaged is mended. Raises
    CohortError for an array that cannot be stored without changing its meaning (not finite, beyond
    [0, 1] for int16, another type, empty), StorageError when the disk refuses.
    """
    data = pack_arrays(arrays, store=store)
    digest = digest_bytes(data)
    name = shard_name(digest)
    write_private(folder / name, data)
    return Shard(name=name, digest=digest, size_bytes=len(data))


def shard_name(digest: Digest) -> str:
    """Return where a shard of this content lies, below the folder of shards."""
    code = digest.removeprefix("sha256:")
    return f"{code[:2]}/{code}.safetensors"


def open_shard(path: Path) -> Mapping[str, np.ndarray]:
    """Return the stored arrays of a shard, mapped read-only: nothing but the header is read.

    Raises CohortError when the file is missing or no whole shard. The values come from ``decode``;
    that they are those that were written is for ``verify_shard`` to say. An open shard occupies a
    file handle until its arrays are gone.
    """
    handle = open_private(path)
    try:
        places, _ = read_header(handle)
        mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
    return {
        name: np.frombuffer(
            mapped, place.dtype, count=math.prod(place.shape), offset=place.offset
        ).reshape(place.shape)
        for name, place in places.items()
    }


def verify_shard(path: Path, digest: Digest) -> None:
    """Raise CohortError unless a file's content has this digest."""
    handle = open_private(path)
    try:
        verify_handle(handle, digest)
    finally:
        os.close(handle)


def decode(stored: np.ndarray) -> np.ndarray:
    """Return the float32 values of a stored array.

    int16 and uint8 are scaled so that 32767 and 255 become 1; a mask of 0 and 1 is therefore used
    as it is stored. uint16 are the bits of bfloat16. Decoding and storing again changes nothing.
    """
    values = np.empty(stored.shape, dtype=np.float32)
    decode_into(stored, values)
    return values


def decode_into(stored: np.ndarray, values: np.ndarray) -> None:
    """Write what ``decode`` returns into a float32 array of the same shape."""
    kind = stored.dtype.char
    if kind == "H":  # the bits of a bfloat16 are the upper half of a float32's
        bits = values.view(np.uint32)
        bits[...] = stored
        bits <<= 16
        return
    values[...] = stored
    if kind == "h":
        values *= _STEP
    elif kind == "B":
        values /= _WHITE


def pack_arrays(
    arrays: Mapping[str, np.ndarray], *, store: Store, notes: Mapping[str, str] | None = None
) -> bytes:
    """Return arrays as the bytes of a shard; ``notes`` stand in its header.

    Raises CohortError for an array that cannot be stored.
    """
    if not arrays or not all(_NAME.fullmatch(name) for name in arrays):
        raise CohortError("a prepared item has no array with a plain name")
    stored = {name: _encode(array, store) for name, array in arrays.items()}
    # Larger numbers first: then every array lies at a multiple of its item size.
    order = sorted(stored, key=lambda name: (-stored[name][1].itemsize, name))
    header: dict[str, object] = {_NOTES: dict(sorted(notes.items()))} if notes else {}
    end = 0
    for name in order:
        kind, array = stored[name]
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    numbers = [stored[name][1].tobytes() for name in order]
    return b"".join([len(text).to_bytes(8, "little"), text, *numbers])


def make_private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, the owner's alone (0700)."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Write a file of the cache (0600) in a folder of its own (0700), unless it holds just that.

    Raises StorageError when the disk refuses: it says what was to be written, and no path.
    """
    try:
        make_private_folder(path.parent)
        if not _holds(path, data):
            write_atomically(path, data)
    except OSError as error:
        what = _CALLED.get(path.suffix, path.name)
        raise storage_error(what, error) from None


def open_private(path: Path) -> int:
    """Return a handle that reads a plain file; a link in its place is not followed.

    Raises CohortError when there is none.
    """
    try:
        handle = os.open(path, _READ)
    except OSError:
        raise CohortError("a prepared item cannot be opened", fix=DAMAGE_FIX) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CohortError("a prepared item cannot be opened", why="it is no file", fix=DAMAGE_FIX)
    return handle


def verify_handle(handle: int, digest: Digest) -> None:
    """Raise CohortError unless the content of an open file has this digest."""
    state = hashlib.sha256()
    block = bytearray(1 << 18)
    offset = 0
    while count := read_at(handle, memoryview(block), offset):
        state.update(memoryview(block)[:count])
        offset += count
    if digest != f"sha256:{state.hexdigest()}":
        raise CohortError(
            "a prepared item is not what was taken in",
            why="its digest differs from the manifest",
            fix=DAMAGE_FIX,
        )


def read_at(handle: int, buffer: memoryview, offset: int) -> int:
    """Fill a buffer of bytes from a place in a file; return how many there were.

    Raises StorageError when the disk fails.
    """
    done = 0
    try:
        while done < len(buffer) and (count := os.preadv(handle, [buffer[done:]], offset + done)):
            done += count
    except OSError as error:
        raise storage_error("a prepared item", error, fix="check the disk") from None
    return done


def read_header(handle: int) -> tuple[dict[str, Place], dict[str, str]]:
    """Return the places of all arrays of an open shard, and its notes.

    Every number is held against the file's size before it is used. Raises CohortError when the
    file is no whole shard.
    """
    size = os.fstat(handle).st_size
    prefix = bytearray(8)
    if read_at(handle, memoryview(prefix), 0) < len(prefix):
        raise _damaged("it is cut off")
    length = int.from_bytes(prefix, "little")
    if not 0 < length <= min(_MOST_HEADER_BYTES, size - 8):
        raise _damaged("the length of its header is wrong")
    text = bytearray(length)
    if read_at(handle, memoryview(text), 8) < length:
        raise _damaged("it is cut off")
    try:
        document = json.loads(text.decode("ascii"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        raise _damaged("its header is not JSON") from None
    return _read_places(document, start=8 + length, size=size)


def _read_places(
    document: object, *, start: int, size: int
) -> tuple[dict[str, Place], dict[str, str]]:
    if not isinstance(document, dict):
        raise _damaged("its header is no table")
    notes = document.pop(_NOTES, {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise _damaged("its notes are no text")
    places = {name: _read_place(entry, start) for name, entry in document.items()}
    end = start
    for place in sorted(places.values(), key=lambda place: place.offset):
        if place.offset != end or place.offset % place.dtype.itemsize:
            raise _damaged("its arrays overlap or leave a gap")
        end += place.size_bytes
    if not places or end != size:
        raise _damaged("its arrays do not fill the file")
    return places, notes


def _read_place(entry: object, start: int) -> Place:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged("its header names an array without its place")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _damaged("an array has another type")
    if not _counts(shape) or not 1 <= len(shape) <= _MOST_AXES or 0 in shape:
        raise _damaged("the shape of an array is wrong")
    place = Place(dtype=_DTYPES[dtype], shape=tuple(shape), offset=start)
    if not _counts(offsets) or offsets[1:] != [offsets[0] + place.size_bytes]:
        raise _damaged("the place of an array is wrong")
    return Place(dtype=place.dtype, shape=place.shape, offset=start + offsets[0])


def _counts(value: object) -> bool:
    """Say whether a JSON value is a list of whole numbers, none negative, one at least."""
    return isinstance(value, list) and bool(value) and all(type(n) is int and n >= 0 for n in value)


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) < len(pairs):
        msg = "a key comes twice"
        raise ValueError(msg)
    return document


def _damaged(why: str) -> CohortError:
    return CohortError("a prepared item cannot be read", why=why, fix=DAMAGE_FIX)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _encode(array: np.ndarray, store: Store) -> tuple[str, np.ndarray]:
    """Return the kind and the numbers that stand for an array, in the order of its axes."""
    if array.size == 0 or not 1 <= array.ndim <= _MOST_AXES:
        raise CohortError("an array of a prepared item is empty or has no axes")
    if array.dtype == np.uint8:
        return "U8", np.ascontiguousarray(array)
    if array.dtype != np.float32:
        raise CohortError("an array of a prepared item is neither float32 nor uint8")
    if not np.isfinite(array).all():
        raise CohortError("an array of a prepared item holds values that are not finite")
    if store == "int16":
        if float(array.min()) < 0 or float(array.max()) > 1:
            raise CohortError("an array of a prepared item holds values outside of 0 to 1")
        scaled = np.multiply(array, np.float32(FULL_SCALE), order="C")
        return _STORED[store], np.rint(scaled, out=scaled).astype("<i2")
    values = np.add(array, np.float32(0), order="C")  # -0 becomes 0: equal arrays, equal bytes
    if store == "float32":
        return _STORED[store], values.astype("<f4", copy=False)
    return _STORED[store], _round_bfloat16(values)


def _round_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return the bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    bits += ((bits >> 16) & 1) + np.uint32(0x7FFF)
    bits >>= 16
    if (bits & 0x7F80 == 0x7F80).any():  # noqa: PLR2004 - the exponent of infinity
        raise CohortError("an array of a prepared item holds values too large for bfloat16")
    return bits.astype("<u2")
