"""Slices eight times too thick come back from the model, by either strategy, and from it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests.factories.trained import VENTRICLE, Shown, Trained, show_planes
from vitrael.core.models.brain_ldm import build_codec, latent_denoiser, trained_sigmas
from vitrael.core.sampling.inverse import Prior, invert_latent, invert_noise
from vitrael.core.sampling.operators import ThickSlices
from vitrael.core.sampling.schedules import sampling_sigmas
from vitrael.core.sampling.search import Inversion, InversionSettings

pytestmark = pytest.mark.slow

SEED = 31_907
IMAGES = 8
FACTOR = 8
STEPS = 15
OPERATOR = ThickSlices(axis=0, factor=FACTOR)

Decode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Task:
    """What was measured of eight new patients, and what cubic interpolation makes of it."""

    model: Trained
    shown: Shown
    image: torch.Tensor
    low: torch.Tensor
    start: torch.Tensor

    def gain_db(self, found: torch.Tensor) -> torch.Tensor:
        """Return how much closer images are than cubic interpolation, ``[B]``."""
        return self.psnr(found) - self.psnr(OPERATOR.upsample(self.low))

    def psnr(self, found: torch.Tensor) -> torch.Tensor:
        error = (found.clamp(0, 1) - self.image).square().mean((1, 2, 3))
        return -10 * error.log10()

    def invert_latent(self, decode: Decode) -> Inversion:
        start = self.start.expand(IMAGES, *self.start.shape)
        settings = InversionSettings(iterations=200)
        return invert_latent(decode, OPERATOR, self.low, start, settings=settings, seed=SEED)

    def invert_noise(self, decode: Decode) -> Inversion:
        part = self.model.config.teacher
        prior = Prior(
            latent_denoiser(self.model.denoiser, part),
            sampling_sigmas(trained_sigmas(part), STEPS),
            torch.full((4,), 0.5),
        )
        return invert_noise(
            prior,
            decode,
            OPERATOR,
            self.low,
            latent_shape=tuple(self.start.shape),
            settings=InversionSettings(iterations=60, checkpointed=False),
            seed=SEED,
        )


@pytest.fixture(scope="module")
def task(plane_model: Trained) -> Task:
    shown = show_planes(SEED, IMAGES)
    image = torch.from_numpy(shown.image)
    with torch.no_grad():
        start = plane_model.codec.encode(torch.from_numpy(show_planes(SEED + 1, 200).image))
    plane_model.codec.requires_grad_(requires_grad=False)
    plane_model.denoiser.requires_grad_(requires_grad=False)
    return Task(plane_model, shown, image, OPERATOR(image), start.mean(0))


def untrained(model: Trained) -> Decode:
    blank = build_codec(model.config, seed=SEED).requires_grad_(requires_grad=False)
    blank.latent_mean.copy_(model.codec.latent_mean)
    blank.latent_std.copy_(model.codec.latent_std)
    return blank.render


def test_codec_leaves_room_above_cubic_interpolation(task: Task) -> None:
    """The precondition: what the codec cannot draw, no search can find."""
    back = torch.from_numpy(task.model.reconstruct(task.shown.image))
    cubic, ceiling = task.psnr(OPERATOR.upsample(task.low)), task.psnr(back)
    print(f"\ncubic {cubic.mean():.2f} dB, ceiling of the codec {ceiling.mean():.2f} dB")
    assert (task.gain_db(back) >= 3).all()


def test_search_over_latents_gains_three_decibels_on_all(task: Task) -> None:
    gain = task.gain_db(task.invert_latent(task.model.codec.render).image)
    print(f"latent: gain {gain.mean():.2f} dB, least {gain.min():.2f}")
    assert (gain >= 3).all()


def test_search_over_noise_gains_three_decibels_on_all_and_finds_the_condition(
    task: Task,
) -> None:
    found = task.invert_noise(task.model.codec.render)
    gain = task.gain_db(found.image)
    assert found.condition is not None
    asked = task.model.conditions(task.shown.covariate_BK)
    r = [np.corrcoef(found.condition[:, k], asked[:, k])[0, 1] for k in (0, VENTRICLE, 3)]
    print(f"noise: gain {gain.mean():.2f} dB, least {gain.min():.2f}; r {r}")
    assert (gain >= 3).all()
    assert r[1] > 0.6


def test_untrained_decoder_gains_nothing(task: Task) -> None:
    for name in ("invert_latent", "invert_noise"):
        gain = task.gain_db(getattr(task, name)(untrained(task.model)).image)
        print(f"untrained decoder, {name}: gain {gain.mean():.2f} dB, largest {gain.max():.2f}")
        assert gain.mean() < 0.5
