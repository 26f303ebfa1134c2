"""Foreign images made from familiar ones: the control sets of an out-of-distribution score.

A score that is advertised must find each of these; it must not find a second set of familiar
images. Noise, flips and missing chunks are among those of Graham et al. 2023; flatter and smoother
images (``squeeze_contrast``, ``smooth``) are what a one-sided score may take for very familiar.

Axes: B images, C channels, then two or three axes of space.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional

from vitrael.core.errors import DataError

FLATTENED: Final = (0.8, 0.1)
"""Factor and offset of ``squeeze_contrast``: intensities stay within [0, 1]."""


def rotate_right_angle(x: torch.Tensor) -> torch.Tensor:
    """Return images turned by 90 degrees about one axis: in the last two that are equally long.

    Raises DataError where no two axes of space are.
    """
    for dims in ((-2, -1), (-3, -1), (-3, -2)):
        if min(dims) + x.ndim > 1 and x.shape[dims[0]] == x.shape[dims[1]]:
            return torch.rot90(x, 1, dims=dims)
    raise DataError(
        "images with no two equal axes cannot be turned by 90 degrees",
        fix="crop two axes to one length",
    )


def flip_axis(x: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Return mirrored images; ``axis`` of space counts from 0."""
    return x.flip(2 + axis)


def squeeze_contrast(
    x: torch.Tensor, *, factor: float = FLATTENED[0], offset: float = FLATTENED[1]
) -> torch.Tensor:
    """Return ``factor * x + offset``: flatter images, which are easier to reconstruct."""
    return factor * x + offset


def smooth(x: torch.Tensor, *, share: float = 0.5) -> torch.Tensor:
    """Return images mixed with their mean over 3 voxels an axis: easier to reconstruct as well."""
    pool = functional.avg_pool3d if x.ndim == 5 else functional.avg_pool2d  # noqa: PLR2004
    padded = functional.pad(x, (1, 1) * (x.ndim - 2), mode="replicate")
    mean = pool(padded, 3, stride=1)
    return (1 - share) * x + share * mean


def add_noise(x: torch.Tensor, rng: torch.Generator, *, std: float = 0.1) -> torch.Tensor:
    """Return images with white noise of standard deviation ``std``, clipped to [0, 1]."""
    noise = torch.randn(x.shape, generator=rng).to(x)
    return (x + std * noise).clamp(0, 1)


def remove_chunk(x: torch.Tensor, rng: torch.Generator, *, share: float = 0.35) -> torch.Tensor:
    """Return images with a box set to 0, at random within the middle half of the space.

    The box is ``share`` of every axis long; each image has its own.
    """
    out = x.clone()
    for image in out:
        size = [max(1, round(share * edge)) for edge in image.shape[1:]]
        image[(slice(None), *_box(image.shape[1:], size, rng))] = 0
    return out


def add_lesion(
    x: torch.Tensor, rng: torch.Generator, *, radius: float = 0.09, level: float = 0.35
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images with a bright or dark ball, clipped to [0, 1], and its mask ``[B, ...]``, bool.

    ``radius`` is relative to the shortest axis, ``level`` what is added or taken away; one image
    in two is brighter. The center lies in the middle half of the space.
    """
    out, masks = x.clone(), []
    axes = [torch.arange(edge, dtype=torch.float32) for edge in x.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    for index, image in enumerate(out):
        middle = [edge * (0.3 + 0.4 * _unit(rng)) for edge in image.shape[1:]]
        center = torch.tensor(middle).reshape(-1, *[1] * len(axes))
        mask = (grid - center).square().sum(0).sqrt() <= radius * min(image.shape[1:])
        image[:, mask.to(x.device)] += level if index % 2 else -level
        masks.append(mask)
    return out.clamp(0, 1), torch.stack(masks)


def _box(edges: torch.Size, size: list[int], rng: torch.Generator) -> tuple[slice, ...]:
    lows = [
        round(edge * (0.25 + 0.5 * _unit(rng)) - length / 2)
        for edge, length in zip(edges, size, strict=True)
    ]
    return tuple(
        slice(max(0, low), max(0, low) + length) for low, length in zip(lows, size, strict=True)
    )


def _unit(rng: torch.Generator) -> float:
    return float(torch.rand((), generator=rng))
