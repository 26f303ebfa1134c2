"""A check names the argument and never prints what an array holds."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.checks import finite, fraction, positive
from vitrael.core.errors import DataError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF, -INF])
def test_value_that_is_not_positive_is_refused_by_name(value: float) -> None:
    with pytest.raises(DataError, match="spacing_mm is"):
        positive(spacing_mm=value)


@pytest.mark.parametrize("value", [-0.01, 1.01, NAN, INF])
def test_value_outside_zero_to_one_is_refused_by_name(value: float) -> None:
    with pytest.raises(DataError, match="blend_frac is"):
        fraction(blend_frac=value)


def test_bounds_are_accepted() -> None:
    positive(a=1e-300, b=1e300)
    fraction(a=0.0, b=1.0)


def test_second_value_is_checked_too() -> None:
    with pytest.raises(DataError, match="b is"):
        positive(a=1.0, b=0.0)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_array_that_is_not_finite_is_refused_without_its_values(value: float) -> None:
    array = np.array([12345.0, value])
    with pytest.raises(DataError, match="image holds values that are not finite") as caught:
        finite(image=array)
    assert "12345" not in str(caught.value)


def test_finite_and_empty_arrays_are_accepted() -> None:
    finite(image=np.zeros(3), empty=np.zeros(0), counts=np.arange(3))
