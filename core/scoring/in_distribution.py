"""How much an image is like those that an expert learned from: four scores, higher is more foreign.

*Neural mean discrepancy* (Dong et al. 2022, as Bransby et al. 2024 weight experts with it): how far
the mean activity of each layer is from that over the expert's own images. Here each map is measured
in its own standard deviations, and a layer says one number: the root mean square over its maps. An
expert publishes two vectors for it, and an image has as many numbers as the network has layers.
Beside it stand the largest softmax probability (Hendrycks and Gimpel 2017), the Mahalanobis
distance to the nearest class (Lee et al. 2018), and that distance less the one to all classes
together (Ren et al. 2021). Axes: B images, A maps, L layers, E features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.errors import DataError

FEWEST: Final = 2
_SHRINKAGE: Final = 0.1
"""Share of the mean variance in a covariance of few images (towards a multiple of the identity)."""
_FLATTEST: Final = 1e-6
_SPREADS: Final = 2.0
"""Above the mean: the largest of several layers leans to the right of a normal."""
_NO_LIMIT: Final = 1e6


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ActivityProfile:
    """Mean and standard deviation of each map's activity over an expert's own images."""

    mean_A: np.ndarray
    std_A: np.ndarray
    layers: tuple[int, ...]
    """How many maps each layer has, in the order of the maps."""

    def discrepancy(self, activity_BA: np.ndarray) -> np.ndarray:
        """Return ``[B, L]``: log of the root mean square discrepancy of each layer, 0 is usual."""
        finite(activity=activity_BA)
        if activity_BA.ndim != 2 or activity_BA.shape[1] != sum(self.layers):  # noqa: PLR2004
            raise DataError(
                "the activity is not that of the expert's network",
                why=f"{sum(self.layers)} maps are expected",
                fix="ask the network that the profile was taken of",
            )
        square_BA = np.square((activity_BA - self.mean_A) / self.std_A)
        parts = np.split(square_BA, np.cumsum(self.layers)[:-1], axis=1)
        mean_BL = np.stack([part.mean(axis=1) for part in parts], axis=1)
        return np.asarray(0.5 * np.log(np.maximum(mean_BL, _FLATTEST)), dtype=np.float32)


def profile_activity(activity_BA: np.ndarray, layers: Sequence[int]) -> ActivityProfile:
    """Return the profile of an expert's own images; DataError for fewer than two of them."""
    finite(activity=activity_BA)
    if len(activity_BA) < FEWEST:
        raise DataError("a profile needs the activity of two images or more")
    mean_A, std_A = activity_BA.mean(axis=0), activity_BA.std(axis=0)
    floor = max(float(std_A.mean()) * 1e-2, _FLATTEST)  # a dead map must not decide everything
    return ActivityProfile(mean_A, np.maximum(std_A, floor), tuple(layers))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ScoreCalibration:
    """How the discrepancies of an expert's own images are spread that it has not learned from."""

    mean_L: np.ndarray
    std_L: np.ndarray
    center: float
    """Mean of the largest of an image's layers, after each was put on its own scale."""
    spread: float
    """Standard deviation of the same."""

    @property
    def is_known(self) -> bool:
        """Whether images were held out to take it from."""
        return self.spread < _NO_LIMIT

    @property
    def limit(self) -> float:
        """What that largest exceeds in about one of twenty of the expert's own images."""
        return self.center + _SPREADS * self.spread

    def scale(self, discrepancy_BL: np.ndarray) -> np.ndarray:
        """Return ``[B, L]`` on the scale of the expert's own images: mean 0, deviation 1."""
        return np.asarray((discrepancy_BL - self.mean_L) / self.std_L, dtype=np.float32)

    def is_foreign(self, discrepancy_BL: np.ndarray) -> np.ndarray:
        """Return, as bool ``[B]``, which images are beyond the limit in a layer."""
        return np.asarray(self.scale(discrepancy_BL).max(axis=1) > self.limit)


