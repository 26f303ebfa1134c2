"""A check names the argument and never prints what an array holds."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.checks import finite
from vitrael.core.errors import DataError

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_array_that_is_not_finite_is_refused_without_its_values(value: float) -> None:
    array = np.array([12345.0, value])
    with pytest.raises(DataError, match="image holds values that are not finite") as caught:
        finite(image=array)
    assert "12345" not in str(caught.value)


def test_finite_and_empty_arrays_are_accepted() -> None:
    finite(image=np.zeros(3), empty=np.zeros(0), counts=np.arange(3))
