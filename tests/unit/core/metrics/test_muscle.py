"""A muscle's area is that of its mask; a mask that shows none is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.muscle import cross_section_mm2


def test_muscle_area_is_of_the_largest_piece_without_its_holes() -> None:
    row, column = np.mgrid[:100, :120]
    ellipse = ((row - 50.3) / 20) ** 2 + ((column - 60.2) / 40) ** 2 < 1
    area = cross_section_mm2(ellipse, spacing_mm=(0.5, 0.4))
    assert area == pytest.approx(math.pi * 20 * 40 * 0.5 * 0.4, rel=0.005)
    holed = ellipse.copy()
    holed[48:52, 58:63] = False
    holed[:3, :5] = True
    assert cross_section_mm2(holed, spacing_mm=(0.5, 0.4)) == area


def test_mask_that_shows_nothing_has_no_area() -> None:
    with pytest.raises(DataError, match="shows no muscle"):
        cross_section_mm2(np.zeros((32, 32), dtype=bool), spacing_mm=(1.0, 1.0))
