"""A small predictor of one number, such as age, from features: ridge regression.

It measures synthetic images where no ruler exists. What it says there is worth at most what it
says of real images it has not seen: that ceiling is worked out with it, and belongs beside every
correlation it gives. Axes: B images, E features.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.metrics.conditioning import ConditionAudit, audit_condition

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
class CrossRule:
    """One rule for each fold: every image is judged by the one that never saw its patient."""

    rules: tuple[Ridge, ...]
    fold_B: np.ndarray

    def __call__(self, feature_BE: np.ndarray) -> np.ndarray:
        """Return the prediction of each row, ``[B]``; rows stand as those of the fit did.

        Raises DataError for another number of rows.
        """
        if len(feature_BE) != len(self.fold_B):
            raise DataError(
                "a cross-validated rule judges as many images as it was fitted to",
                why=f"it was given {len(feature_BE)} for {len(self.fold_B)}",
                fix="give one image for each of the fit, in their order",
            )
        predicted = np.empty(len(feature_BE))
        for fold, rule in enumerate(self.rules):
            own = self.fold_B == fold
            predicted[own] = rule(feature_BE[own])
        return predicted


@dataclass(frozen=True, slots=True)
class PredictedAudit:
    """What a predictor says of images that were asked for, beside what it says of real ones."""

    drawn: ConditionAudit
    ceiling: ConditionAudit
    """Of the real images themselves: no generator is expected above it."""


def audit_predicted(
    real_BE: np.ndarray,
    drawn_BE: np.ndarray,
    target_B: np.ndarray,
    *,
    condition: str,
    extractor: str,
    patients: Sequence[int],
    rng: np.random.Generator,
    folds: int = FOLDS,
) -> PredictedAudit:
    """Return the audit of a condition that is read by a ridge regression on real images' features.

    Row for row the drawn image was asked for with the target of the real one. Both are judged by
    the rule that never saw the patient: a generator that repeats the real images reaches the
    ceiling and does not pass it. ``patients`` numbers the patient of each image; ``condition`` is
    ``age_years`` for ages. Raises DataError for fewer patients than folds, for series of other
    lengths, and as ``audit_condition``.
    """
    target = np.asarray(target_B, dtype=np.float64)
    rule = cross_fit(real_BE, target, patients=np.asarray(patients), folds=folds, rng=rng)
    measurer = f"ridge regression on {extractor}, cross-validated on real images"
    ceiling, drawn = (  # by one stream each, which draw the same: equal images, equal audits
        audit_condition(target, rule(features), condition=condition, measurer=measurer, rng=own)
        for features, own in ((real_BE, deepcopy(rng)), (drawn_BE, rng))
    )
    return PredictedAudit(drawn, ceiling)


def cross_fit(
    feature_BE: np.ndarray,
    target_B: np.ndarray,
    *,
    patients: np.ndarray,
    rng: np.random.Generator,
    folds: int = FOLDS,
) -> CrossRule:
    """Return rules of which each was fitted without the patients of its fold.

    No patient is on both sides of a fold, neither of those that judge nor of those inside that
    choose the penalty. Raises DataError for fewer patients than folds and for series of other
    lengths.
    """
    if not len(feature_BE) == len(target_B) == len(patients):
        raise DataError("features, targets and patients are not equally many")
    finite(features=feature_BE, target=target_B)
    outer_B = _deal(patients, folds, rng)
    rules = []
    for fold in range(folds):
        seen = outer_B != fold
        inner_B = _deal(patients[seen], folds, rng)
        penalty = _choose_penalty(feature_BE[seen], target_B[seen], inner_B, folds)
        rules.append(fit_ridge(feature_BE[seen], target_B[seen], penalty))
    return CrossRule(tuple(rules), outer_B)


def fit_ridge(feature_BE: np.ndarray, target_B: np.ndarray, penalty: float) -> Ridge:
    """Return the rule that minimizes the mean squared error plus ``penalty`` times its weights'.

    Features are standardized on these rows; one that is constant is not used. Where a penalty of
    0 leaves many rules as good, it is the one of least weights.
    """
    center, scale = feature_BE.mean(axis=0), feature_BE.std(axis=0)
    scale = np.where(scale > 0, scale, np.inf)
    u, s, v = np.linalg.svd((feature_BE - center) / scale, full_matrices=False)
    mean = float(target_B.mean())
    counts = s > np.finfo(s.dtype).eps * max(feature_BE.shape) * s.max(initial=0.0)
    shrunk = np.divide(s, s**2 + penalty * len(target_B), out=np.zeros_like(s), where=counts)
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
