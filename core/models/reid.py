"""The encoders of the filter: one knows a patient again on another visit, one a disguised copy.

Two small convolutional networks of one shape, over three axes of space or over the frames of a
clip, trained on the patients of split F alone and never on those they will judge: the patient
encoder at all sites together, the copy encoder at each by itself. Images are standardized one by
one, so that gain and offset of a scanner do not matter and the embedding of an image does not
depend on its batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import nn
from torch.nn import functional

from vitrael.core.configs import ReidEncoderConfig
from vitrael.core.rng import seeded_initialization
from vitrael.core.training.warps import Along, mirrored_axis

Learns = Literal["visits", "copies"]
"""Whose two views an encoder learns to find: of a patient's visits, or of one disguised scan."""
_STREAMS: Final[Mapping[Learns, str]] = {"visits": "reid", "copies": "reid copies"}


class ReidEncoder(nn.Module):
    """Maps ``[B, 1, D, H, W]`` images to unit vectors ``[B, E]``."""

    def __init__(self, config: ReidEncoderConfig, *, along: Along = "space") -> None:
        """Build the network with fresh weights; each level halves the axes.

        ``along`` says what D is; no weight depends on it.
        """
        super().__init__()
        self.along = along
        layers: list[nn.Module] = []
        width = 1
        for channels in config.channels:
            layers += [
                nn.Conv3d(width, channels, kernel_size=3, stride=2, padding=1),
                nn.GroupNorm(_groups(channels), channels),
                nn.SiLU(),
            ]
            width = channels
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(3), nn.Flatten())
        self.head = nn.Linear(width * 27, config.embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embedding, unit length."""
        spread, mean = torch.std_mean(x, dim=(1, 2, 3, 4), keepdim=True)
        features = self.features((x - mean) / spread.clamp_min(1e-4))
        return functional.normalize(self.head(features).float(), dim=1)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return unit vectors; an image and its left-right mirror image have the same one."""
        mirrored = x.flip(mirrored_axis(x.shape[2], along=self.along))
        both = self.forward(x) + self.forward(mirrored)
        return functional.normalize(both, dim=1)


def build_reid_encoder(
    config: ReidEncoderConfig, *, seed: int, learns: Learns = "visits", along: Along = "space"
) -> ReidEncoder:
    """Return an encoder with weights drawn from the stream of what it learns, of ``seed``."""
    with seeded_initialization(seed, _STREAMS[learns]):
        return ReidEncoder(config, along=along).eval()


def _groups(channels: int) -> int:
    """Return the largest of 8, 4, 2, 1 groups that divides the channels."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
