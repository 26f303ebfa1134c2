"""How unlike two images look, beyond their voxels: what the perceptual term compares.

The published systems compare features of a network that was trained on other images. Where its
weights cannot be had, edges over several scales are compared instead; each of the two has a name,
so that logs and cards can say which it was.

Axes: B batch, then channels and two or three axes of space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import torch

from vitrael.core.errors import DataError
from vitrael.core.metrics.features import standardize_volumes
from vitrael.core.sampling.edges import edge_distance

if TYPE_CHECKING:
    from torch import nn

_SPACE: Final = 3
_LEAST_DEVIATION: Final = 1e-4
"""What a decoder draws first is nearly flat; its slopes must not burst."""
_SMALLEST: Final = 1e-10
"""Beside squared lengths of features, whose root has no slope at 0."""


class Perceptual(Protocol):
    """A distance between images that differs from one of voxels."""

    @property
    def name(self) -> str:
        """What is compared, for logs and cards."""

    def __call__(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean distance of two batches of images, a scalar."""


class GradientPerceptual:
    """Mean absolute difference of finite differences over scales: the fallback without weights.

    Each scale is half as fine as the one before, while the shortest edge has 8 voxels.
    """

    name = "gradients"

    def __call__(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean over scales and axes; images that differ by a constant are equal."""
        return edge_distance(image.float() - target.float()).mean()


class FeaturePerceptual:
    """Mean squared distance of a frozen network's features, each place at unit length.

    As Zhang et al. 2018 (LPIPS, equation 1) without learned weights of channels, over all stages;
    images are standardized one by one first, as MedicalNet's were (Chen et al. 2019, section 3.1).
    """

    def __init__(
        self, network: Callable[[torch.Tensor], Sequence[torch.Tensor]] | nn.Module, *, name: str
    ) -> None:
        """Take a network from ``[B, 1, D, H, W]`` to feature maps, frozen; ``name`` says whose."""
        self.network = network
        self.name = name

    def __call__(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean over stages; DataError unless the images have three axes of space."""
        if image.ndim != _SPACE + 2:
            raise DataError(
                f"the perceptual network {self.name} cannot compare these images",
                why="it was trained on volumes",
                fix='set perceptual = "gradients"',
            )
        with torch.no_grad():
            wanted = [_unit(stage) for stage in self.network(_standardize(target))]
        found = [_unit(stage) for stage in self.network(_standardize(image))]
        pairs = zip(found, wanted, strict=True)
        return torch.stack([((one - two) ** 2).sum(1).mean() for one, two in pairs]).mean()


def _standardize(image: torch.Tensor) -> torch.Tensor:
    return standardize_volumes(image.float(), least_deviation=_LEAST_DEVIATION)


def _unit(feature: torch.Tensor) -> torch.Tensor:
    feature = feature.float()
    return feature / (feature.square().sum(1, keepdim=True) + _SMALLEST).sqrt()
