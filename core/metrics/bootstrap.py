"""Intervals for numbers that have no formula of their own: resampling and leaving one out.

The unit is a row, or a cluster: where patients have several rows, whole patients are resampled.
Axes: N rows, C clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import CONFIDENCE, Interval

Indices = np.ndarray
"""Row numbers, drawn with replacement."""

DRAWS: Final = 200
TEST_DRAWS: Final = 2_000
"""Of a test: its p value is read from a tail."""
_FEWEST: Final = 2


@dataclass(frozen=True, slots=True)
class Compared:
    """How two series of values over the same rows differ, as a difference or as a ratio."""

    value: float
    """NaN where there is no ratio because the second mean is 0."""
    interval: Interval
    """Two one-sided bounds."""
    p: float
    """One-sided, of what the function that made it says; never 0."""
    clusters: int


def bootstrap(
    statistic: Callable[..., float],
    sizes: Sequence[int],
    *,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> np.ndarray:
    """Return a statistic of ``draws`` resamples, ``[draws]`` (Efron 1979).

    ``statistic`` takes one array of row numbers for each of ``sizes``; the groups are resampled
    apart. Raises DataError for an empty group and for fewer than two draws.
    """
    if min(sizes) < 1 or draws < _FEWEST:
        raise DataError("there is nothing to resample", fix="give rows, and two draws or more")
    return np.array([statistic(*(rng.integers(0, n, n) for n in sizes)) for _ in range(draws)])


def centered_interval(
    value: float,
    draws: np.ndarray,
    *,
    confidence: float = CONFIDENCE,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Return the bounds around ``value`` as far as the resamples reach around their own mean.

    A distance between two sets grows when rows are drawn twice, so the resamples of a distance lie
    above it, all of them where the sets are alike. Their spread is right though their place is not:
    the bounds are those of the number that sets of this size have on average, whose bias is in
    it. They are cut to ``within``, and never leave the value out.
    """
    offset = draws - draws.mean()
    down, up = (float(np.quantile(offset, level)) for level in (1 - confidence, confidence))
    return Interval(
        min(value, max(within[0], value + down)), max(value, min(within[1], value + up))
    )


def jackknife_error(*left_out: np.ndarray) -> float:
    """Return the standard error from the values with one row left out, one array for each group.

    On average it is too large rather than too small (Efron and Stein 1981). A group of one row
    gives infinity: it says nothing about its own spread.
    """
    if any(len(values) < _FEWEST for values in left_out):
        return math.inf
    return math.sqrt(sum((len(v) - 1) * float(v.var()) for v in left_out))


def cluster_bootstrap(
    statistic: Callable[[Indices], float],
    cluster_N: np.ndarray,
    *,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> np.ndarray:
    """Return a statistic of ``draws`` resamples of whole clusters, ``[draws]``.

    As many clusters as there are come back, each with all its rows as often as it was drawn; so
    the number of rows varies (Davison and Hinkley 1997, section 3.8, resampling the groups alone).
    ``statistic`` takes row numbers. Raises DataError for fewer than two clusters or draws.
    """
    number_N, clusters = _numbered(cluster_N)
    order = np.argsort(number_N, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(number_N))[:-1])
    picks = _picks(clusters, rng=rng, draws=draws)
    return np.array([statistic(np.concatenate([rows[c] for c in pick])) for pick in picks])


def paired_difference(
    first_N: np.ndarray,
    second_N: np.ndarray,
    cluster_N: np.ndarray,
    *,
    rng: np.random.Generator,
    draws: int = TEST_DRAWS,
    confidence: float = CONFIDENCE,
) -> Compared:
    """Return mean(first) - mean(second) over the same rows, whole clusters resampled.

    ``p`` is that of "the first mean is not the larger": the share of resamples without a positive
    difference, one more counted on either side so that it is never 0, and never below one half to
    the power of the clusters, the least that as many flipped signs could reach. The bounds are
    percentiles. Raises DataError for unequal lengths, values that are not finite and fewer than
    two clusters.
    """
    sums_CS, counts_C = _cluster_sums(first_N, second_N, cluster_N)
    picks = _picks(len(counts_C), rng=rng, draws=draws)
    gap_C = sums_CS[:, 0] - sums_CS[:, 1]
    drawn = gap_C[picks].sum(1) / counts_C[picks].sum(1)
    value = float(gap_C.sum() / counts_C.sum())
    p = _tail(drawn <= 0, clusters=len(counts_C))
    return Compared(value, _percentiles(value, drawn, confidence), p, len(counts_C))


