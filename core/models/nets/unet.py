"""The diffusion U-Net with hybrid conditioning."""

from __future__ import annotations

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import nn

from vitrael.core.configs import DiffusionConfig


class HybridUNet(nn.Module):
    """Predicts what its config says from a noisy latent, a timestep and a condition vector.

    The condition enters twice (Pinaya et al. 2022, section 2.2): as one constant map for each
    value beside the latent, and as one token for every cross-attention.
    """

    def __init__(
        self,
        config: DiffusionConfig,
        *,
        latent_channels: int,
        conditions: int,
        dimensions: int = 3,
    ) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.net = DiffusionModelUNet(
            spatial_dims=dimensions,
            in_channels=latent_channels + conditions,
            out_channels=latent_channels,
            channels=config.channels,
            attention_levels=config.attention_levels,
            num_res_blocks=config.res_blocks,
            num_head_channels=config.channels,
            norm_num_groups=config.norm_groups,
            resblock_updown=config.resblock_updown,
            upcast_attention=config.upcast_attention,
            with_conditioning=True,
            cross_attention_dim=conditions,
        )

    def forward(
        self, state: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return ``[B, C, ...]`` like ``state``; the condition is ``[B, K]``."""
        maps = condition.reshape(*condition.shape, *[1] * (state.ndim - 2))
        maps = maps.expand(-1, -1, *state.shape[2:])
        return torch.as_tensor(
            self.net(torch.cat([state, maps], 1), timesteps=timestep, context=condition[:, None])
        )
