"""Rows after the codec's round trip: small ones as the codec decodes them, large ones in slabs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pytest
import torch

from tests.factories import models
from tests.factories.systems import brain_ldm
from vitrael.core.models.brain_ldm import build_codec
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.workbench.batches import reconstruct_rows
from vitrael.core.workbench.intake import Rows, rows_of, take_in


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
