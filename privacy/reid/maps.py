"""Maps: how an image may have been turned, moved, stretched or cut, and what steps undo it.

Coordinates are homogeneous and run from -1 to 1 along each axis, in the order of the axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import torch

_LARGEST_STRETCH: Final = 2.0
_TOP: Final = ((1.0, 0.0),)
_PLACES: Final = tuple(itertools.product((-1.0, 0.0, 1.0), repeat=2))
_SCALES: Final = ((0.8, _TOP), (1.25, (*_TOP, *_PLACES)), (1.43, _PLACES))
"""How much larger a still may have been, about which points of the picture."""

Turn = tuple[tuple[int, ...], tuple[int, ...]]
"""An order of the three axes, and axes to reverse."""


def plausible(maps_B44: torch.Tensor) -> torch.Tensor:
    """Return whether each map is finite and stretches no axis by more than a factor of two."""
    finite = torch.isfinite(maps_B44).flatten(1).all(1)
    safe = torch.where(finite[:, None, None], maps_B44, torch.eye(4, device=maps_B44.device))
    stretch = torch.linalg.svdvals(safe[:, :3, :3])
    within = (stretch[:, 0] < _LARGEST_STRETCH) & (stretch[:, -1] > 1 / _LARGEST_STRETCH)
    near = safe[:, :3, 3].abs().amax(1) < 1
    return torch.stack([finite, within, near]).all(0)


def slopes_of(
    smooth_DHW: torch.Tensor, grid_DHWA: torch.Tensor, near_DHW: torch.Tensor
) -> torch.Tensor:
    """Return ``[V, 12]``: how the voxels that are near change with each parameter of a map."""
    axes = [axis for axis, size in enumerate(smooth_DHW.shape) if size > 1]
    spacing = [2 / (smooth_DHW.shape[axis] - 1) for axis in axes]
    grid_VA = grid_DHWA[near_DHW]
    slope_V3 = torch.zeros((len(grid_VA), 3), device=smooth_DHW.device)
    found = torch.gradient(smooth_DHW, spacing=spacing, dim=axes)
    for axis, values in zip(axes, found, strict=True):
        slope_V3[:, axis] = values[near_DHW]
    return (slope_V3[:, :, None] * grid_VA[:, None, :]).flatten(1)


def starts(device: torch.device) -> torch.Tensor:
    """Return ``[S, 4, 4]``: maps that undo another depth, or a cut at one of nine places."""
    maps = []
    for scale, places in _SCALES:
        for down, right in places:
            one = torch.eye(4, device=device)
            one[1, 1] = one[2, 2] = scale
            one[1, 3], one[2, 3] = (scale - 1) * down, (scale - 1) * right
            maps.append(one)
    return torch.stack(maps)


def turns(shape_DHW: tuple[int, ...], *, mirror: int) -> Iterator[Turn]:
    """Yield all ways in which a box of this shape can be turned, that of the image first.

    ``mirror`` is the axis from left to right: of two mirror images one comes.
    """
    free = [axis for axis in range(3) if shape_DHW[axis] > 1]
    for order in itertools.permutations(range(3)):
        if tuple(shape_DHW[axis] for axis in order) != shape_DHW:
            continue
        if any(order[axis] != axis for axis in range(3) if axis not in free):
            continue
        others = [axis for axis in free if axis != mirror]
        for count in range(len(others) + 1):
            for reverse in itertools.combinations(others, count):
                yield order, reverse


def turn(volume_BDHW: torch.Tensor, by: Turn) -> torch.Tensor:
    """Return the volumes, turned."""
    order, reverse = by
    turned = volume_BDHW.permute(0, *(1 + axis for axis in order))
    return turned.flip([1 + axis for axis in reverse]).contiguous() if reverse else turned
