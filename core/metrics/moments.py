"""Sums that several sites can add up: counts, first and second moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

Moments = Mapping[str, np.ndarray]
"""``count`` [1], ``sum`` [K], ``square`` [K, K], float64."""

_LARGEST: Final = 1e6
_MOST_ROWS: Final = 1e15
_ROUNDING: Final = 1e-9


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


def check_moments(moments: Moments, width: int) -> None:
    """Raise ValueError unless these can be the moments of rows of ``width`` values.

    That is, of no row, with zeros, or of some whose root mean square is at most 1e6 and whose
    covariance has no negative eigenvalue, but for rounding.
    """
    shapes = {"count": (1,), "sum": (width,), "square": (width, width)}
    found = {name: array.shape for name, array in moments.items()}
    if found != shapes or any(array.dtype != np.float64 for array in moments.values()):
        msg = f"moments of {width} values have other names, shapes or types"
        raise ValueError(msg)
    count, square = float(moments["count"][0]), moments["square"]
    if count == 0 and not moments["sum"].any() and not square.any():
        return
    bounded = 1 <= count <= _MOST_ROWS and (np.abs(moments["sum"]) <= count * _LARGEST).all()
    if not (bounded and (np.abs(square) <= count * _LARGEST**2).all()):
        msg = "these moments are those of no rows, or of too large ones"
        raise ValueError(msg)
    _, covariance = mean_and_covariance(moments)
    rounding = _ROUNDING * np.diag(square).max() / count
    symmetric = (np.abs(covariance - covariance.T) <= rounding).all()
    if not symmetric or np.linalg.eigvalsh(covariance).min() < -rounding:
        msg = "the covariance is that of no rows"
        raise ValueError(msg)


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
