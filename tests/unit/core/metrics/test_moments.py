"""Sums of several sites are the sums of all rows together."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitrael.core.metrics.moments import (
    add_moments,
    check_moments,
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


@pytest.mark.parametrize(
    "rows",
    [ROWS, ROWS[:1], ROWS[:0], np.full((9, 3), 0.1), np.full((7, 3), 900.0)],
    ids=["many", "one", "none", "constant", "large"],
)
def test_moments_of_rows_pass_the_check(rows: np.ndarray) -> None:
    check_moments(moments_of(rows), 3)


GOOD = moments_of(ROWS)
BAD = {
    "another width": moments_of(ROWS[:, :2]),
    "a part too few": {name: GOOD[name] for name in ("count", "sum")},
    "a part too many": {**GOOD, "more": np.ones(1)},
    "another type": {name: array.astype(np.float32) for name, array in GOOD.items()},
    "a count below zero": {**GOOD, "count": np.array([-9.0])},
    "half a row": {**GOOD, "count": np.array([0.5])},
    "sums of no row": {**GOOD, "count": np.zeros(1)},
    "less than the squares of the means": {**GOOD, "square": GOOD["square"] / 9},
    "no symmetry": {**GOOD, "square": GOOD["square"] + np.triu(GOOD["square"], 1)},
    "a variance below zero": {**GOOD, "square": GOOD["square"] - np.diag([0, 0, 1e6])},
    "beyond all scans": {**GOOD, "square": GOOD["square"] * 1e12},
    "no number": {**GOOD, "sum": GOOD["sum"] * np.nan},
}


@pytest.mark.parametrize("bad", BAD)
def test_moments_of_no_rows_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=r"moments|covariance"):
        check_moments(BAD[bad], 3)
