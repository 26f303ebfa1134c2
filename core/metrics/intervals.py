"""Confidence intervals: shares, correlations and areas under the curve, exact where possible.

A *bound* is one-sided: the lower and the upper bound of an Interval hold at ``confidence`` each
taken alone. The patient is the unit: callers pass one score for each patient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

from vitrael.core.errors import DataError

CONFIDENCE: Final = 0.95


class Interval(NamedTuple):
    """Two one-sided bounds."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A number with its standard error."""

    value: float
    error: float


def clopper_pearson(hits: float, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the exact bounds of a share (Clopper and Pearson 1934).

    ``hits`` may be a sum of numbers in [0, 1]: their variance is at most that of hits and misses,
    so the bounds are then cautious. No trial gives (0, 1). Raises DataError for hits outside
    0..trials.
    """
    if trials < 0 or not 0 <= hits <= trials + 1e-9:
        raise DataError(f"{hits} hits in {trials} trials is not a share")
    if trials == 0:
        return Interval(0.0, 1.0)
    alpha = 1 - confidence
    misses = max(0.0, trials - hits)
    low = float(stats.beta.ppf(alpha, hits, misses + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(1 - alpha, hits + 1, misses)) if misses > 0 else 1.0
    return Interval(low, high)


def normal_interval(estimate: Estimate, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the bounds of an estimate whose error is normal."""
    reach = float(stats.norm.ppf(confidence)) * estimate.error
    return Interval(estimate.value - reach, estimate.value + reach)


def pearson_r(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of two equally long series; NaN when one of them is constant."""
    if first.shape != second.shape or first.ndim != 1:
        raise DataError("a correlation needs two equally long series")
    a, b = first - first.mean(), second - second.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def pearson_interval(r: float, n: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the bounds of a correlation by Fisher's z; fewer than four pairs give (-1, 1)."""
    if n < 4 or not math.isfinite(r):  # noqa: PLR2004 - Fisher's z has variance 1 / (n - 3)
        return Interval(-1.0, 1.0)
    z = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12))
    reach = float(stats.norm.ppf(confidence)) / math.sqrt(n - 3)
    return Interval(min(r, math.tanh(z - reach)), max(r, math.tanh(z + reach)))


def permuted_r(
    asked: np.ndarray, measured: np.ndarray, *, rng: np.random.Generator, draws: int = 1
) -> float:
    """Return the mean absolute correlation after shuffling what was asked: the control."""
    values = [abs(pearson_r(rng.permutation(asked), measured)) for _ in range(draws)]
    return float(np.mean(values))


def auc(higher: np.ndarray, lower: np.ndarray) -> Estimate:
    """Return P(a score of ``higher`` is above one of ``lower``), ties as half, with its error.

    The error is that of DeLong, DeLong and Clarke-Pearson (1988), floored by that of one pair
    turning over, so that a perfect separation of few patients is not certain.
    Raises DataError when a group is empty.
    """
    edges = np.unique(np.concatenate([higher, lower]))
    return binned_auc(
        np.bincount(np.searchsorted(edges, higher), minlength=len(edges)),
        np.bincount(np.searchsorted(edges, lower), minlength=len(edges)),
    )


def binned_auc(
    higher_bins: Sequence[int] | np.ndarray, lower_bins: Sequence[int] | np.ndarray
) -> Estimate:
    """Return the area and its error from counts of scores in common rising bins."""
    h, low = np.asarray(higher_bins, dtype=float), np.asarray(lower_bins, dtype=float)
    n_high, n_low = h.sum(), low.sum()
    if h.shape != low.shape or n_high < 1 or n_low < 1:
        raise DataError("an area under the curve needs scores in both groups and common bins")
    below = (np.cumsum(low) - low / 2) / n_low
    above = 1 - (np.cumsum(h) - h / 2) / n_high
    value = float(h @ below / n_high)
    variance = _spread(below, h) / n_high + _spread(above, low) / n_low
    return Estimate(value, math.sqrt(max(variance, (1 / (n_high * n_low)) ** 2)))


def stratified(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Return the weighted mean of independent estimates, one for each stratum.

    Strata are compared only within themselves, so a difference between sites is no finding.
    """
    total = sum(weights)
    if not estimates or total <= 0:
        raise DataError("there is no stratum to pool")
    shares = [weight / total for weight in weights]
    return Estimate(
        sum(s * e.value for s, e in zip(shares, estimates, strict=True)),
        math.sqrt(sum((s * e.error) ** 2 for s, e in zip(shares, estimates, strict=True))),
    )


def share_excess(
    hits: int, control_hits: int, trials: int, *, scale: float = 1.0, confidence: float = CONFIDENCE
) -> tuple[float, Interval]:
    """Return share - scale * control share with bounds, both shares out of ``trials``.

    The bounds of the two shares are joined by the method of variance estimates recovery
    (Zou and Donner 2008, equation 2).
    """
    if trials < 1:
        raise DataError("there is no trial to compare")
    p, q = hits / trials, scale * control_hits / trials
    a = clopper_pearson(hits, trials, confidence=confidence)
    b = clopper_pearson(control_hits, trials, confidence=confidence)
    low = p - q - math.hypot(p - a.low, scale * b.high - q)
    high = p - q + math.hypot(a.high - p, q - scale * b.low)
    return p - q, Interval(max(-1.0, low), min(1.0, high))


def _spread(values: np.ndarray, counts: np.ndarray) -> float:
    n = counts.sum()
    if n < 2:  # noqa: PLR2004 - no variance of one value
        return 0.25
    mean = counts @ values / n
    return float(counts @ (values - mean) ** 2 / (n - 1))