def paired_ratio(
    first_N: np.ndarray,
    second_N: np.ndarray,
    cluster_N: np.ndarray,
    *,
    rng: np.random.Generator,
    draws: int = TEST_DRAWS,
    confidence: float = CONFIDENCE,
    most: float = 1.0,
) -> Compared:
    """Return mean(first) / mean(second) over the same rows, whole clusters resampled.

    ``p`` is that of "the ratio is not below ``most``", counted as in ``paired_difference``; a
    resample in which both means are 0 speaks for it. Two generators are paired by being asked for
    the same condition and seed, whatever each then draws. When the second mean is 0 there is no
    ratio: the value is NaN, the bounds are 0 and infinity, and p is 1. Raises DataError as
    ``paired_difference``, for a negative value, and for a ``most`` that is not positive.
    """
    sums_CS, counts_C = _cluster_sums(first_N, second_N, cluster_N)
    if min(np.min(first_N), np.min(second_N)) < 0 or not 0 < most < math.inf:
        raise DataError("a ratio of means needs values that are not negative and a positive bound")
    picks = _picks(len(counts_C), rng=rng, draws=draws)
    first, second = (sums_CS[:, k][picks].sum(1) for k in range(2))
    if not sums_CS[:, 1].any():
        return Compared(math.nan, Interval(0.0, math.inf), 1.0, len(counts_C))
    drawn = np.divide(first, second, out=np.full(len(first), math.inf), where=second > 0)
    value = float(sums_CS[:, 0].sum() / sums_CS[:, 1].sum())
    p = _tail(first >= most * second, clusters=len(counts_C))
    return Compared(value, _percentiles(value, drawn, confidence), p, len(counts_C))


def _numbered(cluster_N: np.ndarray) -> tuple[np.ndarray, int]:
    """Return each row's cluster as a number from 0, and how many clusters there are."""
    cluster_N = np.asarray(cluster_N)
    if cluster_N.ndim != 1:
        raise DataError("clusters are one number for each row")
    names, number_N = np.unique(cluster_N, return_inverse=True)
    if len(names) < _FEWEST:
        raise DataError(
            "there is nothing to resample",
            why="the rows are of fewer than two patients",
            fix="give rows of two patients or more",
        )
    return number_N, len(names)


def _cluster_sums(
    first_N: np.ndarray, second_N: np.ndarray, cluster_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``[C, 2]`` sums of both series and ``[C]`` rows, by cluster."""
    series = [np.asarray(values, dtype=np.float64) for values in (first_N, second_N)]
    if any(values.shape != np.shape(cluster_N) for values in series):
        raise DataError("a paired comparison needs two equally long series and their clusters")
    finite(first=series[0], second=series[1])
    number_N, _ = _numbered(cluster_N)
    sums = [np.bincount(number_N, weights=values) for values in series]
    return np.stack(sums, axis=1), np.bincount(number_N)


def _picks(clusters: int, *, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Return ``[draws, C]`` cluster numbers, drawn with replacement."""
    if draws < _FEWEST:
        raise DataError("there is nothing to resample", fix="ask for two draws or more")
    return rng.integers(0, clusters, (draws, clusters))


def _percentiles(value: float, drawn: np.ndarray, confidence: float) -> Interval:
    """Return the percentile bounds, which never leave the value out; infinity is no neighbor."""
    low = float(np.quantile(drawn, 1 - confidence, method="lower"))
    high = float(np.quantile(drawn, confidence, method="higher"))
    return Interval(min(value, low), max(value, high))


def _tail(against: np.ndarray, *, clusters: int) -> float:
    """Return the p value of a tail: how many resamples speak against the claim."""
    counted = (1 + int(against.sum())) / (1 + len(against))
    return max(counted, 0.5**clusters)
