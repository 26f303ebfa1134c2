"""The patch discriminator as a network from images to scores."""

from __future__ import annotations

import torch
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import nn

from vitrael.core.configs import CriticConfig
from vitrael.core.errors import ConfigError
from vitrael.core.rng import seeded_initialization


class PatchNetwork(nn.Module):
    """Maps ``[B, 1, ...]`` images to scores ``[B, 1, ...]``, one for each patch.

    Group normalization stands where MONAI puts batch normalization: it knows no other image of the
    batch, so that batches of one, and batches that are spread over processes, score as any other.
    Instance normalization would fail where the last map is a single voxel.
    """

    def __init__(self, config: CriticConfig, *, dimensions: int) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        self.config = config
        self.net = PatchDiscriminator(
            spatial_dims=dimensions,
            channels=config.channels,
            in_channels=1,
            num_layers_d=config.layers,
            norm=("group", {"num_groups": _groups(config.channels)}),
        )

    @property
    def least_vox(self) -> int:
        """The shortest edge that an image may have: its last map is then a voxel wide."""
        return self.config.least_vox

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores; ConfigError for images on which no patch fits."""
        if min(x.shape[2:]) < self.least_vox:
            raise ConfigError(
                f"a critic of {self.config.layers} layers cannot judge these images",
                why=f"their edges must have at least {self.least_vox} voxels",
                fix="lower critic.layers",
            )
        score: torch.Tensor = self.net(x)[-1]
        return score


def build_critic_network(config: CriticConfig, *, dimensions: int, seed: int) -> PatchNetwork:
    """Return a network with weights drawn from the stream ``(seed, "critic")``."""
    with seeded_initialization(seed, "critic"):
        return PatchNetwork(config, dimensions=dimensions)


def _groups(channels: int) -> int:
    """Return the largest of 8, 4, 2, 1 groups that divides the channels of every layer."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
