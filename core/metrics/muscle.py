"""The cross-sectional area of a muscle, from a mask alone. Axes: H rows, W columns."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vitrael.core.metrics.piece import measured_piece


def cross_section_mm2(mask_HW: np.ndarray, *, spacing_mm: tuple[float, float]) -> float:
    """Return the area of the largest piece with its holes filled.

    ``spacing_mm`` is that of rows and columns. Raises DataError as ``measured_piece``.
    """
    piece = measured_piece(mask_HW, spacing_mm=spacing_mm, organ="muscle")
    whole = ndimage.binary_fill_holes(piece)
    return float(whole.sum() * spacing_mm[0] * spacing_mm[1])
