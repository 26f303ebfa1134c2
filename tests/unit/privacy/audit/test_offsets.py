from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.rng import stream
from vitrael.privacy.audit.offsets import (
    Cloud,
    LinearMap,
    at,
    choose_map,
    class_means,
    patient_folds,
)

LABELS = np.array(["A2C", "A4C"] * 20)


def draw(name: str, *shape: int) -> np.ndarray:
    return stream(5, name).normal(size=shape)


@pytest.mark.parametrize("width", [7, 90])
def test_distance_is_that_of_the_whole_covariance(width: int) -> None:
    offset_BD, asked_BD = draw("own", 40, width) * 3, draw("asked", 5, width)
    covariance_DD = offset_BD.T @ offset_BD / 40
    size = np.trace(covariance_DD) / width
    inverse_DD = np.linalg.inv(0.9 * covariance_DD + 0.1 * size * np.eye(width))
    wanted_B = ((asked_BD @ inverse_DD) * asked_BD).sum(axis=1)
    np.testing.assert_allclose(Cloud.around(offset_BD).distance(asked_BD), wanted_B)


def test_cloud_of_nothing_is_round() -> None:
    distance_B = Cloud.around(np.zeros((0, 3))).distance(np.eye(3) * [1, 2, 3])
    np.testing.assert_allclose(distance_B / distance_B[0], [1, 4, 9])


@pytest.mark.parametrize("width", [7, 90])
def test_map_is_ridge_regression_around_the_means_of_classes(width: int) -> None:
    row_BD, pixel_BP, asked_BD = draw("rows", 40, width), draw("pixels", 40, 6), draw("a", 2, width)
    fitted = replace(LinearMap.fit(row_BD, pixel_BP, LABELS), ridge=0.5)
    centers, pixels = class_means(row_BD, LABELS), class_means(pixel_BP, LABELS)
    offset_BD = row_BD - at(centers, LABELS)
    std_D = offset_BD.std(axis=0)
    scaled_BD = offset_BD / std_D
    strength = 0.5 * np.square(np.linalg.svd(scaled_BD, compute_uv=False)).mean()
    inverse_DD = np.linalg.inv(scaled_BD.T @ scaled_BD + strength * np.eye(width))
    weight_DP = inverse_DD @ scaled_BD.T @ (pixel_BP - at(pixels, LABELS))
    wanted_BP = (
        at(pixels, ["A4C", "A2C"]) + ((asked_BD - at(centers, ["A4C", "A2C"])) / std_D) @ weight_DP
    )
    np.testing.assert_allclose(fitted.rebuild(asked_BD, ["A4C", "A2C"]), wanted_BP)


def test_chosen_map_is_that_which_rebuilds_others() -> None:
    row_BD, weight_DP = draw("rows", 40, 6), draw("weight", 6, 9)
    exact = choose_map(row_BD, row_BD @ weight_DP, label_B=LABELS, patients=range(40))
    assert exact.ridge < 0.01
    asked_BD = draw("asked", 3, 6)
    assert np.allclose(exact.rebuild(asked_BD, ["A2C"] * 3), asked_BD @ weight_DP, atol=0.01)
    # The control: where there is nothing to learn the mean image is left.
    noise = choose_map(row_BD, draw("noise", 40, 900), label_B=LABELS, patients=range(40))
    assert noise.ridge >= 100


def test_map_of_readings_that_are_all_the_same_rebuilds_the_mean_image() -> None:
    pixel_BP = draw("pixels", 40, 6)
    fitted = choose_map(np.ones((40, 5)), pixel_BP, label_B=LABELS, patients=range(40))
    rebuilt_BP = fitted.rebuild(draw("asked", 1, 5), ["A4C"])
    np.testing.assert_allclose(rebuilt_BP[0], pixel_BP[LABELS == "A4C"].mean(axis=0))


def test_patient_is_never_in_two_parts() -> None:
    patients = stream(5, "patients").integers(0, 23, 100)
    fold_B = patient_folds(list(patients))
    assert set(fold_B) == set(range(5))
    assert all(len(set(fold_B[patients == patient])) == 1 for patient in set(patients))


def test_class_without_a_mean_is_refused() -> None:
    with pytest.raises(DataError, match="PLAX"):
        at(class_means(np.ones((40, 2)), LABELS), ["A2C", "PLAX"])
