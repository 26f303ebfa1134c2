"""The brain latent diffusion model (Pinaya et al. 2022): codec, denoiser, and the Generator.

Deviations from the paper, for small grids: the autoencoder learns by L1 and KL alone (no
perceptual or adversarial loss), the U-Net predicts ``v`` instead of the noise, and the
condition holds age, sex, ventricle and brain volume in the order of ``core.study.COVARIATES``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from vitrael.core.configs import BrainLDMConfig, DiffusionConfig
from vitrael.core.geometry import Affine
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.records import SampleRequest, Samples
from vitrael.core.rng import seeded_initialization, torch_stream
from vitrael.core.sampling.denoisers import VelocityDenoiser
from vitrael.core.sampling.samplers import ddim
from vitrael.core.sampling.schedules import sampling_sigmas, scaled_linear_sigmas
from vitrael.core.study import COVARIATES


def build_codec(config: BrainLDMConfig, *, seed: int) -> KLCodec:
    """Return a codec with weights drawn from the stream ``(seed, "codec")``."""
    with seeded_initialization(seed, "codec"):
        return KLCodec(config.codec).eval()


def build_denoiser(config: BrainLDMConfig, part: DiffusionConfig, *, seed: int) -> HybridUNet:
    """Return a U-Net with weights drawn from the stream ``(seed, "denoiser")``."""
    with seeded_initialization(seed, "denoiser"):
        return HybridUNet(
            part, latent_channels=config.codec.latent_channels, conditions=len(COVARIATES)
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
    return scaled_linear_sigmas(part.timesteps, beta_start=part.beta_start, beta_end=part.beta_end)


class LatentGenerator:
    """A Generator: DDIM in the latent space, then the codec."""

    def __init__(
        self,
        codec: KLCodec,
        denoiser: HybridUNet,
        part: DiffusionConfig,
        *,
        grid_vox: tuple[int, int, int],
        affine: Affine,
        batch_images: int = 32,
        bf16: bool = False,
    ) -> None:
        """Take trained parts; ``affine`` maps voxels of ``grid_vox`` to RAS+ millimetres."""
        self.bf16 = bf16
        self.codec = codec
        self.denoiser = denoiser
        self.part = part
        self.grid_vox = grid_vox
        self.affine = affine
        self.batch_images = batch_images

    @torch.no_grad()
    def sample(self, request: SampleRequest) -> Samples:
        """Return one sample for each row; each has a seed of its own, so shards do not matter."""
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
        shape = self.codec.latent_shape(self.grid_vox)
        sigmas = trained_sigmas(self.part)
        steps = sampling_sigmas(sigmas, self.part.sampling_steps).to(device)
        noise = torch.stack(
            [
                torch.randn(
                    shape, generator=torch_stream(request.seed, "noise", request.first + int(row))
                )
                for row in rows
            ]
        ).to(device)
        condition = torch.from_numpy(request.condition_BK[rows]).float().to(device)
        denoiser = VelocityDenoiser(self.denoiser, sigmas)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            z_0 = ddim(denoiser, noise * steps[0], steps, condition)
        return self.codec.decode(z_0.float()).float().cpu().numpy()
