"""Sums of several sites are the sums of all rows together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitrael.core.metrics.moments import (
    add_moments,
    correlation,
    mean_and_covariance,
    moments_of,
)

ROWS = np.random.default_rng(1).normal([3, -2, 40], [1, 0.1, 9], (60, 3)) @ np.array(
    [[1, 0.5, 0], [0, 1, 0.2], [0, 0, 1]]
)


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    parts = [moments_of(part) for part in np.split(ROWS, [7, 7, 31])]  # one of them is empty
    whole = moments_of(ROWS)
    pooled = add_moments(parts)
    for name, array in whole.items():
        np.testing.assert_allclose(pooled[name], array, rtol=1e-12)
        assert pooled[name].dtype == np.float64


def test_mean_and_covariance_are_those_of_the_rows() -> None:
    mean, covariance = mean_and_covariance(moments_of(ROWS))
    np.testing.assert_allclose(mean, ROWS.mean(0))
    np.testing.assert_allclose(covariance, np.cov(ROWS.T, bias=True), rtol=1e-8)


def test_correlation_is_pearson_s_of_the_first_two_columns() -> None:
    assert correlation(moments_of(ROWS)) == pytest.approx(np.corrcoef(ROWS.T)[0, 1])


def test_no_rows_are_zeros_and_sums_are_made_in_double_precision() -> None:
    empty = moments_of(np.zeros((0, 3), np.float32))
    assert [array.shape for array in empty.values()] == [(1,), (3,), (3, 3)]
    assert not any(array.any() for array in empty.values())
    small = np.full((1 << 14, 1), 0.1, np.float32)
    assert moments_of(small)["sum"][0] == pytest.approx(float(np.float32(0.1)) * (1 << 14), 1e-12)


def test_constant_column_that_is_exact_has_no_correlation() -> None:
    rows = np.stack([np.full(8, 2.0), np.arange(8.0)], axis=1)
    assert math.isnan(correlation(moments_of(rows)))


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 7.7])
def test_constant_column_has_no_correlation(value: float) -> None:
    rows = np.stack([np.full(7, value), np.arange(7.0)], axis=1)
    assert math.isnan(correlation(moments_of(rows)))
