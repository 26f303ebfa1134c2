"""A Scan that exists is usable, and shows nothing of a patient."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import centered_affine

AFFINE = centered_affine((4, 4, 4), spacing=2.0)


def image() -> np.ndarray:
    return np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4)


def test_good_scan_is_made_and_keeps_its_geometry() -> None:
    assert Scan(image(), AFFINE, "T1w").affine is AFFINE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_refused(bad: float) -> None:
    broken = image()
    broken[0, 1, 2, 3] = bad
    with pytest.raises(ScanError, match="not finite"):
        Scan(broken, AFFINE, "T1w")


def test_constant_image_is_refused() -> None:
    with pytest.raises(ScanError, match="constant"):
        Scan(np.full((1, 4, 4, 4), 3, dtype=np.float32), AFFINE, "T1w")


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 4, 4), (1, 4, 4, 4, 1), (1, 4, 4, 1)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with pytest.raises(ScanError, match=r"axes|volume"):
        Scan(array, AFFINE, "T1w")


def test_other_number_type_is_refused() -> None:
    with pytest.raises(ScanError, match="float32"):
        Scan(image().astype(np.float64), AFFINE, "T1w")


def test_singular_affine_is_refused() -> None:
    with pytest.raises(ScanError, match="singular"):
        Scan(image(), np.diag([2.0, 2.0, 0.0, 1.0]), "T1w")


def test_repr_shows_shape_and_modality_only() -> None:
    assert repr(Scan(image(), AFFINE, "T1w")) == "Scan(1x4x4x4, T1w)"
