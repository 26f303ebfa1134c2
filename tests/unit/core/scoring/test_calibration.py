"""A calibration is fitted once, stored whole, and refuses what it was not fitted with."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from vitrael.core.digest import digest_json
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.rng import stream
from vitrael.core.scoring.calibration import (
    LEAST_IMAGES,
    SCORES,
    Calibration,
    fit_calibration,
    read_calibration,
)
from vitrael.core.weights import pack_tensors, unpack_tensors

NAMES = ["square/0", "square/1", "gradient/0", "gradient/1", "offset/0", "latent_energy"]
FACTS = {"names": NAMES, "levels": [0.5, 2.0], "seed": 1, "identity": {"codec": "sha256:a"}}
SCALE = np.array([1.0, 3.0, 0.1, 0.3, 0.01, 5.0])


def drawn(count: int, *name: str, shift: float = 0.0) -> np.ndarray:
    rng = stream(1, "features", *name)
    common = rng.normal(size=(count, 1))
    return 10 * SCALE + SCALE * (0.8 * common + 0.6 * rng.normal(size=(count, 6)) + shift)


def fitted(count: int = 80, **changes: np.ndarray) -> Calibration:
    maps = {"map_mean": np.full((4, 5), 0.1), "map_std": np.full((4, 5), 0.02)} | changes
    return fit_calibration(drawn(count, "validation"), FACTS, **maps)


def test_z_scores_of_familiar_images_have_mean_0_and_spread_1() -> None:
    z = fitted(400).standardize(drawn(2_000, "test"))
    np.testing.assert_allclose(z.mean(0), 0, atol=0.15)
    np.testing.assert_allclose(z.std(0), 1, atol=0.15)


def test_one_sided_score_is_the_published_mean_of_z() -> None:
    calibration, feature = fitted(), drawn(30, "test")
    z = calibration.standardize(feature)
    np.testing.assert_allclose(calibration.score(feature)["one_sided"], z[:, :4].mean(1))


def test_two_sided_scores_rise_on_both_sides_and_the_published_one_on_one() -> None:
    calibration = fitted()
    familiar, high, low = (
        {k: v.mean() for k, v in calibration.score(drawn(200, "test", shift=shift)).items()}
        for shift in (0.0, 4.0, -4.0)
    )
    for name in ("folded", "magnitude", "distance", "two_sided"):
        assert min(high[name], low[name]) > familiar[name] + 0.5, name
    assert low["one_sided"] < familiar["one_sided"] < high["one_sided"]


def test_distance_sees_a_combination_that_familiar_images_never_show() -> None:
    calibration, odd = fitted(200), drawn(200, "test")
    odd[:, :2] = 20 * SCALE[:2] - odd[:, :2]  # as usual, but now against the other features
    plain = calibration.score(drawn(200, "test"))
    found = calibration.score(odd)
    assert found["distance"].mean() > 1.3 * plain["distance"].mean()
    assert found["magnitude"].mean() == pytest.approx(plain["magnitude"].mean(), rel=0.1)


def test_more_features_than_images_can_be_calibrated() -> None:
    names = [f"square/{s}" for s in range(40)]
    feature = np.abs(stream(2, "wide").normal(size=(12, 40))) + 1
    calibration = fit_calibration(
        feature, {"names": names}, map_mean=np.zeros((2, 2)), map_std=np.ones((2, 2))
    )
    assert np.isfinite(calibration.score(feature)["two_sided"]).all()


def test_tiny_spreads_do_not_inflate() -> None:
    feature = drawn(40, "validation")
    feature[:, 0] = 7.0  # the same for all
    calibration = fit_calibration(
        feature, FACTS, map_mean=np.zeros((2, 2)), map_std=np.array([[0, 1e-5], [0.1, 0.2]])
    )
    assert calibration.std_F[0] > 0.004 * calibration.std_F[1]
    assert np.abs(calibration.standardize(feature)).max() < 6
    assert calibration.map_std.min() == pytest.approx(0.1)  # the middle one of those that vary
    assert calibration.map_std.max() == pytest.approx(0.2)
    flat = fit_calibration(feature, FACTS, map_mean=np.zeros(3), map_std=np.zeros(3))
    assert (flat.map_std > 0).all()


def test_p_value_counts_familiar_scores_that_are_as_high() -> None:
    calibration = fitted()
    ranked = calibration.ranked_V["two_sided"]
    asked = np.array([ranked[0] - 1, ranked[0], ranked[-1], ranked[-1] + 1])
    np.testing.assert_allclose(
        calibration.p_value("two_sided", asked), np.array([81, 81, 2, 1]) / 81
    )
    assert set(calibration.ranked_V) == set(SCORES)


def test_calibration_is_the_same_after_it_was_stored() -> None:
    calibration, feature = fitted(), drawn(9, "test")
    facts = json.loads(json.dumps(calibration.facts()))
    again = read_calibration(unpack_tensors(pack_tensors(calibration.to_tensors())), facts)
    assert digest_json(again.facts()) == digest_json(calibration.facts())
    for name, score in calibration.score(feature).items():
        np.testing.assert_array_equal(again.score(feature)[name], score)
        np.testing.assert_array_equal(again.p_value(name, score), calibration.p_value(name, score))
    maps = stream(3, "maps").random((2, 4, 5))
    np.testing.assert_array_equal(again.standardize_map(maps), calibration.standardize_map(maps))
    again.demand(FACTS)


def test_damaged_calibration_is_refused() -> None:
    calibration = fitted()
    tensors, facts = calibration.to_tensors(), calibration.facts()
    for name in tensors:
        with pytest.raises(WeightsError, match=f"{name} is missing"):
            read_calibration({k: v for k, v in tensors.items() if k != name}, facts)
    with pytest.raises(WeightsError, match="not finite"):
        read_calibration({**tensors, "mean_F": tensors["mean_F"] * np.nan}, facts)
    with pytest.raises(WeightsError, match="not positive"):
        read_calibration({**tensors, "std_F": tensors["std_F"] * 0}, facts)
    with pytest.raises(WeightsError, match="version 2"):
        read_calibration(tensors, {**facts, "version": 2})
    with pytest.raises(WeightsError, match="not whole"):
        read_calibration(tensors, {"version": 1})
    with pytest.raises(WeightsError):
        read_calibration(tensors, {**facts, "images": 9})
    read_calibration(tensors, facts)  # the control


@pytest.mark.parametrize("key", ["levels", "seed", "identity", "names"])
def test_other_levels_or_weights_are_refused(key: str) -> None:
    with pytest.raises(DataError, match=f"another {key}"):
        fitted().demand({**FACTS, key: "other"})
    with pytest.raises(DataError, match=f"another {key}"):
        fitted().demand({k: v for k, v in FACTS.items() if k != key})


def test_few_validation_images_are_refused() -> None:
    with pytest.raises(DataError, match="9 validation images are too few"):
        fitted(LEAST_IMAGES - 1)
    assert fitted(LEAST_IMAGES).images == LEAST_IMAGES


def test_values_that_are_not_finite_are_refused() -> None:
    bad = drawn(20, "validation")
    bad[3, 2] = np.nan
    plane = np.ones((2, 2))
    with pytest.raises(DataError, match="not finite"):
        fit_calibration(bad, FACTS, map_mean=plane, map_std=plane)
    with pytest.raises(DataError, match="not finite"):
        fitted(map_mean=np.full((4, 5), np.inf))
    with pytest.raises(DataError, match="not finite"):
        fitted().score(bad)


def test_map_of_another_grid_is_refused() -> None:
    with pytest.raises(DataError, match=r"grid \[5, 4\]"):
        fitted().standardize_map(np.zeros((1, 5, 4)))


def test_calibration_shows_no_number_of_anyone() -> None:
    calibration = fitted()
    assert "0." not in repr(calibration)
    assert repr(replace(calibration, images=12)).startswith("<")
