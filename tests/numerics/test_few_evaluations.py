"""A trained model is sampled by a quarter of the evaluations of DDIM, and as well."""

from __future__ import annotations

import pytest
import torch

from tests.factories.few_evaluations import DEFAULT, MOST, describe, smallest_evaluations
from tests.factories.trained import Trained
from vitrael.core.models.brain_ldm import latent_denoiser, trained_sigmas
from vitrael.core.rng import torch_stream

pytestmark = pytest.mark.slow

SEED = 58_013
IMAGES = 32


def test_few_evaluations_equal_fifty_of_ddim(plane_model: Trained) -> None:
    part = plane_model.config.teacher
    shape = (IMAGES, *plane_model.codec.latent_shape(plane_model.grid_vox))
    found = smallest_evaluations(
        latent_denoiser(plane_model.denoiser, part),
        torch.randn(shape, generator=torch_stream(SEED, "noise")),
        torch.rand((IMAGES, 4), generator=torch_stream(SEED, "condition")),
        samplers=(DEFAULT, "ddim"),
        trained=trained_sigmas(part),
        prediction=part.prediction,
    )
    print(f"\na trained model: {describe(found)}")
    needed = found[DEFAULT].evaluations()
    assert needed is not None
    assert needed <= MOST
    assert found["ddim"].evaluations() is None  # the control
