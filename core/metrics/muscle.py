"""The cross-sectional area of a muscle, from a mask alone. Axes: H rows, W columns."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vitrael.core.errors import DataError

_LEAST_PX = 12


def cross_section_mm2(mask_HW: np.ndarray, *, spacing_mm: tuple[float, float]) -> float:
    """Return the area of the largest piece with its holes filled.

    ``spacing_mm`` is that of rows and columns. Raises DataError for a mask that is not a plane of
    booleans and for one whose largest piece has fewer than 12 pixels.
    """
    if mask_HW.ndim != 2 or mask_HW.dtype != np.bool_:  # noqa: PLR2004 - H, W
        raise DataError("the mask to measure is not a plane of booleans")
    pieces, _ = ndimage.label(mask_HW)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    if sizes.max() < _LEAST_PX:
        raise DataError("the mask to measure shows no muscle", why="it is empty or a few pixels")
    whole = ndimage.binary_fill_holes(pieces == sizes.argmax())
    return float(whole.sum() * spacing_mm[0] * spacing_mm[1])
