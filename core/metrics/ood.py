"""How well a score finds foreign images, and how well a map finds the place.

Every score is higher for what is more foreign. An area under the ROC curve does not depend on how
many foreign images there are; average precision and Dice do, so the share of foreign voxels stands
beside them: it is the average precision of a map that knows nothing.

Axes: B images (one for each patient), N scores or voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import CONFIDENCE, UNIT, Interval, auc, normal_interval

_BINS: Final = 4_096
"""Over which the maps of many images are resampled: finest at the top, where lesions are."""
_BETTER_THAN_CHANCE: Final = 0.5


class BestDice(NamedTuple):
    """The largest Dice over all thresholds, chosen on the truth itself: a ceiling, no result."""

    value: float
    threshold: float
    """Voxels at or above it count as foreign."""


@dataclass(frozen=True, slots=True)
class Detection:
    """How well one score tells foreign from familiar images."""

    auroc: float
    interval: Interval
    """Two one-sided bounds."""
    false_alarms: float
    """Share of familiar images above the score that 95 % of the foreign ones reach; 0 is best."""
    foreign_images: int
    familiar_images: int

    @property
    def verdict(self) -> str:
        """``foreign``, ``inverted`` (found too familiar) or ``no difference``."""
        if self.interval.low > _BETTER_THAN_CHANCE:
            return "foreign"
        return "inverted" if self.interval.high < _BETTER_THAN_CHANCE else "no difference"


@dataclass(frozen=True, slots=True)
class MapQuality:
    """How well error maps show where a lesion is; the intervals resample images, not voxels."""

    average_precision: float
    average_precision_interval: Interval
    dice: BestDice
    dice_interval: Interval
    prevalence: float
    """Share of voxels in a lesion: the average precision of a map without information."""
    images: int


def detect(
    foreign: np.ndarray, familiar: np.ndarray, *, confidence: float = CONFIDENCE
) -> Detection:
    """Return the area under the ROC curve with its interval, and the false alarms at 95 %.

    Raises DataError for an empty group and for a score that is not finite.
    """
    area = auc(foreign, familiar)
    return Detection(
        auroc=area.value,
        interval=normal_interval(area, confidence=confidence, within=UNIT),
        false_alarms=false_alarm_share(foreign, familiar),
        foreign_images=len(foreign),
        familiar_images=len(familiar),
    )


def false_alarm_share(foreign: np.ndarray, familiar: np.ndarray, *, caught: float = 0.95) -> float:
    """Return the share of familiar scores at or above a threshold that ``caught`` of foreign pass.

    The threshold is the largest one that at least this share of the foreign scores reaches.
    """
    finite(foreign=foreign, familiar=familiar)
    if not len(foreign) or not len(familiar):
        raise DataError("a share of false alarms needs scores in both groups")
    kept = int(np.ceil(caught * len(foreign) - 1e-9))
    threshold = np.sort(foreign)[len(foreign) - kept]
    return float((familiar >= threshold).mean())


def average_precision(score_N: np.ndarray, foreign_N: np.ndarray) -> float:
    """Return the area under the precision-recall curve as a sum of steps; ties are one step.

    That is the mean of the precision at the scores of foreign voxels, without interpolation.
    Raises DataError when nothing is foreign, for other shapes and for scores that are not finite.
    """
    _, hits, calls = _falling_counts(score_N, foreign_N)
    return _average_precision(hits, calls)


def best_dice(score_N: np.ndarray, foreign_N: np.ndarray) -> BestDice:
    """Return the largest Dice that any threshold of the scores reaches; raises as above."""
    edges, hits, calls = _falling_counts(score_N, foreign_N)
    dice = 2 * hits / (calls + hits[-1])
    best = int(dice.argmax())
    return BestDice(float(dice[best]), float(edges[best]))


def judge_maps(
    map_B: np.ndarray,
    mask_B: np.ndarray,
    *,
    rng: np.random.Generator,
    draws: int = 500,
    confidence: float = CONFIDENCE,
) -> MapQuality:
    """Return average precision and best Dice over the voxels of all images, with intervals.

    Each of ``draws`` resamples takes images with replacement; its threshold for Dice is chosen
    anew. Values and intervals are both taken over 4096 bins, whose counts fall geometrically to
    that of the single highest voxel. Raises DataError as ``average_precision``.
    """
    if map_B.shape != mask_B.shape or not len(map_B):
        raise DataError("every error map needs a mask of its shape")
    score_BN, foreign_BN = map_B.reshape(len(map_B), -1), mask_B.reshape(len(map_B), -1) != 0
    finite(map_B=score_BN)
    if not foreign_BN.any():
        raise DataError("nothing is foreign in any mask, so there is nothing to find")
    cuts = _cuts(score_BN)
    bin_BN = len(cuts) - np.searchsorted(cuts[::-1], score_BN, side="right")
    hits_BK = _histograms(bin_BN, foreign_BN, len(cuts))
    calls_BK = _histograms(bin_BN, np.ones_like(foreign_BN), len(cuts))
    found = []
    for _ in range(draws):
        rows = rng.integers(len(map_B), size=len(map_B))
        hits, calls = hits_BK[rows].sum(0).cumsum(), calls_BK[rows].sum(0).cumsum()
        if hits[-1]:
            found.append((_average_precision(hits, calls), float(_dice(hits, calls).max())))
    hits, calls = hits_BK.sum(0).cumsum(), calls_BK.sum(0).cumsum()
    dice, precision = _dice(hits, calls), _average_precision(hits, calls)
    best = BestDice(float(dice.max()), float(cuts[dice.argmax()]))
    bounds = [np.quantile(found, level, axis=0) for level in (1 - confidence, confidence)]
    return MapQuality(
        average_precision=precision,
        average_precision_interval=_around(precision, float(bounds[0][0]), float(bounds[1][0])),
        dice=best,
        dice_interval=_around(best.value, float(bounds[0][1]), float(bounds[1][1])),
        prevalence=float(foreign_BN.mean()),
        images=len(map_B),
    )


def _cuts(score_BN: np.ndarray) -> np.ndarray:
    """Return falling thresholds, the least of which every score reaches."""
    ranked = np.sort(score_BN, axis=None)[::-1]
    ranks = np.unique(np.geomspace(1, ranked.size, min(_BINS, ranked.size)).astype(np.int64)) - 1
    return np.unique(ranked[ranks])[::-1]


def _falling_counts(
    score_N: np.ndarray, foreign_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return falling thresholds and, at or above each, the foreign voxels and all voxels."""
    score, foreign = score_N.ravel(), foreign_N.ravel() != 0
    finite(score_N=score)
    if score.shape != foreign.shape or not foreign.any():
        raise DataError(
            "average precision and Dice need a score for every voxel",
            why="the mask is empty or has another shape",
        )
    edges, where = np.unique(score, return_inverse=True)
    hits = np.bincount(where, weights=foreign, minlength=len(edges))[::-1].cumsum()
    calls = np.bincount(where, minlength=len(edges))[::-1].cumsum()
    return edges[::-1], hits, calls


def _average_precision(hits: np.ndarray, calls: np.ndarray) -> float:
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float(gained @ (hits / np.maximum(calls, 1)))


def _dice(hits: np.ndarray, calls: np.ndarray) -> np.ndarray:
    return np.asarray(2 * hits / (calls + hits[-1]))


def _histograms(bin_BN: np.ndarray, counted_BN: np.ndarray, bins: int) -> np.ndarray:
    rows = [
        np.bincount(where[counted], minlength=bins)
        for where, counted in zip(bin_BN, counted_BN, strict=True)
    ]
    return np.stack(rows).astype(np.float64)


def _around(value: float, low: float, high: float) -> Interval:
    return Interval(min(value, low), max(value, high))
