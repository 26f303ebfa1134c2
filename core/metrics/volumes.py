"""Volumes of a structure in real and in synthetic images: do they have one distribution?

Both distances are of whole distributions, so a set that asks for its volumes evenly differs from a
population by design: compare with a set whose conditions were drawn as the real ones are.
Axes: N real, M synthetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.metrics.bootstrap import bootstrap, centered_interval
from vitrael.core.metrics.intervals import CONFIDENCE, UNIT
from vitrael.core.metrics.measured import Measured

Distance = Callable[[np.ndarray, np.ndarray], float]

_DRAWS: Final = 1000
_FEWEST: Final = 4


@dataclass(frozen=True, slots=True)
class VolumeDistance:
    """How far two distributions of a volume lie apart; 0 is the target of both."""

    kolmogorov_smirnov: Measured
    """The largest difference of the shares below any volume, 0 to 1."""
    p: float
    """Of a difference as large between two samples of one distribution (exact where it can be)."""
    wasserstein: Measured
    """By how much volumes must move on average, in their own unit."""


def compare_volumes(
    real_N: np.ndarray,
    synthetic_M: np.ndarray,
    *,
    structure: str,
    measurer: str,
    rng: np.random.Generator,
    draws: int = _DRAWS,
    confidence: float = CONFIDENCE,
) -> VolumeDistance:
    """Return the Kolmogorov-Smirnov and the Wasserstein-1 distance of two samples of volumes.

    ``structure`` is such as ``ventricle_ml``. The intervals are the bootstrap's spread; both
    distances are biased upward at small counts, and two samples of one distribution are not at 0:
    p says what that means. They see lost modes where these differ in the structure. They see blur
    only as far as the measurer is misled by it. Raises DataError for fewer than 4 volumes and for
    what is not finite.
    """
    real, synthetic = (np.asarray(x, dtype=np.float64) for x in (real_N, synthetic_M))
    if any(x.ndim != 1 or len(x) < _FEWEST for x in (real, synthetic)):
        raise DataError(
            f"the volumes {structure} cannot be compared",
            why=f"they are {list(real.shape)} and {list(synthetic.shape)}",
            fix=f"give one volume for each of at least {_FEWEST} images",
        )
    finite(real=real, synthetic=synthetic)
    how = (
        f"{len(synthetic)} against {len(real)} real, measured by {measurer}, "
        f"bootstrap of {draws} draws"
    )

    def measured(kind: str, distance: Distance, most: float) -> Measured:
        value = distance(real, synthetic)
        again = bootstrap(
            lambda i, j: distance(real[i], synthetic[j]),
            (len(real), len(synthetic)),
            rng=rng,
            draws=draws,
        )
        low, high = centered_interval(value, again, confidence=confidence, within=(0.0, most))
        name = f"{structure}_{kind}"
        return Measured(name, value, low, high, len(synthetic), "images", how, "", confidence)

    return VolumeDistance(
        kolmogorov_smirnov=measured("kolmogorov_smirnov", _largest_gap, UNIT[1]),
        p=float(stats.ks_2samp(real, synthetic).pvalue),
        wasserstein=measured("wasserstein_1", _mean_move, np.inf),
    )


def _mean_move(first_N: np.ndarray, second_M: np.ndarray) -> float:
    return float(stats.wasserstein_distance(first_N, second_M))


def _largest_gap(first_N: np.ndarray, second_M: np.ndarray) -> float:
    edges = np.concatenate([first_N, second_M])
    shares = [
        np.searchsorted(np.sort(x), edges, side="right") / len(x) for x in (first_N, second_M)
    ]
    return float(np.abs(shares[0] - shares[1]).max())
