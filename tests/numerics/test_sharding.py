"""A sample is decided by its request and its place, not by who else is drawn beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.factories.systems import GRID, brain_ldm
from vitrael.core.geometry import centered_affine
from vitrael.core.interfaces import Generator
from vitrael.core.models.brain_ldm import LatentGenerator, build_codec, build_denoiser
from vitrael.core.records import SampleRequest
from vitrael.core.rng import stream

ROWS = 6


def generator(*, batch_images: int = 32) -> LatentGenerator:
    """Return a generator whose denoiser has left its start, at which it predicts nothing."""
    config = brain_ldm()
    denoiser = build_denoiser(config, config.teacher, seed=1)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    return LatentGenerator(
        build_codec(config, seed=1),
        denoiser,
        config.teacher,
        grid_vox=GRID,
        affine=centered_affine(GRID, spacing=12.0),
        batch_images=batch_images,
    )


def request() -> SampleRequest:
    condition_BK = stream(3, "conditions").random((ROWS, 4), dtype=np.float32)
    return SampleRequest(condition_BK, seed=5)


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return generator().sample(request()).image_BCDHW


def part(start: int, end: int, *, first: int) -> np.ndarray:
    """Return rows ``start`` to ``end`` of the request, drawn for themselves."""
    rows = request().condition_BK[start:end]
    return generator().sample(replace(request(), condition_BK=rows, first=first)).image_BCDHW


def test_shards_give_what_one_process_gives(whole: np.ndarray) -> None:
    shards = np.concatenate([part(0, 3, first=0), part(3, ROWS, first=3)])
    np.testing.assert_allclose(shards, whole, atol=1e-5)
    assert not np.allclose(part(3, ROWS, first=0), whole[3:], atol=1e-3)  # the control


@pytest.mark.parametrize("batch_images", [1, 4])
def test_batches_give_what_one_batch_gives(batch_images: int, whole: np.ndarray) -> None:
    samples = generator(batch_images=batch_images).sample(request()).image_BCDHW
    np.testing.assert_allclose(samples, whole, atol=1e-5)


def test_equal_requests_give_equal_samples_bit_for_bit(whole: np.ndarray) -> None:
    samples = generator().sample(request())
    assert np.array_equal(samples.image_BCDHW, whole)
    assert isinstance(generator(), Generator)
    other = generator().sample(replace(request(), seed=6)).image_BCDHW
    assert not np.allclose(other, whole, atol=1e-3)


def test_samples_differ_and_follow_their_conditions(whole: np.ndarray) -> None:
    rows = request().condition_BK.copy()
    rows[0] = 1 - rows[0]
    changed = generator().sample(replace(request(), condition_BK=rows)).image_BCDHW
    assert not np.allclose(changed[0], whole[0], atol=1e-4)
    np.testing.assert_allclose(changed[1:], whole[1:], atol=1e-5)
    assert not np.allclose(whole[0], whole[1], atol=1e-3)


def test_samples_are_images_with_geometry() -> None:
    samples = generator().sample(request())
    assert samples.image_BCDHW.shape == (ROWS, 1, *GRID)
    assert samples.image_BCDHW.dtype == np.float32
    assert samples.image_BCDHW.min() >= 0
    assert samples.image_BCDHW.max() <= 1
    assert np.array_equal(samples.condition_BK, request().condition_BK)
    assert np.array_equal(samples.affine, centered_affine(GRID, spacing=12.0))


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    generator().sample(request())
    assert torch.random.get_rng_state().equal(before)
