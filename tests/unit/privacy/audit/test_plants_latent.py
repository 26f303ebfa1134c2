"""Near-duplicates through a generator: how far a scan is noised, and whose noise it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.factories.systems import GRID, brain_ldm
from vitrael.core.errors import DataError
from vitrael.core.geometry import centered_affine
from vitrael.core.models.brain_ldm import (
    LatentGenerator,
    build_codec,
    build_denoiser,
    trained_sigmas,
)
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants.latent import blend_in, noise_level, renoise_with


@pytest.fixture(scope="module")
def generator() -> LatentGenerator:
    config = brain_ldm()
    denoiser = build_denoiser(config, config.teacher, seed=1)
    return LatentGenerator(
        build_codec(config, seed=1),
        denoiser,
        config.teacher,
        grid_vox=GRID,
        affine=centered_affine(GRID, spacing=12.0),
        batch_images=2,
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return stream(1, "images").uniform(0, 1, (3, 1, *GRID)).astype(np.float32)


def _round_trip(generator: LatentGenerator, image: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return generator.codec.decode(generator.codec.encode(torch.from_numpy(image))).numpy()


def test_share_names_a_trained_level() -> None:
    part = brain_ldm().teacher
    sigmas = trained_sigmas(part)
    assert noise_level(part, 1.0) == float(sigmas[-1])
    assert noise_level(part, 0.5) == float(sigmas[len(sigmas) // 2 - 1])
    flow = part.model_copy(update={"prediction": "flow"})
    assert noise_level(flow, 0.5) == pytest.approx(1.0)
    edm = part.model_copy(update={"prediction": "edm"})
    assert noise_level(edm, 1.0) == pytest.approx(80.0)
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(DataError, match="of the way"):
            noise_level(part, share)


@pytest.mark.parametrize("prediction", ["velocity", "flow"])
def test_more_noise_leads_farther_from_the_scan(
    generator: LatentGenerator, images: np.ndarray, prediction: str
) -> None:
    part = generator.part.model_copy(update={"prediction": prediction})
    other = LatentGenerator(
        generator.codec, generator.denoiser, part, grid_vox=GRID, affine=generator.affine
    )
    renoise = renoise_with(other, np.zeros((3, 4), np.float32), seed=1)
    whole = _round_trip(generator, images)
    away = [float(np.square(renoise(images, share) - whole).mean()) for share in (0.02, 0.3, 0.9)]
    assert away == sorted(away)
    assert away[0] < 0.2 * away[2]


def test_noise_of_a_row_is_its_own(generator: LatentGenerator, images: np.ndarray) -> None:
    condition = np.full((3, 4), 0.5, np.float32)
    whole = renoise_with(generator, condition, seed=1)(images, 0.5)
    first = renoise_with(generator, condition[:1], seed=1)(images[:1], 0.5)
    other = renoise_with(generator, condition, seed=2)(images, 0.5)
    assert np.abs(whole[:1] - first).max() < 1e-5
    assert np.abs(whole - other).max() > 1e-3


def test_images_without_their_conditions_are_refused(
    generator: LatentGenerator, images: np.ndarray
) -> None:
    renoise = renoise_with(generator, np.zeros((2, 4), np.float32), seed=1)
    with pytest.raises(DataError, match="do not go together"):
        renoise(images, 0.2)


def test_whole_weight_is_the_round_trip(generator: LatentGenerator, images: np.ndarray) -> None:
    blend = blend_in(generator.codec, batch_images=2)
    whole = _round_trip(generator, images)
    assert np.abs(blend(images, images[::-1], 1.0) - whole).max() < 1e-5
    assert np.abs(blend(images, images[::-1], 0.0) - whole[::-1]).max() < 1e-5
    assert np.abs(blend(images, images[::-1], 0.5) - whole)[0].max() > 1e-4
    with pytest.raises(DataError, match="cannot be mixed"):
        blend(images, images[:2], 0.5)
