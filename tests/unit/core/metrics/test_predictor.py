from __future__ import annotations

from typing import Protocol

import numpy as np
import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.interfaces import Predictor
from vitrael.core.metrics.features import anatomy_extractor
from vitrael.core.metrics.predictor import _deal, cross_predict, fit_predictor, fit_ridge
from vitrael.core.rng import stream


class Drawn(Protocol):
    images: torch.Tensor
    ages: np.ndarray


def test_ridge_without_penalty_is_least_squares() -> None:
    rng = stream(1, "ridge")
    x = rng.normal(size=(50, 4)) * [1, 10, 0.1, 1] + 3
    y = x @ [1, -2, 3, 0] + 5 + rng.normal(size=50)
    design = np.column_stack([x, np.ones(50)])
    best = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(fit_ridge(x, y, 0.0)(x), best)
    assert np.ptp(fit_ridge(x, y, 1e9)(x)) < 1e-3


def test_a_constant_feature_is_not_used() -> None:
    x = np.column_stack([np.arange(9.0), np.ones(9)])
    rule = fit_ridge(x, np.arange(9.0), 1e-9)
    np.testing.assert_allclose(rule(x + np.array([0, 100])), np.arange(9.0), atol=1e-6)


def test_no_patient_is_on_both_sides() -> None:
    patients = np.repeat(np.arange(13), 3)
    fold_B = _deal(patients, 4, stream(1, "deal"))
    assert all(len(set(fold_B[patients == p])) == 1 for p in range(13))
    assert set(fold_B) == {0, 1, 2, 3}


def test_the_ceiling_of_noise_is_chance_and_leaking_patients_would_raise_it() -> None:
    rng = stream(2, "leak")
    who = np.repeat(np.arange(30), 4)
    x = rng.normal(size=(30, 40))[who] + 0.1 * rng.normal(size=(120, 40))
    y = rng.normal(size=30)[who]  # a patient's own number, which nothing but the patient tells
    apart, mixed = (
        np.corrcoef(y, cross_predict(x, y, patients=patients, rng=stream(2, "folds")))[0, 1]
        for patients in (who, np.arange(120))
    )
    assert abs(apart) < 0.4
    assert mixed > 0.8


def test_age_is_predicted_and_shuffled_age_is_not(
    real_slices: Drawn,
) -> None:
    images, ages = real_slices.images, real_slices.ages
    found, chance = (
        fit_predictor(
            images,
            target,
            condition="age_years",
            extractor=anatomy_extractor(),
            patients=range(len(ages)),
            rng=stream(3, "folds"),
        )
        for target in (ages, stream(3, "shuffle").permutation(ages))
    )
    assert found.name == "age_years by ridge regression on anatomy-v1"
    assert isinstance(found, Predictor)
    assert found.predict(images).shape == ages.shape
    assert found.ceiling.r.low > 0.5
    assert found.ceiling.p < 0.01
    assert found.ceiling.mae.value < found.ceiling.permuted_mae
    assert chance.ceiling.r.low < 0.2
    assert np.corrcoef(found.predict(images), ages)[0, 1] > found.ceiling.r.value


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(DataError, match="3 patients cannot be dealt into 5 folds"):
        cross_predict(
            np.ones((6, 2)), np.ones(6), patients=np.repeat([1, 2, 3], 2), rng=stream(1, "f")
        )
    with pytest.raises(DataError, match="not equally many"):
        cross_predict(np.ones((6, 2)), np.ones(5), patients=np.arange(6), rng=stream(1, "f"))
