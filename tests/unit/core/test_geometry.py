"""Voxels and world agree, and a matrix that maps nothing is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrael.core.errors import ScanError
from vitrael.core.geometry import centered_affine, check_affine, spacing_mm, voxel_volume_ml

SIZES = st.floats(min_value=0.1, max_value=20)
SHAPES = st.tuples(*[st.integers(1, 64)] * 3)


def rotation(angle_rad: float) -> np.ndarray:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    matrix = np.diag([1.0, 1.0, 1.0, 1.0])
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    return matrix


@given(SHAPES, SIZES)
def test_center_of_the_grid_is_the_origin(shape: tuple[int, int, int], spacing: float) -> None:
    affine = centered_affine(shape, spacing=spacing)
    center = affine @ [*((np.array(shape) - 1) / 2), 1]
    assert np.allclose(center, [0, 0, 0, 1])
    check_affine(affine)


@given(st.tuples(SIZES, SIZES, SIZES), st.floats(-3, 3))
def test_rotation_changes_neither_spacing_nor_volume(
    sizes: tuple[float, float, float], angle_rad: float
) -> None:
    affine = rotation(angle_rad) @ np.diag([*sizes, 1.0])
    assert np.allclose(spacing_mm(affine), sizes)
    assert np.isclose(voxel_volume_ml(affine), np.prod(sizes) / 1000)


def test_flipped_axis_has_a_positive_volume() -> None:
    assert voxel_volume_ml(np.diag([-10.0, 10.0, 10.0, 1.0])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "affine",
    [
        np.zeros((4, 4)),
        np.diag([1.0, 1.0, 0.0, 1.0]),
        np.diag([1.0, np.nan, 1.0, 1.0]),
        np.diag([1.0, np.inf, 1.0, 1.0]),
        np.diag([1.0, 1.0, 1.0]),
    ],
    ids=["zero", "flat", "nan", "infinite", "3x3"],
)
def test_matrix_that_is_no_map_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(ScanError):
        check_affine(affine)
