"""Latents of prepared items, computed once for each codec and read ever after.

They lie beside the shards: ``latents/<16 digits of the codec's digest>/<item>-<view>.safetensors``.
A latent can always be computed again, so one that is missing, damaged, of another codec or of
another precision is simply not there. What is used is always what the file holds, so a latent is
the same number whether it was computed now or a year ago.

Axes: B batch, C channels, D H W of the image, d h w of the latent.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np

from vitrael.core.data.cache import (
    Place,
    decode,
    open_private,
    pack_arrays,
    read_at,
    read_header,
    write_private,
)
from vitrael.core.data.retention import latent_name
from vitrael.core.digest import Digest
from vitrael.core.errors import CohortError

View = Literal["plain", "mirrored"]
"""How the image was turned before it was encoded; mirrored is left to right, along D."""

LatentStore = Literal["bfloat16", "float32"]

_ARRAY = "latent"
_DTYPES: Final[Mapping[LatentStore, np.dtype[np.generic]]] = {
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
}


class LatentCache:
    """Latents on disk, by codec, item and view."""

    def __init__(self, folder: Path, *, store: LatentStore = "bfloat16") -> None:
        """Take a cohort's folder of latents, which need not exist; bfloat16 keeps 8 bits."""
        self._folder = folder
        self._store = store

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "LatentCache(private)"

    def get(self, codec: Digest, item: Digest, *, view: View = "plain") -> np.ndarray | None:
        """Return the latent, float32 ``[C, d, h, w]``, or None where no sound one is kept.

        Raises StorageError when the disk fails.
        """
        try:
            handle = open_private(self._folder / latent_name(codec, item, view=view))
        except CohortError:
            return None
        try:
            places, notes = read_header(handle)
            place = places.get(_ARRAY)
            if place is None or place.dtype != _DTYPES[self._store]:
                return None
            data = _read(handle, place)
        except CohortError:
            return None
        finally:
            os.close(handle)
        if notes != _notes(codec, item, view, data):
            return None
        return decode(np.frombuffer(data, place.dtype).reshape(place.shape))

    def put(
        self, codec: Digest, item: Digest, latent_CDHW: np.ndarray, *, view: View = "plain"
    ) -> np.ndarray:
        """Keep a latent, and return it as ``get`` will: rounded to what is stored.

        Raises CohortError when it is not float32 or not finite, StorageError when the disk
        refuses.
        """
        bare = pack_arrays({_ARRAY: latent_CDHW}, store=self._store)
        size = latent_CDHW.size * _DTYPES[self._store].itemsize
        data = bare[len(bare) - size :]
        notes = _notes(codec, item, view, data)
        packed = pack_arrays({_ARRAY: latent_CDHW}, store=self._store, notes=notes)
        write_private(self._folder / latent_name(codec, item, view=view), packed)
        return decode(np.frombuffer(data, _DTYPES[self._store]).reshape(latent_CDHW.shape))


def encode_cached(
    cache: LatentCache,
    items: Sequence[Digest],
    *,
    codec: Digest,
    read: Callable[[Sequence[int]], np.ndarray],
    encode: Callable[[np.ndarray], np.ndarray],
    view: View = "plain",
) -> np.ndarray:
    """Return the latents of items, float32 ``[B, C, d, h, w]``, computing those not kept.

    ``read`` gives the images ``[B, C, D, H, W]`` of rows of ``items``, such as
    ``ShardSet.batch``, and is asked for the missing alone. ``encode`` makes latents of images.
    Each image is encoded by itself: what is kept must not depend on which others were missing
    beside it. No items ask ``encode`` for an empty batch, whose shape is returned.
    """
    if not items:
        return np.asarray(encode(read([])), dtype=np.float32)
    latents = []
    for row, item in enumerate(items):
        latent = cache.get(codec, item, view=view)
        if latent is None:
            image_BCDHW = read([row])
            if view == "mirrored":
                image_BCDHW = np.ascontiguousarray(image_BCDHW[:, :, ::-1])
            latent = cache.put(codec, item, encode(image_BCDHW)[0], view=view)
        latents.append(latent)
    return np.stack(latents)


def _notes(codec: Digest, item: Digest, view: View, data: bytes) -> dict[str, str]:
    """Return what a latent's header says: what it was made of, and a digest of its numbers."""
    digest = hashlib.sha256(data).hexdigest()
    return {"codec": codec, "item": item, "sha256": digest, "view": view}


def _read(handle: int, place: Place) -> bytes:
    data = bytearray(place.size_bytes)
    if read_at(handle, memoryview(data), place.offset) < len(data):
        raise CohortError("a latent was cut off")
    return bytes(data)
