"""A small predictor of one number, such as age, from features: ridge regression.

It measures synthetic images where no ruler exists. What it says there is worth at most what it
says of real images it has not seen: that ceiling is worked out with it, and belongs beside every
correlation it gives. Axes: B images, E features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.metrics.conditioning import ConditionAudit, audit_condition
from vitrael.core.metrics.features import Extractor, extract_features

FOLDS: Final = 5
_PENALTIES: Final = tuple(float(p) for p in 10.0 ** np.arange(-4, 5))
"""Relative to the count of images, for standardized features."""


@dataclass(frozen=True, slots=True)
class Ridge:
    """A linear rule over standardized features (Hoerl and Kennard 1970)."""

    center_E: np.ndarray
    scale_E: np.ndarray
    weight_E: np.ndarray
    intercept: float
    penalty: float

    def __call__(self, feature_BE: np.ndarray) -> np.ndarray:
        """Return the prediction of each row, ``[B]``."""
        return np.asarray(
            (feature_BE - self.center_E) / self.scale_E @ self.weight_E + self.intercept
        )


@dataclass(frozen=True, slots=True)
class FeaturePredictor:
    """Predicts one number from an image by a ridge regression on an extractor's features."""

    name: str
    extractor: Extractor
    ridge: Ridge
    ceiling: ConditionAudit
    """The audit of real images, each predicted by a rule that never saw its patient."""

    def predict(self, x: torch.Tensor) -> np.ndarray:
        """Return the prediction of each image, float64 ``[B]``, in the units of the target."""
        return self.ridge(extract_features(self.extractor, x))


def fit_predictor(
    images: torch.Tensor,
    target_B: np.ndarray,
    *,
    condition: str,
    extractor: Extractor,
    patients: Sequence[int],
    rng: np.random.Generator,
    folds: int = FOLDS,
) -> FeaturePredictor:
    """Return a predictor of ``condition``, and its ceiling by cross-validation over patients.

    ``patients`` numbers the patient of each image; no patient is on both sides of a fold, neither
    of those that judge nor of those inside that choose the penalty. ``condition`` is ``age_years``
    for an age predictor. Raises DataError for fewer patients than folds and for series of other
    lengths.
    """
    feature_BE = extract_features(extractor, images)
    target, patient = np.asarray(target_B, dtype=np.float64), np.asarray(patients)
    predicted = cross_predict(feature_BE, target, patients=patient, folds=folds, rng=rng)
    name = f"{condition} by ridge regression on {extractor.name}"
    ceiling = audit_condition(
        target, predicted, condition=condition, measurer=f"{name}, cross-validated", rng=rng
    )
    penalty = _choose_penalty(feature_BE, target, _deal(patient, folds, rng), folds)
    return FeaturePredictor(name, extractor, fit_ridge(feature_BE, target, penalty), ceiling)


def cross_predict(
    feature_BE: np.ndarray,
    target_B: np.ndarray,
    *,
    patients: np.ndarray,
    rng: np.random.Generator,
    folds: int = FOLDS,
) -> np.ndarray:
    """Return for each image the prediction of a rule fitted without its patient, ``[B]``.

    Raises DataError as ``fit_predictor``.
    """
    if not len(feature_BE) == len(target_B) == len(patients):
        raise DataError("features, targets and patients are not equally many")
    finite(features=feature_BE, target=target_B)
    outer_B = _deal(patients, folds, rng)
    predicted = np.empty(len(target_B))
    for fold in range(folds):
        out = outer_B == fold
        inner_B = _deal(patients[~out], folds, rng)
        penalty = _choose_penalty(feature_BE[~out], target_B[~out], inner_B, folds)
        predicted[out] = fit_ridge(feature_BE[~out], target_B[~out], penalty)(feature_BE[out])
    return predicted


def fit_ridge(feature_BE: np.ndarray, target_B: np.ndarray, penalty: float) -> Ridge:
    """Return the rule that minimizes the mean squared error plus ``penalty`` times its weights'.

    Features are standardized on these rows; one that is constant is not used.
    """
    center, scale = feature_BE.mean(axis=0), feature_BE.std(axis=0)
    scale = np.where(scale > 0, scale, np.inf)
    u, s, v = np.linalg.svd((feature_BE - center) / scale, full_matrices=False)
    mean = float(target_B.mean())
    shrunk = s / (s**2 + penalty * len(target_B))
    return Ridge(center, scale, v.T @ (shrunk * (u.T @ (target_B - mean))), mean, penalty)


def _choose_penalty(
    feature_BE: np.ndarray, target_B: np.ndarray, fold_B: np.ndarray, folds: int
) -> float:
    errors = np.zeros(len(_PENALTIES))
    for fold in range(folds):
        out = fold_B == fold
        for place, penalty in enumerate(_PENALTIES):
            rule = fit_ridge(feature_BE[~out], target_B[~out], penalty)
            errors[place] += np.square(rule(feature_BE[out]) - target_B[out]).sum()
    return _PENALTIES[int(errors.argmin())]


def _deal(patients: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Return the fold of each image; all images of a patient are in one."""
    names, place_B = np.unique(patients, return_inverse=True)
    if not 2 <= folds <= len(names):  # noqa: PLR2004 - one fold leaves nothing to fit
        raise DataError(
            f"{len(names)} patients cannot be dealt into {folds} folds",
            fix="give more patients, or two folds or more",
        )
    return np.asarray(rng.permutation(len(names))[place_B] % folds)
