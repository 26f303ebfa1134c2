"""Sums that several sites can add up: counts, first and second moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Moments = Mapping[str, np.ndarray]
"""``count`` [1], ``sum`` [K], ``square`` [K, K], float64."""


def moments_of(value_BK: np.ndarray) -> dict[str, np.ndarray]:
    """Return count, sum and sum of outer products of rows; of no rows, zeros."""
    value = value_BK.astype(np.float64)
    return {
        "count": np.array([len(value)], np.float64),
        "sum": value.sum(axis=0),
        "square": value.T @ value,
    }


def add_moments(parts: Sequence[Moments]) -> dict[str, np.ndarray]:
    """Return the moments of all rows together; equal to those of the rows concatenated."""
    return {name: np.sum([part[name] for part in parts], axis=0) for name in parts[0]}


def mean_and_covariance(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Return mean ``[K]`` and covariance ``[K, K]`` (divided by the count)."""
    count = float(moments["count"][0])
    mean = moments["sum"] / count
    return mean, moments["square"] / count - np.outer(mean, mean)


def correlation(moments: Moments) -> float:
    """Return Pearson's r of the first two columns; NaN when one of them is constant.

    Constant means to rounding: a variance below 1e-12 of the mean square.
    """
    count = float(moments["count"][0])
    if count == 0:
        return float("nan")
    _, covariance = mean_and_covariance(moments)
    variance_K = np.diag(covariance)[:2]
    square_K = np.diag(moments["square"])[:2] / count
    if (variance_K <= 1e-12 * square_K).any():
        return float("nan")
    return float(covariance[0, 1] / np.sqrt(variance_K[0] * variance_K[1]))
