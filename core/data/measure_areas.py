"""The declared measurer of axial slices: ventricle and brain area of a prepared picture.

It sees one picture with intensities in [0, 1] and the size of its pixels, never what a generator
was asked for. It is the plane's likeness of ``measure_volumes`` and keeps its constants of
intensity. *Brain*: pixels above 0.2, the largest connected piece, closed and filled. *White-matter
level*: the 95th percentile of the brain. *Ventricles*: within an ellipse around the brain's
centroid (semi-axes 30 mm across and 52 mm from front to back) and at least 6 mm deep, each pixel
counts by how far it falls from 0.78 to 0.2 of the white-matter level, so that the sum is continuous
in the intensities. A consistent index, not a segmentation. No published source.

Axes: B batch, H rows from front to back, W columns from left to right.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import ndimage

from vitrael.core.checks import finite
from vitrael.core.errors import DataError

_BRAIN_LEVEL: Final = 0.2
_WHITE_PERCENTILE: Final = 95.0
_FLUID_FRAC, _TISSUE_FRAC = 0.2, 0.78
_SEMI_AXES_MM: Final = (52.0, 30.0)
_DEEP_MM: Final = 6.0
_BATCH_AXES: Final = 4


def measure_areas(image_B1HW: np.ndarray, *, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(ventricle_cm2[B], brain_cm2[B])``, float64; a picture without a brain gives zeros.

    Raises DataError when the pictures are not ``[B, 1, H, W]`` or not finite.
    """
    if image_B1HW.ndim != _BATCH_AXES or image_B1HW.shape[1] != 1:
        raise DataError("the pictures to measure are not [B, 1, H, W]")
    finite(pictures=image_B1HW)
    areas = [_measure(image, spacing_mm) for image in image_B1HW[:, 0]]
    ventricle_brain_B2 = np.array(areas, dtype=np.float64).reshape(-1, 2)
    return ventricle_brain_B2[:, 0], ventricle_brain_B2[:, 1]


def _measure(image_HW: np.ndarray, spacing_mm: float) -> tuple[float, float]:
    pieces, count = ndimage.label(image_HW > _BRAIN_LEVEL)
    if not count:
        return 0.0, 0.0
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    piece = pieces == sizes.argmax()
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(piece, 2)))[2:-2, 2:-2]
    white = float(np.percentile(image_HW[piece], _WHITE_PERCENTILE))
    depth_mm = ndimage.distance_transform_edt(brain) * spacing_mm
    deep = np.clip((depth_mm - _DEEP_MM) / spacing_mm + 0.5, 0, 1)
    fluid = np.clip((_TISSUE_FRAC - image_HW / white) / (_TISSUE_FRAC - _FLUID_FRAC), 0, 1)
    rows, columns = np.nonzero(brain)
    h, w = np.ogrid[: image_HW.shape[0], : image_HW.shape[1]]
    radius = np.hypot(
        (h - rows.mean()) * spacing_mm / _SEMI_AXES_MM[0],
        (w - columns.mean()) * spacing_mm / _SEMI_AXES_MM[1],
    )
    near = np.clip((1 - radius) * _SEMI_AXES_MM[1] / spacing_mm + 0.5, 0, 1)
    pixel_cm2 = spacing_mm**2 / 100
    return float((fluid * deep * near).sum() * pixel_cm2), float(brain.sum() * pixel_cm2)
