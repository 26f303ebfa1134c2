"""A residual network that tells views apart, and shows what its layers see.

MONAI's residual network in two dimensions with the small stem of He et al. 2016 (3 x 3, no
pooling), as view classifiers use it. Axes: B images, H W pixels, K classes, E features, A maps
of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from monai.networks.nets.resnet import ResNet
from torch import nn

from vitrael.core.errors import DataError

_FLATTEST: Final = 1e-4
"""Standard deviation of an image below which it is taken for this: it holds nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a network makes of images."""

    logit_BK: torch.Tensor
    feature_BE: torch.Tensor
    """After global pooling."""
    activity_BA: torch.Tensor
    """Mean over space of the maps of every 3 x 3 convolution, stem first."""


class ViewNet(nn.Module):
    """Maps images ``[B, 1, H, W]`` to logits ``[B, K]``; each image is standardized by itself."""

    def __init__(
        self,
        *,
        channels: Sequence[int],
        blocks: Sequence[int],
        classes: int,
        dropout: float = 0.0,
        stem_stride: int = 1,
    ) -> None:
        """Build the network with fresh weights: four stages, each but the first halves the axes.

        ``stem_stride`` 2 halves them once more at the start, for a quarter of the arithmetic.
        """
        super().__init__()
        self.body = ResNet(
            block="basic",
            layers=list(blocks),
            block_inplanes=list(channels),
            spatial_dims=2,
            n_input_channels=1,
            conv1_t_size=3,
            conv1_t_stride=stem_stride,
            no_max_pool=True,
            feed_forward=False,
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels[-1], classes)

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return self.head.out_features

    @property
    def features(self) -> int:
        """How many numbers the head sees."""
        return self.head.in_features

    @property
    def layers(self) -> tuple[int, ...]:
        """How many maps each 3 x 3 convolution has, stem first."""
        return tuple(layer.out_channels for layer in self._layers())

    def classify(self, feature_BE: torch.Tensor) -> torch.Tensor:
        """Return the logits of features."""
        logit: torch.Tensor = self.head(self.dropout(feature_BE))
        return logit.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.classify(self._features(x))

    def see(self, x: torch.Tensor) -> Seen:
        """Return logits, features and the mean activity of every layer."""
        maps: list[torch.Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            maps.append(output.mean((2, 3)))

        handles = [layer.register_forward_hook(keep) for layer in self._layers()]
        try:
            feature = self._features(x)
        finally:
            for handle in handles:
                handle.remove()
        return Seen(self.classify(feature), feature, torch.cat(maps, dim=1))

    def _features(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or x.shape[1] != 1:  # noqa: PLR2004 - B, 1, H, W
            raise DataError(
                "the images are not gray pictures",
                why="one channel and two axes of space are expected",
                fix="prepare them by the study's recipe",
            )
        spread, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
        feature: torch.Tensor = self.body((x - mean) / spread.clamp_min(_FLATTEST))
        return feature

    def _layers(self) -> list[nn.Conv2d]:
        """Return stem and block convolutions in the order in which they are asked."""
        return [
            module
            for module in self.body.modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        ]
