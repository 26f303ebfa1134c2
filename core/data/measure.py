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
from scipy import ndimage

from vitrael.core.checks import finite
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
_CROSS = ndimage.generate_binary_structure(3, 1)


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
    piece = _largest_piece(image_DHW, spacing)
    if not piece.any():
        return 0.0, 0.0
    rim_vox = max(1, round(_RIM_MM / float(spacing.mean())))
    brain = _close_and_fill(piece, rim_vox)
    white = float(np.percentile(image_DHW[piece], _WHITE_PERCENTILE))
    level = image_DHW / white
    inner = ndimage.binary_erosion(brain, _CROSS)
    rim = ndimage.binary_dilation(brain, _CROSS) & ~inner
    brain_vox = inner.sum() + np.clip(level[rim] / _RIM_FULL_FRAC, 0, 1).sum()
    fluid = np.clip((_TISSUE_FRAC - level) / (_TISSUE_FRAC - _FLUID_FRAC), 0, 1)
    deep = ndimage.binary_erosion(brain, _CROSS, iterations=rim_vox)
    ventricle_vox = (fluid * deep * _central_region(brain, spacing)).sum()
    voxel_ml = voxel_volume_ml(affine)
    return float(ventricle_vox * voxel_ml), float(brain_vox * voxel_ml)


def _largest_piece(image: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    bright = image > _BRAIN_LEVEL
    if spacing.mean() < _FINE_MM:  # thin bridges to leftovers of the skull
        bright = ndimage.binary_opening(bright, _CROSS)
    labels, count = ndimage.label(bright, _CROSS)
    if count == 0:
        return np.zeros(image.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _close_and_fill(piece: np.ndarray, radius_vox: int) -> np.ndarray:
    padded = np.pad(piece, radius_vox)  # else closing would erode at the border of the image
    closed = ndimage.binary_closing(padded, _CROSS, iterations=radius_vox)
    filled = ndimage.binary_fill_holes(closed)
    inside = slice(radius_vox, -radius_vox)
    return np.asarray(filled[inside, inside, inside])


def _central_region(brain: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return weights in [0, 1]: an ellipsoid whose edge is one voxel wide."""
    centroid_vox = np.array(ndimage.center_of_mass(brain))
    squared = np.zeros(brain.shape)
    for axis, size in enumerate(brain.shape):
        offset_mm = (np.arange(size) - centroid_vox[axis]) * spacing[axis]
        scaled = (offset_mm - _REGION_CENTRE_MM[axis]) / _REGION_SEMI_AXES_MM[axis]
        squared += (scaled**2).reshape([-1 if a == axis else 1 for a in range(3)])
    depth_vox = (1 - np.sqrt(squared)) * _REGION_SEMI_AXES_MM.min() / spacing.mean()
    return np.asarray(np.clip(depth_vox + 0.5, 0, 1))