def calibrate_scores(discrepancy_BL: np.ndarray) -> ScoreCalibration:
    """Return the calibration on images that were held out; DataError for fewer than two."""
    finite(discrepancy=discrepancy_BL)
    if len(discrepancy_BL) < FEWEST:
        raise DataError("scores cannot be calibrated", why="two held-out images are needed")
    mean_L = discrepancy_BL.mean(axis=0)
    std_L = discrepancy_BL.std(axis=0)
    std_L = np.maximum(std_L, max(1e-2 * float(std_L.mean()), _FLATTEST))  # nor a dead layer
    largest_B = ((discrepancy_BL - mean_L) / std_L).max(axis=1)
    spread = max(float(largest_B.std()), _FLATTEST)
    return ScoreCalibration(mean_L, std_L, float(largest_B.mean()), spread)


def without_calibration(layers: int) -> ScoreCalibration:
    """Return the one that changes no score, and by which no image is foreign."""
    return ScoreCalibration(np.zeros(layers), np.ones(layers), 0.0, _NO_LIMIT)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ClassGaussians:
    """Means of the features of each class, one covariance within and one of all together."""

    mean_KE: np.ndarray
    within_EE: np.ndarray
    center_E: np.ndarray
    total_EE: np.ndarray

    def distance(self, feature_BE: np.ndarray) -> np.ndarray:
        """Return ``[B]``: squared Mahalanobis distance to the nearest class."""
        return self._to_classes(feature_BE)

    def relative_distance(self, feature_BE: np.ndarray) -> np.ndarray:
        """Return ``[B]``: the distance less that to all classes together."""
        overall_B = _squared(feature_BE - self.center_E, self.total_EE)
        return np.asarray(self._to_classes(feature_BE) - overall_B)

    def _to_classes(self, feature_BE: np.ndarray) -> np.ndarray:
        finite(feature=feature_BE)
        each = [_squared(feature_BE - mean_E, self.within_EE) for mean_E in self.mean_KE]
        return np.asarray(np.min(each, axis=0))


def fit_gaussians(feature_BE: np.ndarray, label_B: np.ndarray) -> ClassGaussians:
    """Return the Gaussians of labelled features; DataError for fewer than two images."""
    finite(feature=feature_BE)
    if len(feature_BE) < FEWEST or len(feature_BE) != len(label_B):
        raise DataError("a distance needs the features of two images or more, each with a label")
    classes = np.unique(label_B)
    mean_KE = np.stack([feature_BE[label_B == own].mean(axis=0) for own in classes])
    residual_BE = feature_BE - mean_KE[np.searchsorted(classes, label_B)]
    center_E = feature_BE.mean(axis=0)
    return ClassGaussians(mean_KE, _spread(residual_BE), center_E, _spread(feature_BE - center_E))


def toward_round(covariance_EE: np.ndarray) -> np.ndarray:
    """Return a covariance of few images, a tenth of the way to a round one of its size."""
    size = len(covariance_EE)
    round_EE = np.eye(size) * max(float(np.trace(covariance_EE)) / size, _FLATTEST)
    return np.asarray((1 - _SHRINKAGE) * covariance_EE + _SHRINKAGE * round_EE)


def _spread(residual_BE: np.ndarray) -> np.ndarray:
    return toward_round(residual_BE.T @ residual_BE / len(residual_BE))


def low_confidence(logit_BK: np.ndarray) -> np.ndarray:
    """Return ``[B]``: one minus the largest softmax probability."""
    finite(logit=logit_BK)
    shifted = logit_BK - logit_BK.max(axis=1, keepdims=True)
    return np.asarray(1 - 1 / np.exp(shifted).sum(axis=1))


def _squared(offset_BE: np.ndarray, covariance_EE: np.ndarray) -> np.ndarray:
    return np.asarray((offset_BE * np.linalg.solve(covariance_EE, offset_BE.T).T).sum(axis=1))
