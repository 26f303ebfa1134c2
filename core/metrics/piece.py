"""The piece of a mask that is measured. Axes: H rows, W columns."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from vitrael.core.errors import DataError

_LEAST_PX = 12


def measured_piece(
    mask_HW: np.ndarray, *, spacing_mm: tuple[float, float], organ: str
) -> np.ndarray:
    """Return the largest piece of a mask, bool ``[H, W]``.

    Raises DataError for a mask that is not a plane of booleans, for one whose largest piece has
    fewer than 12 pixels (what is not there has no size) and for pixels without a size.
    """
    if mask_HW.ndim != 2 or mask_HW.dtype != np.bool_:  # noqa: PLR2004 - H, W
        raise DataError("the mask to measure is not a plane of booleans")
    if not all(math.isfinite(size) and size > 0 for size in spacing_mm):
        raise DataError("the pixels to measure have no size", fix="give their height and width, mm")
    pieces, count = ndimage.label(mask_HW)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    if sizes.max() < _LEAST_PX:
        raise DataError(f"the mask to measure shows no {organ}", why="it is empty or a few pixels")
    return np.asarray(pieces == sizes.argmax())
