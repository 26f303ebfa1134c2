"""The declared measurer: brain and ventricle volume of a prepared T1-weighted brain image.

It sees one image with intensities in [0, 1] and the affine, never what a generator was asked for,
and is the same for real scans, phantoms and synthetic samples.

Method. *Brain*: voxels above 0.2, the largest connected piece, closed by 8 mm and hole-filled;
a voxel of its rim counts by its intensity against 0.6 of the white-matter level (partial volume).
So the brain volume includes the ventricles. *White-matter level*: the 95th percentile of the
brain. *Ventricles*: within a soft-edged ellipsoid around the brain's centroid (semi-axes 30, 52,
26 mm; 2 mm behind and 8 mm above the centroid) and at least 8 mm deep in the brain, each voxel
counts by how far its intensity falls from 0.78 to 0.2 of the white-matter level. The weight makes
the sum continuous in the intensities and lets voxels count that are fluid in part, so that it
works at 8 mm; it also keeps some gray matter and loses the thinnest horns: the result is a
consistent index in ml, not a segmentation, and reads lower for larger voxels. No published source:
the constants were set on T1-weighted scans and phantoms of known volume.
"""

from __future__ import annotations

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.data.morphology import (
    Box,
    box_of,
    dilate_steps,
    erode_steps,
    fill_holes,
    largest_piece,
    middle_of,
)
from vitrael.core.data.resample import percentile_of
from vitrael.core.errors import DataError
from vitrael.core.geometry import Affine, spacing_mm, voxel_volume_ml

_BRAIN_LEVEL = 0.2
_RIM_MM = 8.0
_WHITE_PERCENTILE = 95.0
_RIM_FULL_FRAC = 0.6
_FLUID_FRAC, _TISSUE_FRAC = 0.2, 0.78
_REGION_CENTRE_MM = np.array([0.0, -2.0, 8.0])
_REGION_SEMI_AXES_MM = np.array([30.0, 52.0, 26.0])
_FINE_MM = 4.0
_BATCH_AXES = 5


def measure_volumes(image_BCDHW: np.ndarray, affine: Affine) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(ventricle_ml[B], brain_ml[B])``, float64; an image without a brain gives zeros.

    Only the spacing of the affine is used; the index axes must be RAS+. Raises DataError when the
    images are not ``[B, 1, D, H, W]`` or not finite.
    """
    if image_BCDHW.ndim != _BATCH_AXES or image_BCDHW.shape[1] != 1:
        raise DataError("the images to measure are not [B, 1, D, H, W]")
    finite(images=image_BCDHW)
    volumes = [_measure(image, affine) for image in image_BCDHW[:, 0]]
    ventricle_brain_B2 = np.array(volumes, dtype=np.float64).reshape(-1, 2)
    return ventricle_brain_B2[:, 0], ventricle_brain_B2[:, 1]


def _measure(image_DHW: np.ndarray, affine: Affine) -> tuple[float, float]:
    spacing = np.array(spacing_mm(affine))
    piece = _largest_piece(image_DHW > _BRAIN_LEVEL, spacing)
    box = box_of(piece, margin_vox=1)
    piece, image_DHW = piece[box], image_DHW[box]
    if not piece.any():
        return 0.0, 0.0
    rim_vox = max(1, round(_RIM_MM / float(spacing.mean())))
    brain = _close_and_fill(piece, rim_vox)
    white = percentile_of(image_DHW[piece], _WHITE_PERCENTILE)
    inner = erode_steps(brain)
    rim = dilate_steps(brain) & ~inner
    brain_vox = inner.sum() + np.clip(image_DHW[rim] / white / _RIM_FULL_FRAC, 0, 1).sum()
    near, weight = _central_region(brain, spacing)
    level = image_DHW[near] / white
    fluid = np.clip((_TISSUE_FRAC - level) / (_TISSUE_FRAC - _FLUID_FRAC), 0, 1)
    deep = erode_steps(brain, rim_vox)[near]
    ventricle_vox = (fluid * deep * weight).sum()
    voxel_ml = voxel_volume_ml(affine)
    return float(ventricle_vox * voxel_ml), float(brain_vox * voxel_ml)


def _largest_piece(bright: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    if spacing.mean() < _FINE_MM:  # thin bridges to leftovers of the skull
        bright = dilate_steps(erode_steps(bright))
    return largest_piece(bright)


def _close_and_fill(piece: np.ndarray, radius_vox: int) -> np.ndarray:
    padded = np.pad(piece, radius_vox)  # else closing would erode at the border of the image
    filled = fill_holes(erode_steps(dilate_steps(padded, radius_vox), radius_vox))
    inside = slice(radius_vox, -radius_vox)
    return filled[inside, inside, inside]


def _central_region(brain: np.ndarray, spacing: np.ndarray) -> tuple[Box, np.ndarray]:
    """Return weights in [0, 1] and their box: an ellipsoid whose edge is one voxel wide."""
    per_radius_vox = float(_REGION_SEMI_AXES_MM.min() / spacing.mean())
    box, squares = [], []
    for axis, middle_vox in enumerate(middle_of(brain)):
        offset_mm = (np.arange(brain.shape[axis]) - middle_vox) * spacing[axis]
        scaled = (offset_mm - _REGION_CENTRE_MM[axis]) / _REGION_SEMI_AXES_MM[axis]
        near = np.flatnonzero(np.abs(scaled) < 1 + 0.5 / per_radius_vox)
        box.append(slice(int(near[0]), int(near[-1]) + 1) if near.size else slice(0, 0))
        squares.append(scaled[box[-1]] ** 2)
    x, y, z = squares
    radius = np.sqrt(x[:, None, None] + y[:, None] + z)
    return tuple(box), np.clip((1 - radius) * per_radius_vox + 0.5, 0, 1)
