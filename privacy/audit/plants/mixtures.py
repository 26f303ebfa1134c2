"""Mixtures of two patients: blends, halves and blocks set into a stranger, slices among his own.

How much of a volume is copied is counted in the voxels of the copied head, not of the dark around
it. Axes: P pairs of images, C channels, D H W as in NIfTI; slices are axial, along the last axis.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vitrael.core.errors import DataError

_DARK: Final = 0.05
"""Intensity, in [0, 1], up to which a voxel is outside the head."""
_LEFT_RIGHT: Final = 2
_WIDE_FRAC: Final = 0.5
"""Of the area of the largest slice: a lone slice shows as much of the head as this."""


def blend(
    image_PCDHW: np.ndarray,
    other_PCDHW: np.ndarray,
    *,
    weight: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return ``weight`` of the images and the rest of the others. Nothing is drawn."""
    del rng
    demand_pairs(image_PCDHW, other_PCDHW)
    return weight * image_PCDHW + (1 - weight) * other_PCDHW


def join_halves(
    image_PCDHW: np.ndarray, other_PCDHW: np.ndarray, *, rng: np.random.Generator
) -> np.ndarray:
    """Return the left half of the images beside the right half of the others. Nothing is drawn."""
    del rng
    demand_pairs(image_PCDHW, other_PCDHW)
    joined = other_PCDHW.copy()
    middle = image_PCDHW.shape[_LEFT_RIGHT] // 2
    joined[:, :, :middle] = image_PCDHW[:, :, :middle]
    return joined


def set_block(
    image_PCDHW: np.ndarray,
    other_PCDHW: np.ndarray,
    *,
    share: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the others with a box of the images that holds ``share`` of their head's voxels.

    The box has the proportions of the head and lies about a random voxel of it.
    """
    demand_pairs(image_PCDHW, other_PCDHW)
    composite = other_PCDHW.copy()
    for image, onto in zip(image_PCDHW, composite, strict=True):
        head = np.argwhere(_head(image[0]))
        edge = np.maximum(np.ptp(head, axis=0), 1)
        center = head[rng.integers(len(head))]
        reach = np.quantile((np.abs(head - center) / edge).max(1), share, method="lower")
        low = np.ceil(center - reach * edge).astype(int)
        high = np.floor(center + reach * edge).astype(int) + 1
        box = tuple(slice(max(0, a), b) for a, b in zip(low, high, strict=True))
        onto[:, *box] = image[:, *box]
    return composite


def set_slices(
    image_PCDHW: np.ndarray,
    other_PCDHW: np.ndarray,
    *,
    share: float | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the others with slices of the images at their own places.

    ``share`` is of the slices that show the copied head, at least one and each as likely; None is
    a single one that shows at least half of the largest slice's area.
    """
    demand_pairs(image_PCDHW, other_PCDHW)
    composite = other_PCDHW.copy()
    for image, onto in zip(image_PCDHW, composite, strict=True):
        area = _head(image[0]).sum((0, 1))
        if share is None:
            chosen = rng.choice(np.flatnonzero(area >= _WIDE_FRAC * area.max()), 1)
        else:
            shown = np.flatnonzero(area)
            chosen = rng.permutation(shown)[: max(1, round(share * len(shown)))]
        onto[..., chosen] = image[..., chosen]
    return composite


def shuffle_slices(image_PCDHW: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return the images with the slices that show the head in another order."""
    shuffled = image_PCDHW.copy()
    for image in shuffled:
        shown = np.flatnonzero(_head(image[0]).any((0, 1)))
        image[..., shown] = image[..., rng.permutation(shown)]
    return shuffled


def keep_one_slice(image_PCDHW: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return the images dark but for one slice that shows at least half of the largest's area."""
    return set_slices(image_PCDHW, np.zeros_like(image_PCDHW), share=None, rng=rng)


def demand_pairs(image_PCDHW: np.ndarray, other_PCDHW: np.ndarray) -> None:
    """Raise DataError unless each image has another of the same shape beside it."""
    if image_PCDHW.shape != other_PCDHW.shape:
        raise DataError(
            "two sets of images cannot be mixed",
            why="they differ in number or grid",
            fix="give one image of another patient for each, on the same grid",
        )


def _head(volume_DHW: np.ndarray) -> np.ndarray:
    """Return ``[D, H, W]`` bool: the head, or everything where no voxel is that bright."""
    head = volume_DHW > _DARK
    return head if head.any() else np.ones_like(head)
