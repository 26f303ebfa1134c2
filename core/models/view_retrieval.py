"""The view encoder: an Embedder that finds the same view of a muscle again at another visit.

Every frame of a clip passes the same small convolutional network (kernels 1x3x3), is pooled to
one vector and averaged with the others, so that the number of frames is free. Clips are
standardized one by one and layers normalize in groups of channels: what an encoder says of a clip
does not depend on the clips beside it. Axes: B clips, T frames, H rows, W columns, E embedding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from vitrael.core.configs import ViewRetrievalConfig
from vitrael.core.errors import DataError
from vitrael.core.rng import seeded_initialization

_LEAST_SPREAD = 1e-3


class ViewEncoder(nn.Module):
    """Maps clips ``[B, 1, T, H, W]`` in [0, 1] to unit vectors ``[B, E]``.

    After Kerdegari et al. 2023 (arXiv 2306.04739): a network over single frames, the mean over
    time, a dense layer, and a projection whose output is compared.
    """

    def __init__(self, config: ViewRetrievalConfig) -> None:
        """Build the network with fresh weights; each level halves rows and columns."""
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(config.patch_px)]
        width = config.patch_px**2
        for channels in config.channels:
            layers += [
                nn.Conv2d(width, channels, kernel_size=3, stride=2, padding=1),
                nn.GroupNorm(_groups(channels), channels),
                nn.SiLU(),
            ]
            width = channels
        self.frames = nn.Sequential(*layers)
        self.dense = nn.Linear(width, config.features)
        self.projection = nn.Sequential(
            nn.LayerNorm(config.features),
            nn.SiLU(),
            nn.Linear(config.features, config.features),
            nn.SiLU(),
            nn.Linear(config.features, config.embedding),
        )
        self.patch_px = config.patch_px

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the embedding, unit length.

        Raises DataError for what is not a batch of gray clips and for edges that the patches do not
        divide.
        """
        if x.ndim != 5 or x.shape[1] != 1 or not x.shape[2]:  # noqa: PLR2004 - B, 1, T, H, W
            raise DataError("the view encoder takes gray clips", fix="give [B, 1, T, H, W]")
        if any(edge % self.patch_px for edge in x.shape[3:]):
            raise DataError(
                "the clips do not fall into patches",
                why=f"rows and columns must be multiples of {self.patch_px}",
                fix="resize the clips",
            )
        spread, mean = torch.std_mean(x, dim=(1, 2, 3, 4), keepdim=True)
        frames = ((x - mean) / spread.clamp_min(_LEAST_SPREAD)).transpose(1, 2)
        # Frames pass as images: 3x3 over them is 1x3x3 over the clip.
        pooled = self.frames(frames.flatten(0, 1)).mean(dim=(2, 3))
        features = self.dense(pooled.unflatten(0, (len(x), -1)).mean(dim=1))
        return functional.normalize(self.projection(features).float(), dim=1)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return unit vectors ``[B, E]``: the output of the projection."""
        return self.forward(x)


def build_view_encoder(config: ViewRetrievalConfig, *, seed: int) -> ViewEncoder:
    """Return an encoder with weights drawn from the stream ``(seed, "view_retrieval")``."""
    with seeded_initialization(seed, "view_retrieval"):
        return ViewEncoder(config).eval()


def _groups(channels: int) -> int:
    """Return the largest of 8, 4, 2, 1 groups that divides the channels."""
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
