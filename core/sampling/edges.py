"""Edges over several scales: what images are compared by where no network of features is at hand.

Axes: B images, then channels and two or three axes of space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch.nn import functional

LEAST_EDGE_VOX: Final = 8
"""The shortest edge of an image that has been halved, where no count of scales is given."""
_PLANE_AXES: Final = 4


def edge_distance(error: torch.Tensor, *, scales: int | None = None) -> torch.Tensor:
    """Return ``[B]`` mean absolute finite differences of ``error``, over scales and axes of space.

    Of the difference of two images it is a distance that no change of level moves. ``scales`` as in
    ``halvings``; an axis of a single voxel has no edges, and an image of one voxel gives 0.
    """
    terms = [
        slope.abs().flatten(1).mean(1)
        for scale in halvings(error, scales=scales)
        for slope in slopes(scale)
    ]
    return torch.stack(terms).mean(0) if terms else error.new_zeros(len(error))


def halvings(image: torch.Tensor, *, scales: int | None = None) -> Iterator[torch.Tensor]:
    """Yield the image and then means over two neighbors along each axis, each half as fine.

    There are ``scales`` of them, an axis of a single voxel staying as it is; without a count, as
    many as leave the shortest edge 8 voxels.
    """
    pool = functional.avg_pool2d if image.ndim == _PLANE_AXES else functional.avg_pool3d
    done = 1
    yield image
    while done < scales if scales is not None else min(image.shape[2:]) >= 2 * LEAST_EDGE_VOX:
        image = pool(image, [min(2, size) for size in image.shape[2:]])
        done += 1
        yield image


def slopes(image: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the finite differences along each axis of space that has two voxels or more."""
    for axis in range(2, image.ndim):
        if image.shape[axis] > 1:
            yield image.diff(dim=axis)
