from __future__ import annotations

from typing import Protocol

import numpy as np
import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.metrics.features import anatomy_extractor, extract_features
from vitrael.core.metrics.predictor import (
    PredictedAudit,
    _deal,
    audit_predicted,
    cross_fit,
    fit_ridge,
)
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


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_feature_that_says_nothing_new_gives_finite_rules(penalty: float) -> None:
    line, y = np.arange(9.0), np.arange(9.0) * 2 + 1
    constant, twice = (np.column_stack([line, other]) for other in (np.ones(9), line))
    for x in (constant, twice):
        found = fit_ridge(x, y, penalty)(x)
        assert np.isfinite(found).all()
        if penalty == 0:
            np.testing.assert_allclose(found, y)


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
        np.corrcoef(y, cross_fit(x, y, patients=patients, rng=stream(2, "folds"))(x))[0, 1]
        for patients in (who, np.arange(120))
    )
    assert abs(apart) < 0.4
    assert mixed > 0.8


def _audit(real: Drawn, target: np.ndarray, drawn_BE: np.ndarray | None = None) -> PredictedAudit:
    real_BE = extract_features(anatomy_extractor(), real.images)
    return audit_predicted(
        real_BE,
        real_BE if drawn_BE is None else drawn_BE,
        target,
        condition="age_years",
        extractor="anatomy-v1",
        patients=range(len(target)),
        rng=stream(3, "folds"),
    )


def test_age_is_predicted_and_shuffled_age_is_not(real_slices: Drawn) -> None:
    ages = real_slices.ages
    found, chance = (
        _audit(real_slices, target) for target in (ages, stream(3, "shuffle").permutation(ages))
    )
    assert found.ceiling.r.low > 0.5
    assert found.ceiling.p < 0.01
    assert found.ceiling.mae.value < found.ceiling.permuted_mae
    assert "ridge regression on anatomy-v1" in found.ceiling.r.method
    assert chance.ceiling.r.low < 0.2


def test_repeated_real_images_reach_the_ceiling_and_do_not_pass_it(real_slices: Drawn) -> None:
    # A number that only a rule that saw the patient could know.
    target = stream(4, "shuffle").permutation(real_slices.ages)
    found = _audit(real_slices, target)
    assert found.drawn == found.ceiling
    real_BE = extract_features(anatomy_extractor(), real_slices.images)
    by_heart = np.corrcoef(fit_ridge(real_BE, target, 1e-4)(real_BE), target)[0, 1]
    assert by_heart > found.drawn.r.value + 0.3  # the control


def test_images_of_other_ages_fall_short_of_the_ceiling(real_slices: Drawn) -> None:
    real_BE = extract_features(anatomy_extractor(), real_slices.images)
    deaf = _audit(real_slices, real_slices.ages, stream(5, "deaf").permutation(real_BE))
    assert deaf.drawn.r.high < deaf.ceiling.r.low


def test_images_without_partner_are_refused(real_slices: Drawn) -> None:
    real_BE = extract_features(anatomy_extractor(), real_slices.images)
    with pytest.raises(DataError, match="as many images"):
        _audit(real_slices, real_slices.ages, real_BE[1:])


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(DataError, match="3 patients cannot be dealt into 5 folds"):
        cross_fit(np.ones((6, 2)), np.ones(6), patients=np.repeat([1, 2, 3], 2), rng=stream(1, "f"))
    with pytest.raises(DataError, match="not equally many"):
        cross_fit(np.ones((6, 2)), np.ones(5), patients=np.arange(6), rng=stream(1, "f"))
