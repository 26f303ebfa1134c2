"""Rows after the codec's round trip: small ones as the codec decodes them, large ones in slabs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from tests.factories import models
from tests.factories.systems import brain_ldm
from tests.unit.core.workbench.test_intake import side_by_side
from vitrael.core.data.latent_cache import LatentCache
from vitrael.core.digest import digest_bytes
from vitrael.core.models.brain_ldm import build_codec
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.workbench.batches import encode_rows, reconstruct_rows
from vitrael.core.workbench.intake import Rows, Share, rows_of, take_in


@pytest.fixture(scope="module")
def codec() -> KLCodec:
    return build_codec(brain_ldm(), seed=1).eval()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    place = tmp_path_factory.mktemp("batches")
    document = models.document()
    scans = models.write_scans(place / "scans", patients=2)
    intake = take_in(scans, document.recipe, workshop=place / "workshop")
    return rows_of(intake.items, intake.shards, document.covariates)


def test_small_rows_come_back_bit_for_bit_as_the_codec_decodes_them(
    codec: KLCodec, rows: Rows
) -> None:
    with torch.no_grad():
        image = torch.from_numpy(rows.images.batch([0, 1]))
        whole = codec.decode(codec.encode(image)).numpy()
    found = reconstruct_rows(codec, rows, [0, 1])
    assert np.array_equal(found, whole)
    assert not np.array_equal(found, image.numpy())  # the control


@dataclass(frozen=True)
class Drawn:
    """Images that are drawn when they are asked for."""

    edge: int

    def batch(self, numbers: list[int]) -> np.ndarray:
        rng = np.random.default_rng(self.edge)
        return rng.random((len(numbers), 1, *[self.edge] * 3), dtype=np.float32)


@pytest.mark.parametrize("bf16", [False, True])
def test_large_rows_are_decoded_slab_by_slab(codec: KLCodec, rows: Rows, *, bf16: bool) -> None:
    large = replace(rows, images=cast("object", Drawn(80)))  # type: ignore[arg-type]
    decoded_whole: list[int] = []
    seen = codec.net.decoder.register_forward_hook(lambda *_: decoded_whole.append(1))
    found = reconstruct_rows(codec, large, [0], bf16=bf16)
    assert not decoded_whole
    reconstruct_rows(codec, rows, [0], bf16=bf16)
    assert decoded_whole  # the control
    with torch.no_grad():
        whole = codec.decode(codec.encode(torch.from_numpy(Drawn(80).batch([0])))).numpy()
    seen.remove()
    assert np.abs(found - whole).max() < (0.05 if bf16 else 1e-4)


def test_latents_that_are_missing_are_shared_and_all_processes_return_all(
    codec: KLCodec, rows: Rows, tmp_path: Path
) -> None:
    twice = replace(rows, items=(*rows.items, rows.items[0]))  # one scan may come again
    named = digest_bytes(b"codec")
    alone, _ = encode_rows(codec, rows, cache=LatentCache(tmp_path / "alone"), name=named)
    cache = LatentCache(tmp_path / "shared")
    encode_rows(codec, replace(rows, items=rows.items[:1]), cache=cache, name=named)
    encoded: list[int] = []
    found: dict[int, torch.Tensor] = {}

    def act(share: Share) -> None:
        def tell(_step: str, done: int, _total: int) -> None:
            encoded.append(done)

        found[share.number], _ = encode_rows(
            codec, twice, cache=cache, name=named, share=share, tell=tell
        )

    side_by_side(act)
    assert encoded == [1, 1]  # one scan was left, told by both
    count = len(rows)
    for latents in found.values():
        assert torch.equal(latents[:count], alone[:count])
        assert torch.equal(latents[count], latents[0])
        assert torch.equal(latents[count + 1 : 2 * count + 1], alone[count:])
