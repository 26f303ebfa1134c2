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

from vitrael.core.checks import finite
from vitrael.core.errors import DataError

CONFIDENCE: Final = 0.95
UNIT: Final = (0.0, 1.0)
"""Where shares and areas lie."""


class Interval(NamedTuple):
    """Two one-sided bounds."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A number with its standard error."""

    value: float
    error: float


class Shuffled(NamedTuple):
    """Absolute correlations after shuffling: their mean and the quantiles either side."""

    mean: float
    low: float
    high: float
    values_P: np.ndarray
    """One for each shuffling."""


def clopper_pearson(hits: float, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the exact bounds of a share (Clopper and Pearson 1934).

    ``hits`` may be a sum of numbers in [0, 1]: their variance is at most that of hits and misses,
    so the bounds are then cautious. They are exact for independent trials alone: for scores that
    share what they are compared with they are approximate. No trial gives (0, 1). Raises
    DataError for hits outside 0..trials.
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


def wilson(hits: float, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Return the score bounds of a share (Wilson 1927): one-sided, as those of Clopper-Pearson.

    Nearer to their confidence on average than the exact ones, but no promise: the lower bound
    falls short for shares near 0 and the upper one for shares near 1 (a share of 0.02 in 60 trials
    is above it in 88 % instead of 95 %). No trial gives (0, 1). Raises DataError for hits outside
    0..trials.
    """
    if trials < 0 or not 0 <= hits <= trials + 1e-9:
        raise DataError(f"{hits} hits in {trials} trials is not a share")
    if trials == 0:
        return Interval(0.0, 1.0)
    z = float(stats.norm.ppf(confidence))
    share = min(1.0, hits / trials)
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = share * (1 - share) / trials + (z / (2 * trials)) ** 2
    reach = z * math.sqrt(spread) / (1 + z * z / trials)
    low = max(0.0, middle - reach) if hits > 0 else 0.0
    high = min(1.0, middle + reach) if hits < trials else 1.0
    return Interval(min(low, share), max(high, share))


def normal_interval(
    estimate: Estimate,
    *,
    confidence: float = CONFIDENCE,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Return the bounds of an estimate whose error is normal.

    They are cut to ``within``, where the quantity lies, but never so that they leave the value out.
    """
    value = estimate.value
    reach = float(stats.norm.ppf(confidence)) * estimate.error
    least, most = within
    return Interval(min(value, max(least, value - reach)), max(value, min(most, value + reach)))


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
    asked: np.ndarray,
    measured: np.ndarray,
    *,
    rng: np.random.Generator,
    draws: int = 1,
    confidence: float = CONFIDENCE,
) -> Shuffled:
    """Return absolute correlations after shuffling what was asked: the control.

    The quantiles are those at 1 - ``confidence`` and at ``confidence`` over the shufflings.
    """
    values_P = np.array([abs(pearson_r(rng.permutation(asked), measured)) for _ in range(draws)])
    mean = float(values_P.mean())
    low, high = (float(np.quantile(values_P, level)) for level in (1 - confidence, confidence))
    return Shuffled(mean, min(mean, low), max(mean, high), values_P)


def auc(higher: np.ndarray, lower: np.ndarray) -> Estimate:
    """Return P(a score of ``higher`` is above one of ``lower``), ties as half, with its error.

    The error is that of DeLong, DeLong and Clarke-Pearson (1988), which vanishes when the groups
    are separated. So it is never below that of Hanley and McNeil (1982) for an area half a patient
    of the smaller group short of 1: a perfect separation of few patients is not certain.
    Raises DataError when a group is empty and when a score is not finite.
    """
    finite(higher=higher, lower=lower)
    edges = np.unique(np.concatenate([higher, lower]))
    return binned_auc(
        np.bincount(np.searchsorted(edges, higher), minlength=len(edges)),
        np.bincount(np.searchsorted(edges, lower), minlength=len(edges)),
    )


def binned_auc(
    higher_bins: Sequence[int] | np.ndarray, lower_bins: Sequence[int] | np.ndarray
) -> Estimate:
    """Return the area and its error from counts of scores in common rising bins.

    Raises DataError as ``auc``.
    """
    h, low = np.asarray(higher_bins, dtype=float), np.asarray(lower_bins, dtype=float)
    finite(higher_bins=h, lower_bins=low)
    n_high, n_low = h.sum(), low.sum()
    if h.shape != low.shape or n_high < 1 or n_low < 1:
        raise DataError("an area under the curve needs scores in both groups and common bins")
    below = (np.cumsum(low) - low / 2) / n_low
    above = 1 - (np.cumsum(h) - h / 2) / n_high
    value = float(h @ below / n_high)
    variance = _spread(below, h) / n_high + _spread(above, low) / n_low
    return Estimate(value, math.sqrt(max(variance, _least_variance(n_high, n_low))))


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
    hits: Sequence[int],
    control_hits: Sequence[int],
    trials: int,
    *,
    scales: Sequence[float],
    confidence: float = CONFIDENCE,
) -> tuple[float, Interval]:
    """Return the sum over strata of max(0, hits - scale * control hits) / ``trials``, with bounds.

    Every stratum sees the same trials. A control explains the hits of its own stratum and no more:
    one that has more than these pays for no other. The bounds of the two sums are joined by the
    method of variance estimates recovery (Zou and Donner 2008, equation 2): the upper one around
    the value, with the control hits that count; the lower one around the sum with all of them, of
    which the value is never short. The control's reaches as far as if all strata had the largest
    scale, which no mixture of scales exceeds; equal scales lose nothing by it. Value and bounds
    are cut to [0, 1]. Raises DataError without a trial, and for a scale that is not positive.
    """
    if trials < 1 or not hits or min(scales) <= 0:
        raise DataError("there is no trial to compare")
    scaled = [s * c for s, c in zip(scales, control_hits, strict=True)]
    explained = [min(h, c) for h, c in zip(hits, scaled, strict=True)]
    counting = [c / s for c, s in zip(explained, scales, strict=True)]
    value, least = (sum(hits) - sum(explained)) / trials, (sum(hits) - sum(scaled)) / trials
    p_low, p_high = _reaches(hits, trials, confidence=confidence)
    q_low = max(scales) * _reaches(counting, trials, confidence=confidence)[0]
    q_high = max(scales) * _reaches(control_hits, trials, confidence=confidence)[1]
    bounds = (least - math.hypot(p_low, q_high), value, value + math.hypot(p_high, q_low))
    low, middle, high = (min(1.0, max(0.0, bound)) for bound in bounds)
    return middle, Interval(low, high)


def _reaches(hits: Sequence[float], trials: int, *, confidence: float) -> tuple[float, float]:
    """Return how far the bounds of a sum of shares lie below and above it.

    Hits are taken as exclusive, so that the sum is a share; more of them than trials as separate.
    """
    total = sum(hits)
    cases = trials if total <= trials else trials * len(hits)
    low, high = clopper_pearson(total, cases, confidence=confidence)
    return (total - low * cases) / trials, (high * cases - total) / trials


def _least_variance(first: float, second: float) -> float:
    """Return Hanley and McNeil's variance of an area of 1 - 1 / (2 * the smaller group).

    It depends on which group is which; the larger of the two ways is returned.
    """
    area = 1 - 1 / (2 * min(first, second))
    both, one = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    a, b = (float(x) - 1 for x in (first, second))
    spread = max(a * both + b * one, b * both + a * one)
    return float((area * (1 - area) + spread) / (first * second))


def _spread(values: np.ndarray, counts: np.ndarray) -> float:
    n = counts.sum()
    if n < 2:  # noqa: PLR2004 - no variance of one value
        return 0.25
    mean = counts @ values / n
    return float(counts @ (values - mean) ** 2 / (n - 1))
