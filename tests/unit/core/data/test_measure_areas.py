"""The measurer of slices follows the truth of phantoms and refuses what is no picture."""

from __future__ import annotations

import numpy as np
import pytest

from tests.factories.planes import draw_planes
from vitrael.core.data.measure_areas import measure_areas
from vitrael.core.errors import DataError

SPACING_MM = 6.0


def disc(radius_px: float, *, size: int = 48) -> np.ndarray:
    offset = np.arange(size) - (size - 1) / 2
    return np.clip(radius_px - np.hypot(offset[:, None], offset) + 0.5, 0, 1)


def test_ventricle_area_follows_the_volume_of_phantoms() -> None:
    planes = draw_planes(3, 200)
    ventricle_cm2, brain_cm2 = measure_areas(planes.image_B1HW, spacing_mm=SPACING_MM)
    assert np.corrcoef(ventricle_cm2, planes.ventricle_ml)[0, 1] > 0.93
    assert np.corrcoef(brain_cm2, planes.brain_ml)[0, 1] > 0.6
    shuffled = np.random.Generator(np.random.PCG64(1)).permutation(planes.ventricle_ml)
    assert abs(np.corrcoef(ventricle_cm2, shuffled)[0, 1]) < 0.3  # the control


def test_brain_area_is_that_of_a_disc() -> None:
    _, brain_cm2 = measure_areas(0.8 * disc(15.0)[None, None], spacing_mm=2.0)
    # A pixel at the soft rim counts from a quarter of it on: 0.2 of 0.8.
    assert brain_cm2[0] == pytest.approx(np.pi * 15.25**2 * 0.04, rel=0.01)


def test_fluid_in_the_middle_counts_and_at_the_rim_does_not() -> None:
    brain = 0.8 * disc(20.0)
    hole = brain * (1 - disc(5.0))
    bite = brain * (1 - np.roll(disc(5.0), 18, axis=1))
    ventricle_cm2, _ = measure_areas(np.stack([brain, hole, bite])[:, None], spacing_mm=3.0)
    assert ventricle_cm2[0] == 0
    assert ventricle_cm2[1] == pytest.approx(np.pi * 25 * 0.09, rel=0.1)
    assert ventricle_cm2[2] < 0.2 * ventricle_cm2[1]


def test_empty_picture_measures_zero() -> None:
    ventricle_cm2, brain_cm2 = measure_areas(np.zeros((2, 1, 8, 8)), spacing_mm=1.0)
    assert not ventricle_cm2.any()
    assert not brain_cm2.any()


def test_gain_of_a_scanner_changes_little() -> None:
    image = draw_planes(4, 20).image_B1HW
    plain, _ = measure_areas(image, spacing_mm=SPACING_MM)
    bright, _ = measure_areas(np.clip(image * 1.1, 0, 1), spacing_mm=SPACING_MM)
    assert np.abs(bright - plain).max() < 1.5


def test_volume_and_nan_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[B, 1, H, W\]"):
        measure_areas(np.zeros((1, 1, 4, 4, 4)), spacing_mm=1.0)
    with pytest.raises(DataError):
        measure_areas(np.full((1, 1, 8, 8), np.nan), spacing_mm=1.0)
