"""The brain latent diffusion model (Pinaya et al. 2022): codec, denoiser, and the Generator.

The preset ``pinaya2022`` has the published networks and loss terms; ``core.presets`` tells in what
its training differs. Defaults deviate further, for small grids: the autoencoder learns without
perceptual and adversarial loss, the U-Net predicts ``v`` instead of the noise. The condition holds
age, sex, ventricle and brain volume in the order of ``core.study.COVARIATES``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from vitrael.core.checks import finite
from vitrael.core.configs import BrainLDMConfig, DiffusionConfig
from vitrael.core.errors import DataError, UsageError
from vitrael.core.geometry import Affine
from vitrael.core.interfaces import Denoiser
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.models.nets.precision import arithmetic_dtype, inference_copy
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.protocols import COVARIATES
from vitrael.core.records import SampleRequest, Samples
from vitrael.core.rng import seeded_initialization, torch_stream
from vitrael.core.sampling.denoisers import GuidedDenoiser, Network, make_denoiser
from vitrael.core.sampling.noise import RowNoise
from vitrael.core.sampling.samplers import SAMPLERS
from vitrael.core.sampling.schedules import (
    cosine_sigmas,
    linear_sigmas,
    sampling_levels,
    scaled_linear_sigmas,
)


def build_codec(config: BrainLDMConfig, *, seed: int) -> KLCodec:
    """Return a codec with weights drawn from the stream ``(seed, "codec")``."""
    with seeded_initialization(seed, "codec"):
        return KLCodec(config.codec, dimensions=config.dimensions).eval()


def build_denoiser(config: BrainLDMConfig, part: DiffusionConfig, *, seed: int) -> HybridUNet:
    """Return a U-Net with weights drawn from the stream ``(seed, "denoiser")``."""
    with seeded_initialization(seed, "denoiser"):
        return HybridUNet(
            part,
            latent_channels=config.codec.latent_channels,
            conditions=len(COVARIATES),
            dimensions=config.dimensions,
        ).eval()


def draw_latents(
    latents: torch.Tensor, condition: torch.Tensor
) -> Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]:
    """Return a function that draws latents with their conditions, with replacement."""

    def draw(count: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(latents), (count,), generator=rng).to(latents.device)
        return latents[rows], condition[rows]

    return draw


def trained_sigmas(part: DiffusionConfig) -> torch.Tensor:
    """Return the noise levels ``[T]`` that a U-Net of this config is trained on."""
    if part.schedule == "cosine":
        return cosine_sigmas(part.timesteps)
    of_betas = linear_sigmas if part.schedule == "linear" else scaled_linear_sigmas
    return of_betas(part.timesteps, beta_start=part.beta_start, beta_end=part.beta_end)


def latent_denoiser(network: Network, part: DiffusionConfig) -> Denoiser:
    """Return the Denoiser of a network that was trained by this config."""
    return make_denoiser(network, part.prediction, sigmas=trained_sigmas(part))


def latent_levels(part: DiffusionConfig) -> torch.Tensor:
    """Return the falling noise levels at which this config samples; the last is 0."""
    steps = SAMPLERS[part.sampler].steps_within(part.sampling_steps)
    return sampling_levels(part.prediction, trained_sigmas(part), steps=steps, sampler=part.sampler)


class LatentGenerator:
    """A Generator: a sampler in the latent space, then the codec.

    With ``bf16``, where the device is faster in it, the first sample makes a copy of the denoiser
    for inference. Weights that are loaded into ``denoiser`` afterwards do not reach that copy: make
    another generator for them.
    """

    def __init__(
        self,
        codec: KLCodec,
        denoiser: HybridUNet,
        part: DiffusionConfig,
        *,
        grid_vox: tuple[int, ...],
        affine: Affine,
        batch_images: int = 32,
        bf16: bool = False,
        guidance: float = 1.0,
    ) -> None:
        """Take trained parts; ``affine`` maps voxels of ``grid_vox`` to RAS+ millimetres.

        ``part`` says how they are sampled. ``guidance`` other than 1 needs a network that was
        trained with condition dropout; 0 ignores the condition. Raises UsageError.
        """
        if guidance != 1 and not part.condition_dropout:
            raise UsageError(
                "the model cannot be guided, nor sampled without a condition",
                why="it never learned an image without its condition",
                fix="sample it at guidance 1, or train it with condition_dropout",
            )
        self.guidance = guidance
        self.bf16 = bf16
        self._fast: HybridUNet | None = None
        self.codec = codec
        self.denoiser = denoiser
        self.part = part
        self.grid_vox = grid_vox
        self.affine = affine
        self.batch_images = batch_images

    @torch.no_grad()
    def sample(self, request: SampleRequest) -> Samples:
        """Return one sample for each row; each has a seed of its own, so shards do not matter.

        Raises DataError for a condition that is not finite or not ``[B, 4]``, and for no rows.
        """
        _check_condition(request.condition_BK)
        images = [
            self._sample_rows(request, rows)
            for rows in np.array_split(
                np.arange(len(request.condition_BK)),
                -(-len(request.condition_BK) // self.batch_images),
            )
        ]
        return Samples(np.concatenate(images), request.condition_BK, self.affine)

    def _sample_rows(self, request: SampleRequest, rows: np.ndarray) -> np.ndarray:
        device = next(self.denoiser.parameters()).device
        generators = [torch_stream(request.seed, "noise", request.first + int(r)) for r in rows]
        noise = RowNoise(generators, self.codec.latent_shape(self.grid_vox), device=device)
        levels = latent_levels(self.part)
        condition = torch.from_numpy(request.condition_BK[rows]).float().to(device)
        dtype = self._dtype(device)
        if dtype == torch.bfloat16 and self._fast is None:
            self._fast = inference_copy(self.denoiser, dtype=dtype)
        denoiser = latent_denoiser(self._fast or self.denoiser, self.part)
        if self.guidance != 1:
            denoiser = GuidedDenoiser(denoiser, weight=self.guidance)
        sample = SAMPLERS[self.part.sampler].sample
        z_0 = sample(denoiser, noise() * levels[0], levels, condition, noise=noise)
        return self.codec.decode_in_parts(z_0, dtype=dtype).float().cpu().numpy()

    def _dtype(self, device: torch.device) -> torch.dtype:
        """Return bfloat16 where it may be used and the device is faster at it."""
        return arithmetic_dtype(device, torch.bfloat16) if self.bf16 else torch.float32


def _check_condition(condition_BK: np.ndarray) -> None:
    if condition_BK.ndim != 2 or condition_BK.shape[1] != len(COVARIATES):  # noqa: PLR2004 - B, K
        raise DataError(
            f"a condition of shape {condition_BK.shape} cannot be asked for",
            why=f"each row must hold {len(COVARIATES)} numbers: {', '.join(COVARIATES)}",
            fix="give one such row for each sample",
        )
    if not len(condition_BK):
        raise DataError("no sample is asked for", fix="give at least one row of conditions")
    finite(condition_BK=condition_BK)
