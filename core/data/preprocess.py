"""Volumes of the brain, brought to the grid of a study: one contrast, or several on one grid.

No face passes: what a scan shows beside the brain is removed first, see ``brain_mask``. World is
RAS+ mm; C contrasts, D H W the index axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitrael.core.data.brain_mask import (
    apply_mask,
    bare_brain,
    demand_same_place,
    find_brain,
)
from vitrael.core.data.morphology import what_is_marked
from vitrael.core.data.resample import (
    BRIGHT_PERCENTILE,
    above_background,
    find_foreground,
    percentile_of,
    resample_mask,
    resample_volume,
    support_of,
)
from vitrael.core.data.scan import Scan
from vitrael.core.geometry import Affine, centered_affine, voxel_volume_ml
from vitrael.core.protocols import Data

FLOOR = 0.02
"""Scaled intensities below this are background, exactly 0."""

_GRID_TOLERANCE_MM = 1e-4
_TRIM = 0.5
"""Percent of the foreground on each side that do not count for its middle."""


def prepare_scan(scan: Scan, data: Data) -> Scan:
    """Return a T1-weighted scan on the study's grid, without a face, intensities in [0, 1].

    Raises ScanError when nothing stands out from the background or a face cannot be removed.
    """
    bare, _ = bare_brain(scan)
    return prepare_brain_t1(bare, data.grid_vox, data.spacing_mm)


def prepare_brain_t1(scan: Scan, grid_vox: tuple[int, int, int], spacing_mm: float) -> Scan:
    """Return the brain on a grid; see ``center_brain``."""
    return center_brain(scan, grid_vox, spacing_mm)[0]


def center_brain(
    scan: Scan, grid_vox: tuple[int, int, int], spacing_mm: float
) -> tuple[Scan, float]:
    """Return the brain in the middle of an isotropic RAS+ grid, and the share that is cut off.

    Background (the median of the outermost voxels) becomes 0; the brain's box, without the
    farthest half percent on each side, is centred; the image is low-pass filtered for the coarser
    grid and resampled linearly in world coordinates; the 99th percentile of the foreground
    becomes 1. A scan that lies on such a grid already is not resampled and not moved, so applying
    the recipe a second time keeps the grid and changes no intensity by more than 0.01.

    Cut off is what lies outside the grid, of the scan's own foreground; 0 for a scan on the grid.
    """
    cut_frac = 0.0
    volume = above_background(scan.image_CDHW[0])
    if _on_grid(scan, grid_vox, spacing_mm):
        affine = scan.affine
    else:
        affine, cut_frac = _grid_around_brain(volume, scan.affine, grid_vox, spacing_mm)
        volume = resample_volume(volume, scan.affine, affine, shape=grid_vox)
    ready = Scan(image_CDHW=scale_intensity(volume)[None], affine=affine, modality=scan.modality)
    return ready, cut_frac


def prepare_contrasts(
    scans: Sequence[Scan],
    grid_vox: tuple[int, int, int],
    spacing_mm: float,
    *,
    brain: Scan | None = None,
) -> tuple[np.ndarray, Affine, str, float]:
    """Return ``(image_CDHW, affine, what was done about the face, share cut off)`` of a visit.

    The first contrast is T1-weighted; the brain is found in it, or given as ``brain``, and all
    others are masked by it in world coordinates, in which they are expected to be aligned. Every
    contrast is resampled once, from its own grid, and scaled by itself as in ``center_brain``.
    Raises ScanError when a contrast does not show the brain where the first one does.
    """
    first = scans[0]
    mask_DHW, note = find_brain(first, brain)
    masked = apply_mask(first, mask_DHW)
    affine, cut_frac = _grid_around_brain(masked.image_CDHW[0], first.affine, grid_vox, spacing_mm)
    brain_ml = float(mask_DHW.sum()) * voxel_volume_ml(first.affine)
    channels = []
    for scan in scans:
        x, y, z = scan.image_CDHW.shape[1:]
        own = resample_mask(mask_DHW, first.affine, scan.affine, shape=(x, y, z))
        if scan is not first:
            demand_same_place(scan, own, brain_ml=brain_ml)
        volume = apply_mask(scan, own).image_CDHW[0]
        placed = resample_volume(volume, scan.affine, affine, shape=grid_vox)
        channels.append(scale_intensity(placed))
    return np.stack(channels), affine, note, cut_frac


def place_lesions(lesion: Scan, affine: Affine, *, brain_DHW: np.ndarray) -> np.ndarray:
    """Return a lesion mask as uint8 0 or 1 at a grid's voxels, nothing outside the brain.

    A voxel counts when lesion fills at least half of it.
    """
    inside = what_is_marked(lesion.image_CDHW[0])
    x, y, z = brain_DHW.shape
    placed = resample_mask(inside, lesion.affine, affine, shape=(x, y, z))
    return np.asarray(placed & brain_DHW, dtype=np.uint8)


def scale_intensity(volume_DHW: np.ndarray) -> np.ndarray:
    """Return float32 in [0, 1]: the foreground's 99th percentile becomes 1, the background 0.

    Raises ScanError when no voxel is above 0.
    """
    inside = volume_DHW[find_foreground(volume_DHW)]
    scaled = volume_DHW / np.float32(percentile_of(inside, BRIGHT_PERCENTILE))
    np.clip(scaled, 0, 1, out=scaled)
    return np.asarray(np.multiply(scaled, scaled >= np.float32(FLOOR), out=scaled))


def _on_grid(scan: Scan, grid_vox: tuple[int, int, int], spacing: float) -> bool:
    wanted = np.diag([spacing, spacing, spacing])
    return scan.image_CDHW.shape[1:] == tuple(grid_vox) and np.allclose(
        scan.affine[:3, :3], wanted, rtol=0, atol=_GRID_TOLERANCE_MM
    )


def _grid_around_brain(
    volume: np.ndarray, affine: Affine, grid_vox: tuple[int, int, int], spacing: float
) -> tuple[Affine, float]:
    """Return the grid whose middle is the brain's, and the share of the brain outside of it.

    The middle lies between the 0.5th and the 99.5th percentile of the foreground's places.
    """
    box = support_of(volume)
    inside = find_foreground(volume[box])
    start = np.array([run.start for run in box])
    half_mm = np.array(grid_vox) * spacing / 2
    if np.count_nonzero(affine[:3, :3]) == 3:  # noqa: PLR2004 - each axis runs along one of the world
        counts = [np.count_nonzero(inside, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
        middle_vox = np.array([_middle_vox(count_N) for count_N in counts])
        middle_mm = affine[:3, :3] @ (middle_vox + start) + affine[:3, 3]
        half_vox = np.abs(np.linalg.inv(affine[:3, :3])) @ half_mm
        first = np.maximum(np.ceil(middle_vox - half_vox), 0).astype(int)
        last = np.floor(middle_vox + half_vox).astype(int) + 1
        within = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        kept, whole = int(np.count_nonzero(inside[within])), int(counts[0].sum())
    else:
        index_3N = np.stack(np.nonzero(inside)) + start[:, None]
        world_3N = affine[:3, :3] @ index_3N + affine[:3, 3:]
        middle_mm = np.percentile(world_3N, [_TRIM, 100 - _TRIM], axis=1).mean(axis=0)
        off_3N = np.abs(world_3N - middle_mm[:, None])
        kept, whole = int((off_3N <= half_mm[:, None]).all(axis=0).sum()), off_3N.shape[1]
    target = centered_affine(grid_vox, spacing=spacing)
    target[:3, 3] += middle_mm
    return target, float(1 - kept / whole)


def _middle_vox(count_N: np.ndarray) -> float:
    """Return the same for one axis, of which it is known how many voxels each plane has."""
    reached_N = np.cumsum(count_N)
    places = (reached_N[-1] - 1) * np.array([_TRIM, 100 - _TRIM]) / 100
    low, high = np.searchsorted(reached_N, [np.floor(places), np.ceil(places)], side="right")
    return float((low + (high - low) * (places % 1)).mean())
