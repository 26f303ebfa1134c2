"""Thick slices of real T1 scans, searched with a model that has seen phantoms alone.

A further table, and no promise: what a model of phantoms knows of people is what is asked. Beside
cubic interpolation stand what the codec alone makes of the whole scan, above which no search gets,
and the search over latents of an untrained decoder, the control.

Axes: B scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories.trained import Trained, show_volumes
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.recipes import RecipeInput, prepare, settings_for
from vitrael.core.metrics.intervals import Estimate, normal_interval
from vitrael.core.models.brain_ldm import build_codec, latent_denoiser, trained_sigmas
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.sampling.inverse import Prior, invert_latent, invert_noise
from vitrael.core.sampling.operators import ThickSlices
from vitrael.core.sampling.schedules import sampling_sigmas
from vitrael.core.sampling.search import InversionSettings

pytestmark = pytest.mark.slow

SEED = 52_361
LAST_AXIS, FACTORS = 2, (4, 8)
SCANS = 18
"""Of those that are there, evenly: a search takes minutes."""
PHANTOMS = 64
"""Whose mean latent is where a search begins."""
DDIM_STEPS = 15


@dataclass(frozen=True)
class Effort:
    """How long the two searches go on."""

    latent_iterations: int = 200
    noise_iterations: int = 60


def prepare_brains(
    files: Sequence[Path], grid_vox: tuple[int, ...], spacing_mm: float
) -> torch.Tensor:
    """Return scans ``[B, 1, D, H, W]`` on a grid, as the recipe makes them."""
    settings = settings_for("brain-t1", grid_vox=grid_vox, spacing_mm=spacing_mm)
    ready = [prepare(RecipeInput({"T1w": read_nifti(path)}), settings) for path in files]
    cut = max(one.cut_frac for one in ready)
    print(f"\n{len(ready)} scans, {grid_vox} at {spacing_mm:g} mm; of a brain {cut:.1%} cut")
    return torch.from_numpy(np.stack([one.arrays["image"] for one in ready]))


def psnr(found: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return ``[B]``, in dB of the full range of intensities, which is 1."""
    return -10 * (found.clamp(0, 1) - image).square().flatten(1).mean(1).log10()


@dataclass(frozen=True)
class Task:
    """What was measured of real scans ``[B, 1, D, H, W]``, and the model that is searched."""

    model: Trained
    image: torch.Tensor
    operator: ThickSlices
    effort: Effort

    @property
    def low(self) -> torch.Tensor:
        return self.operator(self.image)

    def start(self) -> torch.Tensor:
        """Return the mean latent of phantoms for each scan."""
        phantoms = torch.from_numpy(show_volumes(SEED, PHANTOMS).image)
        with torch.no_grad():
            latent = self.model.codec.encode(phantoms).mean(0)
        return latent.expand(len(self.image), *latent.shape)

    def search_latents(self, codec: KLCodec) -> torch.Tensor:
        """Return the images that are found behind a codec's latents."""
        settings = InversionSettings(iterations=self.effort.latent_iterations)
        start, low = self.start(), self.low
        found = invert_latent(codec.render, self.operator, low, start, settings=settings, seed=SEED)
        return found.image

    def search_noise(self) -> torch.Tensor:
        """Return the images that are found behind the model's noise and condition."""
        part = self.model.config.teacher
        prior = Prior(
            latent_denoiser(self.model.denoiser, part),
            sampling_sigmas(trained_sigmas(part), DDIM_STEPS),
            torch.full((4,), 0.5),
        )
        found = invert_noise(
            prior,
            self.model.codec.render,
            self.operator,
            self.low,
            latent_shape=tuple(self.model.codec.latent_shape(self.model.grid_vox)),
            settings=InversionSettings(iterations=self.effort.noise_iterations, checkpointed=False),
            seed=SEED,
        )
        return found.image


def compare(task: Task) -> dict[str, torch.Tensor]:
    """Return by way the PSNR ``[B]`` to the scans."""
    codec = task.model.codec.requires_grad_(requires_grad=False)
    task.model.denoiser.requires_grad_(requires_grad=False)
    blank = build_codec(task.model.config, seed=SEED).requires_grad_(requires_grad=False)
    blank.latent_mean.copy_(codec.latent_mean)
    blank.latent_std.copy_(codec.latent_std)
    found = {
        "cubic": task.operator.upsample(task.low),
        "codec ceiling": torch.from_numpy(task.model.reconstruct(task.image.numpy())),
        "latent": task.search_latents(codec),
        "noise": task.search_noise(),
        "untrained, latent": task.search_latents(blank),
    }
    return {way: psnr(image, task.image) for way, image in found.items()}


def show(factor: int, by_way: dict[str, torch.Tensor]) -> None:
    """Print means over scans with two bounds, and what each way gains over cubic interpolation."""
    print(f"slices {factor} times as thick, {len(by_way['cubic'])} real scans, dB")
    for way, psnr_B in by_way.items():
        mean, low, high = bounds(psnr_B)
        gain, least, most = bounds(psnr_B - by_way["cubic"])
        print(
            f"  {way:17} {mean:6.2f} ({low:.2f} to {high:.2f}); "
            f"over cubic {gain:+.2f} ({least:+.2f} to {most:+.2f})"
        )


def bounds(values_B: torch.Tensor) -> tuple[float, float, float]:
    """Return a mean with its bounds."""
    mean = values_B.mean().item()
    error = values_B.std().item() / math.sqrt(len(values_B))
    return mean, *normal_interval(Estimate(mean, error))


@pytest.fixture(scope="module")
def brains(real_brains: list[Path], volume_model: Trained) -> torch.Tensor:
    """Return prepared scans of people that are spread over the folder."""
    chosen = real_brains[:: max(1, len(real_brains) // SCANS)][:SCANS]
    return prepare_brains(chosen, volume_model.grid_vox, volume_model.spacing_mm)


@pytest.mark.parametrize("factor", FACTORS)
def test_real_scans_are_found_no_worse_than_with_an_untrained_decoder(
    factor: int, brains: torch.Tensor, volume_model: Trained
) -> None:
    operator = ThickSlices(axis=LAST_AXIS, factor=factor)
    by_way = compare(Task(volume_model, brains, operator, Effort()))
    show(factor, by_way)
    assert all(values.isfinite().all() for values in by_way.values())
    assert by_way["latent"].mean() >= by_way["untrained, latent"].mean()
