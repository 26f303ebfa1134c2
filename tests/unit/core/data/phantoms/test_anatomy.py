"""Who a phantom is: draws that stay, coefficients that come back, and a disease that acts."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.data.phantoms.anatomy import (
    EFFECTS,
    Anatomy,
    age_anatomy,
    draw_anatomy,
    with_disease,
)
from vitrael.core.rng import stream

PEOPLE = [draw_anatomy(stream(9, "person", number)) for number in range(900)]


def values(name: str) -> np.ndarray:
    return np.array([getattr(person, name) for person in PEOPLE])


def fit(target: np.ndarray, *causes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return least-squares coefficients of the causes and their standard errors."""
    design = np.stack([*causes, np.ones_like(target)], axis=1)
    found, (rest,), *_ = np.linalg.lstsq(design, target, rcond=None)
    variance = rest / (len(target) - design.shape[1]) * np.linalg.inv(design.T @ design)
    return found[:-1], np.sqrt(np.diag(variance))[:-1]


def test_patients_of_earlier_studies_stay_who_they_are() -> None:
    person = draw_anatomy(stream(1, "patient", 0))
    assert person.age_years == pytest.approx(86.44221422582886, rel=1e-12)
    assert (person.sex, person.brain_ml) == (0, pytest.approx(1159.8498906485474, rel=1e-12))
    assert person.ventricle_ml == pytest.approx(44.85085960776646, rel=1e-12)
    assert person.shape_waves.sum() == pytest.approx(34.13075067448014, rel=1e-12)
    assert person.fold_waves.sum() == pytest.approx(37.21217100440675, rel=1e-12)
    assert person.nuclei[2] == pytest.approx(11.20156897, rel=1e-8)
    older = age_anatomy(person, stream(1, "aging"), years=3)
    assert older.ventricle_ml == pytest.approx(47.441604607884905, rel=1e-12)
    assert older.brain_ml == pytest.approx(1149.4112416327105, rel=1e-12)


def test_regression_recovers_the_effects_of_age_and_sex() -> None:
    log_hippocampus = np.log(values("hippocampus_ml"))
    found, error = fit(log_hippocampus, values("age_years") - 50, values("sex"))
    truth = [EFFECTS["hippocampus_log.per_year"], EFFECTS["hippocampus_log.male"]]
    assert (np.abs(found - truth) < 3 * error).all()
    uncut = (values("brain_ml") > 900) & (values("brain_ml") < 1500)
    found, error = fit(values("brain_ml"), values("age_years") - 50, values("sex"))
    truth = [EFFECTS["brain_ml.per_year"], EFFECTS["brain_ml.male"]]
    assert uncut.mean() > 0.97
    assert (np.abs(found - truth) < 3.5 * error).all()
    # Control: with the ages of other people nothing is found, and the truth is far outside.
    strangers = np.roll(values("age_years"), 1) - 50
    (slope, _), error = fit(log_hippocampus, strangers, values("sex"))
    assert abs(slope) < 3 * error[0] < abs(EFFECTS["hippocampus_log.per_year"])


def test_disease_shrinks_hippocampi_and_widens_ventricles() -> None:
    for person in PEOPLE[:50]:
        ill = with_disease(person)
        assert (person.disease, ill.disease) == (0, 1)
        assert ill.hippocampus_ml == pytest.approx(0.85 * person.hippocampus_ml)
        assert ill.ventricle_ml == pytest.approx(min(1.25 * person.ventricle_ml, 120))
        assert with_disease(ill) is ill
        assert np.array_equal(ill.shape_waves, person.shape_waves)
        assert ill.detail_seed == person.detail_seed


def test_hippocampi_shrink_in_one_patient_at_the_common_rate() -> None:
    for number, person in enumerate(PEOPLE[:20]):
        older = age_anatomy(person, stream(9, "aging", number), years=10)
        loss = np.log(older.hippocampus_ml / person.hippocampus_ml)
        assert loss == pytest.approx(10 * EFFECTS["hippocampus_log.per_year"])
        assert older.detail_seed == person.detail_seed


def test_population_has_the_ages_it_is_asked_for() -> None:
    old = [draw_anatomy(stream(9, n), ages_years=(70, 75)) for n in range(60)]
    ages = np.array([person.age_years for person in old])
    assert 70 <= ages.min() < ages.max() <= 75
    young = [draw_anatomy(stream(9, n), ages_years=(20, 25)) for n in range(60)]
    assert mean_ventricle(old) > 2 * mean_ventricle(young)
    assert [p.sex for p in old] == [p.sex for p in young]  # nothing but age differs


def mean_ventricle(people: list[Anatomy]) -> float:
    return float(np.mean([person.ventricle_ml for person in people]))


def test_effects_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        EFFECTS["brain_ml.male"] = 0.0  # type: ignore[index]
