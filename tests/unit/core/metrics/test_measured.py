from __future__ import annotations

import dataclasses
import math

import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.measured import Measured

NUMBER = Measured("fid", 1.0, 0.5, 2.0, 10, "images", "by hand")


def test_a_number_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        NUMBER.value = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("bounds", [(1.5, 2.0), (0.0, 0.5)])
def test_a_number_outside_its_bounds_is_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="outside its own bounds"):
        dataclasses.replace(NUMBER, low=bounds[0], high=bounds[1])


def test_not_estimable_is_nan_and_no_error() -> None:
    assert math.isnan(dataclasses.replace(NUMBER, value=math.nan).value)


def test_above_means_beyond_both_intervals() -> None:
    larger = dataclasses.replace(NUMBER, value=3.0, low=2.1, high=4.0)
    assert larger.above(NUMBER)
    assert not NUMBER.above(larger)
    assert not dataclasses.replace(larger, low=1.9).above(NUMBER)
    assert NUMBER.interval == (0.5, 2.0)
