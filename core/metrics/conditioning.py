"""Did the images become what was asked for? Asked, sampled, measured, and held against chance.

One condition at a time: what was asked of each image and what a measurer found in it, who never saw
the question. The measurer has errors of its own: its ceiling is the same audit on real images,
asked by their truth. Axes: B images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.metrics.bootstrap import bootstrap, centered_interval
from vitrael.core.metrics.intervals import CONFIDENCE, pearson_interval, pearson_r, permuted_r
from vitrael.core.metrics.measured import Measured

PERMUTATIONS: Final = 1000
_DRAWS: Final = 1000
_FEWEST: Final = 4


@dataclass(frozen=True, slots=True)
class ConditionAudit:
    """How well one condition was obeyed, with the control beside it."""

    condition: str
    r: Measured
    """Pearson's correlation of asked and measured; 1 is the target."""
    mae: Measured
    """Mean absolute error, in the condition's own units; 0 is the target."""
    permuted_r: Measured
    """Mean absolute correlation after shuffling what was asked, with its quantiles."""
    permuted_mae: float
    """Mean absolute error over all orders: what images have that were asked for nothing."""
    p: float
    """Share of shufflings, the order as it is among them, that correlate at least as much."""


def audit_condition(
    asked_B: np.ndarray,
    measured_B: np.ndarray,
    *,
    condition: str,
    measurer: str,
    rng: np.random.Generator,
    permutations: int = PERMUTATIONS,
    confidence: float = CONFIDENCE,
) -> ConditionAudit:
    """Return correlation, error and permutation control of one condition.

    r has Fisher's interval, the error that of 1,000 bootstrap draws over images. The smallest p is
    ``1 / (permutations + 1)`` (Phipson and Smyth 2010). Raises DataError for series of different
    lengths, for fewer than 4 images, for what is not finite, and where asked or measured are all
    the same: such a correlation does not exist.
    """
    asked, measured = (np.asarray(x, dtype=np.float64) for x in (asked_B, measured_B))
    _check(asked, measured, condition)
    n, r = len(asked), pearson_r(asked, measured)
    low, high = pearson_interval(r, n, confidence=confidence)
    how = f"Pearson r, Fisher's interval, measured by {measurer}"
    correlation = Measured(f"{condition}_r", r, low, high, n, "images", how, "", confidence)
    control = permuted_r(asked, measured, rng=rng, draws=permutations, confidence=confidence)
    reached = int((control.values_P >= abs(r) - 1e-12).sum())
    error_B = np.abs(asked - measured)
    return ConditionAudit(
        condition=condition,
        r=correlation,
        mae=_mean_error(error_B, f"{condition}_mae", measurer, rng=rng, confidence=confidence),
        permuted_r=Measured(
            name=f"{condition}_permuted_r",
            value=control.mean,
            low=control.low,
            high=control.high,
            n=permutations,
            unit="permutations",
            method="mean |r| with what was asked shuffled; bounds are quantiles",
            confidence=confidence,
        ),
        permuted_mae=float(np.mean([np.abs(one - measured).mean() for one in asked])),
        p=(reached + 1) / (permutations + 1),
    )


def _mean_error(
    error_B: np.ndarray, name: str, measurer: str, *, rng: np.random.Generator, confidence: float
) -> Measured:
    value = float(error_B.mean())
    draws = bootstrap(lambda i: float(error_B[i].mean()), (len(error_B),), rng=rng, draws=_DRAWS)
    low, high = centered_interval(value, draws, confidence=confidence, within=(0.0, np.inf))
    how = f"mean absolute error, bootstrap of {_DRAWS} draws, measured by {measurer}"
    return Measured(name, value, low, high, len(error_B), "images", how, "", confidence)


def _check(asked: np.ndarray, measured: np.ndarray, condition: str) -> None:
    if asked.ndim != 1 or asked.shape != measured.shape or len(asked) < _FEWEST:
        raise DataError(
            f"the condition {condition} cannot be audited",
            why=f"{list(asked.shape)} were asked and {list(measured.shape)} measured",
            fix=f"give one number asked and one measured for each of at least {_FEWEST} images",
        )
    finite(asked=asked, measured=measured)
    for name, series in (("asked", asked), ("measured", measured)):
        if np.ptp(series) == 0:
            raise DataError(
                f"the condition {condition} cannot be audited",
                why=f"what was {name} is the same for every image",
                fix="ask for a range of values",
            )
