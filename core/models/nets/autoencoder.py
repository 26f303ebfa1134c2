"""The KL autoencoder as a Codec, with the scale of its latents in its weights."""

from __future__ import annotations

import math
from typing import Final

import torch
from einops import rearrange
from monai.networks.nets.autoencoderkl import AutoencoderKL
from torch import nn

from vitrael.core.configs import AutoencoderConfig
from vitrael.core.errors import DataError
from vitrael.core.models.nets.slabs import decode_in_slabs


class KLCodec(nn.Module):
    """Maps images to latents of zero mean and unit variance, and back.

    Images are ``[B, 1, D, H, W]`` or, in two dimensions, ``[B, 1, H, W]``.

    Cubes (squares) of ``patch_vox`` voxels become channels before the first convolution, so that
    none runs on the full grid: at 24 cubed this learned to reproduce ventricles in a third of the
    time.

    ``latent_mean`` and ``latent_std`` are ``[C]`` buffers, set once the weights are final: a
    missing latent scale is a known cause of failure of latent diffusion.
    """

    latent_mean: torch.Tensor
    latent_std: torch.Tensor
    mirrored: bool
    """Whether the networks see left and right exchanged: weights that were trained on LAS images.
    What goes in and comes out is RAS, as everywhere."""

    def __init__(self, config: AutoencoderConfig, *, dimensions: int = 3) -> None:
        """Build the networks with fresh weights."""
        super().__init__()
        levels = len(config.channels)
        self.config = config
        self.dimensions = dimensions
        self.mirrored = False
        self.net = AutoencoderKL(
            spatial_dims=dimensions,
            in_channels=config.patch_vox**dimensions,
            out_channels=config.patch_vox**dimensions,
            channels=config.channels,
            latent_channels=config.latent_channels,
            num_res_blocks=(config.res_blocks,) * levels,
            attention_levels=(False,) * levels,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
            norm_num_groups=config.norm_groups,
            use_convtranspose=config.upsampling == "transposed",  # a third cheaper
        )
        bias = self.net.quant_conv_log_sigma.get_parameter("conv.bias")
        nn.init.constant_(bias, -3.0)  # ln of the variance: little noise in the latents at first
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def latent_shape(self, grid_vox: tuple[int, ...]) -> tuple[int, ...]:
        """Return ``(C, d, h, w)``, or ``(C, h, w)``, of one image's latents."""
        return (
            self.config.latent_channels,
            *(size // self.config.downsampling for size in grid_vox),
        )

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the latents, not scaled.

        Raises DataError for images of other axes, or of a grid that the levels cannot halve.
        """
        self._check(x)
        whole, cubes = _PATCHES[x.ndim - 2]
        x = x.flip(_LEFT_RIGHT) if self.mirrored else x
        mean, std = self.net.encode(rearrange(x, f"{whole} -> {cubes}", **self._edges(x)))
        return mean, std

    def reconstruct(self, z: torch.Tensor) -> torch.Tensor:
        """Return the images of latents that are not scaled."""
        return self._join(self.net.decode(z))

    def _join(self, image: torch.Tensor) -> torch.Tensor:
        """Return images of their cubes."""
        whole, cubes = _PATCHES[image.ndim - 2]
        joined = rearrange(image, f"{cubes} -> {whole}", **self._edges(image))
        return joined.flip(_LEFT_RIGHT) if self.mirrored else joined

    def _edges(self, like: torch.Tensor) -> dict[str, int]:
        return dict.fromkeys("pqr"[: like.ndim - 2], self.config.patch_vox)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled mean latents ``[B, C, d, h, w]``; DataError as for ``posterior``."""
        mean, _ = self.posterior(x)
        return self.scale(mean)

    def scale(self, mean: torch.Tensor) -> torch.Tensor:
        """Return posterior means at zero mean and unit variance by channel."""
        return (mean - _channels(self.latent_mean, mean)) / _channels(self.latent_std, mean)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return the images of scaled latents, clipped to [0, 1]."""
        return self.render(z).clamp(0, 1)

    def decode_in_parts(
        self, z: torch.Tensor, *, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Return what ``decode`` does, to rounding, in a fraction of its memory; no gradient.

        Large images are decoded slab by slab, small ones a few at a time. ``dtype`` is what the
        slabs' activations are kept in, float32 or bfloat16.
        """
        voxels = math.prod(z.shape[2:]) * self.config.downsampling ** (z.ndim - 2)
        if voxels >= _LARGE_VOX:
            cubes = decode_in_slabs(self.net, self._unscale(z), slab_vox=_SLAB_VOX, dtype=dtype)
            return self._join(cubes).clamp(0, 1)
        return torch.cat([self.decode(part) for part in z.split(max(1, _AT_ONCE_VOX // voxels))])

    def render(self, z: torch.Tensor) -> torch.Tensor:
        """Return the images of scaled latents as they are: a gradient passes everywhere."""
        return self.reconstruct(self._unscale(z))

    def _check(self, x: torch.Tensor) -> None:
        """Raise DataError for images that would fail inside, or pass with their edges cut."""
        axes, step = self.dimensions + 2, self.config.downsampling
        fits = x.ndim == axes and x.shape[1] == 1
        if not fits or any(size < step or size % step for size in x.shape[2:]):
            raise DataError(
                f"images of shape {tuple(x.shape)} cannot be encoded",
                why=f"the codec takes {axes} axes with one channel, each axis of space a "
                f"multiple of {step}",
                fix="bring them to the model's grid",
            )

    def _unscale(self, z: torch.Tensor) -> torch.Tensor:
        return z * _channels(self.latent_std, z) + _channels(self.latent_mean, z)


_LEFT_RIGHT: Final = 2
"""Axis of a batch of volumes that runs from left to right."""
_LARGE_VOX: Final = 80**3
"""From here on a whole decode takes many hundreds of MiB; below, slabs take longer."""
_AT_ONCE_VOX: Final = 1 << 19
_SLAB_VOX: Final = 8

_PATCHES: Final = {
    2: ("b 1 (h p) (w q)", "b (p q) h w"),
    3: ("b 1 (d p) (h q) (w r)", "b (p q r) d h w"),
}
"""Axes of space -> an image, and the same with its cubes (squares) as channels."""


def _channels(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(1, -1, *[1] * (like.ndim - 2))
