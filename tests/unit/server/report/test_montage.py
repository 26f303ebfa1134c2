"""Slices lie as a reader expects them, and nothing is drawn of what is no image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vitrael.core.errors import DataError
from vitrael.server.report.montage import cut_planes, draw_overview, draw_planes


def test_front_is_up_top_is_up_and_left_is_left() -> None:
    image_DHW = np.zeros((9, 11, 13))
    image_DHW[0, 5, 6] = 0.2  # leftmost
    image_DHW[4, 10, 6] = 0.4  # front
    image_DHW[4, 5, 12] = 0.6  # top
    axial, coronal, sagittal = cut_planes(image_DHW)
    assert [plane.shape for plane in (axial, coronal, sagittal)] == [(11, 9), (13, 9), (13, 11)]
    assert (axial[5, 0], axial[0, 4]) == (0.2, 0.4)
    assert (coronal[6, 0], coronal[0, 4]) == (0.2, 0.6)
    assert (sagittal[6, 10], sagittal[0, 5]) == (0.4, 0.6)


def test_montage_has_a_column_for_each_volume_and_a_row_for_each_plane() -> None:
    picture = Image.open(io.BytesIO(draw_planes(np.full((4, 1, 24, 24, 24), 0.5))))
    assert picture.size == (4 * 100 - 4, 3 * 100 - 4)
    value, alpha = picture.convert("LA").getpixel((48, 48))
    assert (value, alpha) == (128, 255)
    assert picture.convert("LA").getpixel((98, 48))[1] == 0


def test_overview_wraps_and_large_volumes_are_not_enlarged() -> None:
    picture = Image.open(io.BytesIO(draw_overview(np.zeros((5, 1, 100, 120, 90)), columns=3)))
    assert picture.size == (3 * 124 - 4, 2 * 124 - 4)


@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (2, 2, 8, 8, 8), (0, 1, 8, 8, 8)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="cannot be drawn"):
        draw_planes(np.zeros(shape))


def test_values_beyond_the_range_are_clipped() -> None:
    picture = Image.open(io.BytesIO(draw_planes(np.full((1, 1, 8, 8, 8), 3.0)))).convert("LA")
    assert picture.getpixel((4, 4)) == (255, 255)
