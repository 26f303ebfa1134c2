"""Batches straight from shards: what training reads, epoch after epoch, in little memory.

The system's own file cache keeps the stored numbers, half the size of float32, shared by all
processes and given back when memory is short. Here a block is read at a time and scaled while it
is in the processor's cache, so that a batch costs no memory but its own; the stored numbers of the
first items, a few megabytes, are kept beside it, since copying them from the system is what takes
longest. Mapping the files was measured too: every page that is touched costs a fault, and maps
that stay cost a handle each and end the process when the disk fails.

Axes: B batch, then those of an item.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrael.core.data.cache import (
    DAMAGE_FIX,
    Place,
    decode_into,
    open_private,
    read_at,
    read_header,
    verify_handle,
)
from vitrael.core.data.manifest import Item
from vitrael.core.errors import CohortError

KEEP_BYTES = 20 << 20
"""How many bytes of stored numbers a set keeps in memory, unless it is told otherwise."""

_BLOCK_BYTES = 1 << 18


class ShardSet:
    """One array of many items, by number.

    An item is held against its digest when it is first read; one that is kept in memory is not
    read again, even if it was purged meanwhile. Safe in several threads and after a fork; sent to
    another process, a set takes no image with it. Errors name an item by its number.
    """

    def __init__(
        self,
        folder: Path,
        items: Iterable[Item],
        *,
        array: str = "image",
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        """Take a folder of shards and its items; no file is opened.

        ``keep_bytes`` bounds what stays in memory between two calls, 0 for nothing.
        """
        self._files = [(folder / item.shard, item.digest) for item in items]
        self._array = array
        self._places: list[Place | None] = [None] * len(self._files)
        self._keep_bytes = keep_bytes
        self._forget()

    def _forget(self) -> None:
        self._kept: dict[int, np.ndarray] = {}
        self._kept_bytes = 0
        self._blocks: list[bytearray] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return names and places, which are all that another process needs."""
        own = ("_kept", "_kept_bytes", "_blocks")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with nothing kept."""
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._files)

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "ShardSet(private)"

    def batch(self, rows: Sequence[int], *, out: np.ndarray | None = None) -> np.ndarray:
        """Return float32 ``[B, ...]``: the items of these numbers, decoded, in this order.

        ``out`` is filled and returned where it is given; without it, all items must have the shape
        of the first. No row gives an array of length 0. Raises CohortError when an item is
        missing, damaged, another than was taken in, or of another shape; StorageError when the
        disk fails.
        """
        if out is None:
            out = np.empty((len(rows), *self._shape_of(rows)), dtype=np.float32)
        elif out.dtype != np.float32 or not out.flags.c_contiguous or len(out) != len(rows):
            msg = "out must be a contiguous float32 array with one row for each item"
            raise ValueError(msg)
        # Threads that read at the same time take a block each; taking and giving are atomic.
        try:
            block = self._blocks.pop()
        except IndexError:
            block = bytearray(_BLOCK_BYTES)
        try:
            for row, values in zip(rows, out, strict=True):
                self._read(row, values, block)
        finally:
            self._blocks.append(block)
        return out

    def _shape_of(self, rows: Sequence[int]) -> tuple[int, ...]:
        if not self._files:
            return ()
        row = int(rows[0]) if len(rows) else 0
        known = self._places[row]
        if known is not None:
            return known.shape
        handle = self._open(row)
        try:
            return self._place(row, handle).shape
        finally:
            os.close(handle)

    def _read(self, row: int, values: np.ndarray, block: bytearray) -> None:
        kept = self._kept.get(row)
        if kept is not None:
            _demand_shape(kept.shape, values, row)
            _decode_blocks(kept.reshape(-1), values.reshape(-1))
            return
        handle = self._open(row)
        try:
            place = self._place(row, handle)
            _demand_shape(place.shape, values, row)
            keep = self._kept_bytes + place.size_bytes <= self._keep_bytes
            if keep:
                block = bytearray(place.size_bytes)
            _read_blocks(handle, place, values.reshape(-1), block=block, row=row)
            if keep:
                self._kept_bytes += place.size_bytes
                self._kept[row] = np.frombuffer(block, place.dtype).reshape(place.shape)
        finally:
            os.close(handle)

    def _open(self, row: int) -> int:
        try:
            return open_private(self._files[row][0])
        except CohortError as error:
            raise _numbered(error, row) from None

    def _place(self, row: int, handle: int) -> Place:
        """Return where an item's array lies, verified the first time."""
        place = self._places[row]
        if place is None:
            try:
                verify_handle(handle, self._files[row][1])
                places, _ = read_header(handle)
            except CohortError as error:
                raise _numbered(error, row) from None
            if self._array not in places:
                raise CohortError(f"item {row} of the cohort has no {self._array}")
            place = self._places[row] = places[self._array]
        return place


def _numbered(error: CohortError, row: int) -> CohortError:
    what = error.what.replace("a prepared item", f"item {row} of the cohort", 1)
    return CohortError(what, why=error.why, fix=error.fix)


def _demand_shape(shape: tuple[int, ...], values: np.ndarray, row: int) -> None:
    if shape != values.shape:
        raise CohortError(
            f"item {row} of the cohort has another size than expected",
            fix=DAMAGE_FIX,
        )


def _read_blocks(
    handle: int, place: Place, values: np.ndarray, *, block: bytearray, row: int
) -> None:
    size = place.dtype.itemsize
    view = memoryview(block)
    for first in range(0, place.size_bytes, len(block)):
        part = view[: min(len(block), place.size_bytes - first)]
        if read_at(handle, part, place.offset + first) < len(part):
            raise CohortError(f"item {row} of the cohort was cut off", fix=DAMAGE_FIX)
        stored = np.frombuffer(part, place.dtype)
        _decode_blocks(stored, values[first // size :][: len(stored)])


def _decode_blocks(stored: np.ndarray, values: np.ndarray) -> None:
    """Decode so many numbers at a time as stay in the processor's cache."""
    step = _BLOCK_BYTES // stored.itemsize
    for first in range(0, len(stored), step):
        decode_into(stored[first : first + step], values[first : first + step])
