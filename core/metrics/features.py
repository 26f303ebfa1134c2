"""Features of images under a name: what a distance between two sets was measured with.

An extractor is a name and a function. The name says all that the numbers depend on: a seed, a
version, a digest of weights. Numbers of two extractors are never compared. Axes: B images, C
channels, D H W, E features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.rng import torch_stream

_AXES: Final = (4, 5)
_CHANNELS: Final = (8, 16, 32)
_BINS: Final = 16
_BLOCKS: Final = (2, 4)
_SCALES: Final = 3
_SHORTEST_PX: Final = 8
_LEAST_DEVIATION: Final = 1e-6
_GAIN: Final = 3.0
"""Brings the mean square of the numbers near 1, where the cubic kernel of KID bends."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """A named function from ``[B, 1, H, W]`` or ``[B, 1, D, H, W]`` to ``[B, E]``."""

    name: str
    features: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of one batch, without a gradient.

        Raises DataError for images of another shape or shorter than 8 px.
        """
        if images.ndim not in _AXES or images.shape[1] != 1 or min(images.shape[2:]) < _SHORTEST_PX:
            raise DataError(
                "these images have no features",
                why=f"they are {list(images.shape)}",
                fix=f"give [B, 1, H, W] or [B, 1, D, H, W] of {_SHORTEST_PX} px or more",
            )
        with torch.no_grad():
            return self.features(images)


def extract_features(
    extractor: Extractor,
    images: torch.Tensor,
    *,
    batch: int = 16,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Return the features of a whole set, float64 ``[B, E]``, worked out batch by batch.

    Raises DataError for images or features that are not finite.
    """
    if not bool(torch.isfinite(images).all()):
        raise DataError("the images hold values that are not finite")
    parts = [extractor(part.to(device).float()) for part in images.split(batch)]
    features = torch.cat(parts).double().cpu().numpy()
    if not np.isfinite(features).all():
        raise DataError(f"the extractor {extractor.name} gave values that are not finite")
    return features


def standardize_volumes(
    images: torch.Tensor, *, least_deviation: float = _LEAST_DEVIATION
) -> torch.Tensor:
    """Return every image less its mean, over its standard deviation; a constant one gives 0.

    A deviation below ``least_deviation`` counts as that.
    """
    flat = images.flatten(1)
    shape = (-1, *(1,) * (images.ndim - 1))
    mean, deviation = flat.mean(1).view(shape), flat.std(1).view(shape)
    return (images - mean) / deviation.clamp_min(least_deviation)


def random_conv_extractor(seed: int = 0) -> Extractor:
    """Return ``random-conv-<seed>``: convolutions that nobody trained, the same everywhere.

    Three layers of 8, 16 and 32 channels, each a 3-wide convolution with normal weights of variance
    2 / fan-in from a stream that ``seed`` names, ReLU and a mean over pairs of pixels; each image
    is standardized first. The features are mean and standard deviation of every channel over the
    image: 112 numbers that see edges and texture, and little of where they stand. There are no
    weights to fetch, so it is the one to name when there is no other. Its scale differs from seed
    to seed: so do the distances.
    """

    def features(images: torch.Tensor) -> torch.Tensor:
        axes = images.ndim - 2
        convolve = functional.conv2d if images.ndim == _AXES[0] else functional.conv3d
        parts, x = [], standardize_volumes(images)
        for layer, width in enumerate(_CHANNELS):
            rng = torch_stream(seed, "random-conv", axes, layer)
            shape = (width, x.shape[1], *(3,) * axes)
            weight = torch.randn(shape, generator=rng) * math.sqrt(2 / math.prod(shape[1:]))
            x = functional.relu(convolve(x, weight.to(x), padding=1))
            flat = x.flatten(2)
            parts += [flat.mean(2), flat.std(2)]
            x = halve(x)
        return torch.cat(parts, 1)

    return Extractor(f"random-conv-{seed}", features)


def anatomy_extractor() -> Extractor:
    """Return ``anatomy-v1``: a histogram, means of blocks and gradients at three scales, by hand.

    Square roots of the shares of 16 intensity bins over [0, 1], the ends open; means over a grid
    of 2 and of 4 blocks for each axis; and mean and standard deviation of the absolute difference
    of neighbors along each axis, at full size and halved once and twice, as square roots; all times
    3. It sees where things stand, which ``random-conv`` hardly does, and the contrast of the
    scanner, which ``random-conv`` takes out; and it can be read number by number. What is small on
    the grid drowns: in volumes of 24 voxels a side it did not see that the small half of all
    ventricles was missing, which ``random-conv`` saw.
    """
    return Extractor("anatomy-v1", _anatomy)


def halve(images: torch.Tensor) -> torch.Tensor:
    """Return means over two neighbors along each axis; what is left over at the end falls away."""
    pool = functional.avg_pool2d if images.ndim == _AXES[0] else functional.avg_pool3d
    return torch.as_tensor(pool(images, 2))


def _anatomy(images: torch.Tensor) -> torch.Tensor:
    bins = (images.flatten(1) * _BINS).floor().clamp(0, _BINS - 1)
    shares = torch.stack([(bins == i).float().mean(1) for i in range(_BINS)], 1)
    parts = [shares.sqrt()]
    parts += [_block_means(images, blocks) for blocks in _BLOCKS]
    x = images
    for _ in range(_SCALES):
        slopes = [x.diff(dim=axis).abs().flatten(1) for axis in range(2, x.ndim)]
        parts += [torch.stack([slope.mean(1), slope.std(1)], 1).sqrt() for slope in slopes]
        x = halve(x)
    return torch.cat(parts, 1) * _GAIN


def _block_means(images: torch.Tensor, blocks: int) -> torch.Tensor:
    if images.ndim == _AXES[0]:
        return functional.adaptive_avg_pool2d(images, (blocks, blocks)).flatten(1)
    return functional.adaptive_avg_pool3d(images, (blocks, blocks, blocks)).flatten(1)
