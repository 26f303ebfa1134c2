"""Plants through the study's own generator: what it makes of a scan that is noised part of the way.

SDEdit (Meng et al. 2022): a scan is encoded, noised to a share of the forward process, and led
back by the sampler. Near-duplicates of this kind are those that filters of other makers miss.
"""

from __future__ import annotations

import numpy as np
import torch

from vitrael.core.configs import DiffusionConfig
from vitrael.core.errors import DataError
from vitrael.core.models.brain_ldm import (
    LatentGenerator,
    latent_denoiser,
    latent_levels,
    trained_sigmas,
)
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.rng import torch_stream
from vitrael.core.sampling.noise import RowNoise
from vitrael.core.sampling.samplers import SAMPLERS
from vitrael.core.sampling.schedules import EDM_RANGE, FLOW_START, partial_levels
from vitrael.privacy.audit.plants.mixtures import demand_pairs
from vitrael.privacy.audit.plants.sources import LatentBlend, Renoise

_RHO = 7.0
"""Karras et al. 2022, table 1: in which power of sigma an EDM network's levels are even."""


def noise_level(part: DiffusionConfig, share: float) -> float:
    """Return sigma where ``share`` of the forward process of a network has passed.

    Raises DataError unless ``share`` lies in (0, 1].
    """
    if not 0 < share <= 1:
        raise DataError(
            f"a scan cannot be noised by {share} of the way", fix="give a share above 0, up to 1"
        )
    if part.prediction == "flow":
        time = min(share, FLOW_START)
        return time / (1 - time)
    if part.prediction == "edm":
        low, high = (sigma ** (1 / _RHO) for sigma in EDM_RANGE)
        return float((low + share * (high - low)) ** _RHO)
    sigmas = trained_sigmas(part)
    return float(sigmas[max(1, round(share * len(sigmas))) - 1])


def renoise_with(generator: LatentGenerator, condition_BK: np.ndarray, *, seed: int) -> Renoise:
    """Return SDEdit by a generator: row i is denoised under condition i, with noise of its own.

    The function raises DataError for images that are more or fewer than the conditions.
    """

    @torch.no_grad()
    def renoise(image_BCDHW: np.ndarray, share: float) -> np.ndarray:
        if len(image_BCDHW) != len(condition_BK):
            raise DataError(
                "images and conditions do not go together",
                why="there are more of the one than of the other",
                fix="give the condition of each image that is to be noised",
            )
        part, codec = generator.part, generator.codec
        device = next(generator.denoiser.parameters()).device
        levels = partial_levels(latent_levels(part), noise_level(part, share))
        denoiser = latent_denoiser(generator.denoiser, part)
        sample = SAMPLERS[part.sampler].sample
        parts = []
        for at in range(0, len(image_BCDHW), generator.batch_images):
            rows = range(at, min(at + generator.batch_images, len(image_BCDHW)))
            z_0 = codec.encode(_tensor(image_BCDHW[rows.start : rows.stop], device))
            draws = [torch_stream(seed, "renoise", row) for row in rows]
            noise = RowNoise(draws, tuple(z_0.shape[1:]), device=device)
            condition = _tensor(condition_BK[rows.start : rows.stop], device)
            z_t = z_0 + levels[0] * noise()
            z = sample(denoiser, z_t, levels, condition, noise=noise)
            parts.append(codec.decode_in_parts(z).float().cpu().numpy())
        return np.concatenate(parts) if parts else image_BCDHW

    return renoise


def blend_in(codec: KLCodec, *, batch_images: int = 32) -> LatentBlend:
    """Return the blend of two images' latents, decoded."""

    @torch.no_grad()
    def blend(image_BCDHW: np.ndarray, other_BCDHW: np.ndarray, weight: float) -> np.ndarray:
        demand_pairs(image_BCDHW, other_BCDHW)
        device = next(codec.parameters()).device
        parts = []
        for at in range(0, len(image_BCDHW), batch_images):
            one, other = (
                codec.encode(_tensor(image[at : at + batch_images], device))
                for image in (image_BCDHW, other_BCDHW)
            )
            mixture = weight * one + (1 - weight) * other
            parts.append(codec.decode_in_parts(mixture).float().cpu().numpy())
        return np.concatenate(parts) if parts else image_BCDHW

    return blend


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    # A copy: a single row of a mirrored batch counts as contiguous and has a negative stride.
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C")).to(device)
