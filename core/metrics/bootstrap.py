"""Intervals for numbers that have no formula of their own: resampling and leaving one out.

The unit is a row: callers whose patients have several scans resample patients. Axes: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import CONFIDENCE, Interval

Indices = np.ndarray
"""Row numbers, drawn with replacement."""

DRAWS: Final = 200
_FEWEST: Final = 2


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
