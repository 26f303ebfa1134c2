"""Data recipes: how every scan, real or phantom, is brought to the grid of a study.

``brain-t1`` expects a skull-stripped T1-weighted brain on a dark background. World is RAS+ mm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage

from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine, centered_affine
from vitrael.core.study import Data

FOREGROUND_FRAC = 0.15
"""Share of the bright level above which a voxel is foreground."""
FLOOR = 0.02
"""Scaled intensities below this are background, exactly 0."""

_BRIGHT_PERCENTILE = 99.0
_GRID_TOLERANCE_MM = 1e-4


def prepare_scan(scan: Scan, data: Data) -> Scan:
    """Return a scan as the study's recipe wants it: its grid, its spacing, intensities in [0, 1].

    Raises ScanError when nothing in the scan stands out from the background.
    """
    return RECIPES[data.recipe](scan, data.grid_vox, data.spacing_mm)


def prepare_brain_t1(scan: Scan, grid_vox: tuple[int, int, int], spacing_mm: float) -> Scan:
    """Return the brain in the middle of an isotropic RAS+ grid, intensities scaled.

    Background (the median of the outermost voxels) becomes 0; the brain's box, without the
    farthest half percent on each side, is centred; the image is low-pass filtered for the coarser
    grid and resampled linearly in world coordinates; the 99th percentile of the foreground
    becomes 1. A scan that lies on such a grid already is not resampled and not moved, so applying
    the recipe a second time keeps the grid and changes no intensity by more than 0.01.
    """
    volume = np.maximum(scan.image_CDHW[0] - np.float32(_background(scan.image_CDHW[0])), 0)
    if _on_grid(scan, grid_vox, spacing_mm):
        affine = scan.affine
    else:
        affine = _grid_around_brain(volume, scan.affine, grid_vox, spacing_mm)
        volume = resample_volume(volume, scan.affine, affine, shape=grid_vox)
    return Scan(image_CDHW=scale_intensity(volume)[None], affine=affine, modality=scan.modality)


RECIPES: Mapping[str, Callable[[Scan, tuple[int, int, int], float], Scan]] = {
    "brain-t1": prepare_brain_t1
}


def resample_volume(
    volume_DHW: np.ndarray, affine: Affine, target: Affine, *, shape: tuple[int, int, int]
) -> np.ndarray:
    """Return a volume at the voxels of another grid, 0 outside; world positions are kept.

    Before linear interpolation, a Gaussian of sigma (step - 1) / 2 source voxels is applied along
    each axis, where ``step`` is the target's spacing in voxels of the source; a finer grid needs
    none.
    """
    to_source = np.linalg.inv(affine) @ target
    step_vox = np.abs(to_source[:3, :3]).max(axis=1)
    sigma_vox = np.maximum(0, (step_vox - 1) / 2)
    source = volume_DHW.astype(np.float32, copy=False)
    if sigma_vox.any():
        source = ndimage.gaussian_filter(source, sigma_vox, mode="constant")
    moved: np.ndarray = ndimage.affine_transform(
        source, to_source[:3, :3], to_source[:3, 3], output_shape=shape, order=1
    )
    return moved.astype(np.float32, copy=False)


def scale_intensity(volume_DHW: np.ndarray) -> np.ndarray:
    """Return float32 in [0, 1]: the foreground's 99th percentile becomes 1, the background 0.

    Raises ScanError when no voxel is above 0.
    """
    inside = volume_DHW[_foreground(volume_DHW)]
    bright = np.percentile(inside, _BRIGHT_PERCENTILE)
    scaled = np.clip(volume_DHW / np.float32(bright), 0, 1)
    return np.where(scaled < FLOOR, 0, scaled).astype(np.float32)


def _background(volume: np.ndarray) -> float:
    faces = [np.take(volume, [0, -1], axis=axis).ravel() for axis in range(3)]
    return float(np.median(np.concatenate(faces)))


def _foreground(volume: np.ndarray) -> np.ndarray:
    positive = volume[volume > 0]
    if positive.size == 0:
        raise ScanError("the scan shows no brain", why="nothing is brighter than the background")
    bright = np.percentile(positive, _BRIGHT_PERCENTILE)
    return np.asarray(volume > FOREGROUND_FRAC * bright)


def _on_grid(scan: Scan, grid_vox: tuple[int, int, int], spacing: float) -> bool:
    wanted = np.diag([spacing, spacing, spacing])
    return scan.image_CDHW.shape[1:] == tuple(grid_vox) and np.allclose(
        scan.affine[:3, :3], wanted, rtol=0, atol=_GRID_TOLERANCE_MM
    )


def _grid_around_brain(
    volume: np.ndarray, affine: Affine, grid_vox: tuple[int, int, int], spacing: float
) -> Affine:
    index_3N = np.stack(np.nonzero(_foreground(volume)))
    world_3N = affine[:3, :3] @ index_3N + affine[:3, 3:]
    low, high = np.percentile(world_3N, [0.5, 99.5], axis=1)
    target = centered_affine(grid_vox, spacing=spacing)
    target[:3, 3] += (low + high) / 2
    return target
