"""A latent that is read back is the latent that was used; an unsound one is computed again."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vitrael.core.data.latent_cache import LatentCache, LatentStore, View, encode_cached
from vitrael.core.data.retention import LATENTS_NAME, purge_items
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import CohortError
from vitrael.core.rng import stream

CODEC = digest_bytes(b"codec")
ITEMS = [digest_bytes(bytes([number])) for number in range(6)]
IMAGES = stream(3, "images").random((6, 1, 8, 6, 4), dtype=np.float32)


def read(rows: Sequence[int]) -> np.ndarray:
    return IMAGES[list(rows)]


class Encoder:
    """Halves every axis; what it makes of an image depends on the batch, as a GPU's sums may."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, image_BCDHW: np.ndarray) -> np.ndarray:
        self.seen += len(image_BCDHW)
        latent: np.ndarray = image_BCDHW[:, :, ::2, ::2, ::2] * 7 - 3
        return latent + np.float32(len(image_BCDHW))


def encoded(
    cache: LatentCache, items: Sequence[Digest] = ITEMS, view: View = "plain"
) -> tuple[np.ndarray, int]:
    encoder = Encoder()
    rows = [ITEMS.index(item) for item in items]
    latents = encode_cached(
        cache,
        items,
        codec=CODEC,
        read=lambda chosen: read([rows[row] for row in chosen]),
        encode=encoder,
        view=view,
    )
    return latents, encoder.seen


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("store", ["bfloat16", "float32"])
def test_read_back_is_what_was_computed_bit_for_bit(tmp_path: Path, store: LatentStore) -> None:
    first, computed = encoded(LatentCache(tmp_path, store=store))
    again, computed_again = encoded(LatentCache(tmp_path, store=store))
    assert (computed, computed_again) == (len(ITEMS), 0)
    assert first.dtype == again.dtype == np.float32
    assert first.tobytes() == again.tobytes()
    exact = np.concatenate([Encoder()(image[None]) for image in IMAGES])
    error = np.abs(first - exact) / np.maximum(np.abs(exact), 1e-6)
    assert bool(error.max() == 0) is (store == "float32")
    assert error.max() <= 1 / 256


def test_which_latents_were_kept_before_does_not_matter(tmp_path: Path) -> None:
    """Even with an encoder whose numbers depend on the batch."""
    whole, _ = encoded(LatentCache(tmp_path / "a"))
    part, _ = encoded(LatentCache(tmp_path / "b"), ITEMS[2:5])
    rest, computed = encoded(LatentCache(tmp_path / "b"), ITEMS[::-1])
    assert computed == 3
    assert np.array_equal(whole[2:5], part)
    assert np.array_equal(whole[::-1], rest)


def test_mirrored_is_kept_beside_plain(tmp_path: Path) -> None:
    plain, _ = encoded(LatentCache(tmp_path))
    mirrored, computed = encoded(LatentCache(tmp_path), view="mirrored")
    assert computed == len(ITEMS)
    expected = Encoder()(IMAGES[:1, :, ::-1])
    assert np.allclose(mirrored[:1], expected, rtol=1 / 256)
    assert not np.allclose(mirrored, plain, rtol=1 / 256)
    assert encoded(LatentCache(tmp_path), view="mirrored")[1] == 0


def test_no_items_ask_the_encoder_for_the_shape(tmp_path: Path) -> None:
    latents, _ = encoded(LatentCache(tmp_path), [])
    assert latents.shape == (0, 1, 4, 3, 2)
    assert files(tmp_path) == []


def test_other_codec_item_view_and_precision_are_not_there(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path)
    cache.put(CODEC, ITEMS[0], IMAGES[0])
    assert cache.get(CODEC, ITEMS[0]) is not None
    assert cache.get(digest_bytes(b"other"), ITEMS[0]) is None
    assert cache.get(CODEC, ITEMS[1]) is None
    assert cache.get(CODEC, ITEMS[0], view="mirrored") is None
    assert LatentCache(tmp_path, store="float32").get(CODEC, ITEMS[0]) is None


def test_codec_with_the_same_first_digits_is_told_apart(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path)
    cache.put(CODEC, ITEMS[0], IMAGES[0])
    twin = Digest(CODEC[:-1] + ("0" if CODEC[-1] != "0" else "1"))
    assert cache.get(twin, ITEMS[0]) is None


def test_damaged_latent_is_computed_again(tmp_path: Path) -> None:
    first, _ = encoded(LatentCache(tmp_path))
    whole, short, junk, moved = files(tmp_path)[:4]
    data = bytearray(whole.read_bytes())
    data[-1] ^= 1
    whole.write_bytes(data)
    short.write_bytes(short.read_bytes()[:-1])
    junk.write_bytes(b"junk")
    moved.write_bytes(files(tmp_path)[5].read_bytes())
    again, computed = encoded(LatentCache(tmp_path))
    assert computed == 4
    assert np.array_equal(first, again)
    assert encoded(LatentCache(tmp_path))[1] == 0


def test_latent_that_is_not_finite_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="not finite"):
        LatentCache(tmp_path).put(CODEC, ITEMS[0], np.array([np.nan], dtype=np.float32))
    assert files(tmp_path) == []


def test_purged_items_have_no_latent_under_any_codec(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path / LATENTS_NAME)
    other = digest_bytes(b"other")
    for codec in (CODEC, other):
        for item in ITEMS[:3]:
            cache.put(codec, item, IMAGES[0])
            cache.put(codec, item, IMAGES[1], view="mirrored")
    removed = purge_items(tmp_path, ITEMS[:2])
    assert removed.files == 8
    assert all(cache.get(codec, item) is None for codec in (CODEC, other) for item in ITEMS[:2])
    assert all(cache.get(codec, ITEMS[2]) is not None for codec in (CODEC, other))


def test_latents_are_the_owners_alone(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path / "latents")
    cache.put(CODEC, ITEMS[0], IMAGES[0])
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "latents").rglob("*")}
    assert modes == {0o700, 0o600}
    assert repr(cache) == "LatentCache(private)"
