"""The KL autoencoder as a Codec, with the scale of its latents in its weights."""

from __future__ import annotations

import torch
from einops import rearrange
from monai.networks.nets.autoencoderkl import AutoencoderKL
from torch import nn

from vitrael.core.configs import AutoencoderConfig


class KLCodec(nn.Module):
    """Maps ``[B, 1, D, H, W]`` images to latents of zero mean and unit variance, and back.

    Cubes of ``patch_vox`` voxels become channels before the first convolution, so that none runs
    on the full grid: at 24 cubed this learned to reproduce ventricles in a third of the time.

    ``latent_mean`` and ``latent_std`` are ``[C]`` buffers, set once the weights are final: a
    missing latent scale is a known cause of failure of latent diffusion.
    """

    latent_mean: torch.Tensor
    latent_std: torch.Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        """Build the networks with fresh weights."""
        super().__init__()
        levels = len(config.channels)
        self.config = config
        self.net = AutoencoderKL(
            spatial_dims=3,
            in_channels=config.patch_vox**3,
            out_channels=config.patch_vox**3,
            channels=config.channels,
            latent_channels=config.latent_channels,
            num_res_blocks=(config.res_blocks,) * levels,
            attention_levels=(False,) * levels,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
            norm_num_groups=config.norm_groups,
            use_convtranspose=True,  # a third cheaper than nearest neighbour and a convolution
        )
        bias = self.net.quant_conv_log_sigma.get_parameter("conv.bias")
        nn.init.constant_(bias, -3.0)  # ln of the variance: little noise in the latents at first
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def latent_shape(self, grid_vox: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """Return ``(C, d, h, w)`` of one image's latents."""
        d, h, w = (size // self.config.downsampling for size in grid_vox)
        return self.config.latent_channels, d, h, w

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the latents, not scaled."""
        p = self.config.patch_vox
        cubes = rearrange(x, "b 1 (d p) (h q) (w r) -> b (p q r) d h w", p=p, q=p, r=p)
        mean, std = self.net.encode(cubes)
        return mean, std

    def reconstruct(self, z: torch.Tensor) -> torch.Tensor:
        """Return the images of latents that are not scaled."""
        p = self.config.patch_vox
        cubes = self.net.decode(z)
        return rearrange(cubes, "b (p q r) d h w -> b 1 (d p) (h q) (w r)", p=p, q=p, r=p)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled mean latents ``[B, C, d, h, w]``."""
        mean, _ = self.posterior(x)
        return self.scale(mean)

    def scale(self, mean: torch.Tensor) -> torch.Tensor:
        """Return posterior means at zero mean and unit variance by channel."""
        return (mean - _channels(self.latent_mean)) / _channels(self.latent_std)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return the images of scaled latents, clipped to [0, 1]."""
        image = self.reconstruct(z * _channels(self.latent_std) + _channels(self.latent_mean))
        return image.clamp(0, 1)


def _channels(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(1, -1, 1, 1, 1)
