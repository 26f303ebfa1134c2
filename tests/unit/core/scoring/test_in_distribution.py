"""Four scores that are higher for what an expert has not learned from."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.rng import stream
from vitrael.core.scoring.in_distribution import (
    fit_gaussians,
    low_confidence,
    profile_activity,
    toward_round,
)

LAYERS = (3, 5)


def activity(seed: int, *, shift: float = 0.0, count: int = 400) -> np.ndarray:
    own = stream(seed, "activity").normal(size=(count, sum(LAYERS))) * np.arange(1, 9)
    own[:, 3:] += shift * np.arange(4, 9)
    return own.astype(np.float32)


def test_own_images_lie_near_zero_and_a_shifted_layer_alone_shows() -> None:
    profile = profile_activity(activity(1), LAYERS)
    usual, shifted = profile.discrepancy(activity(2)), profile.discrepancy(activity(2, shift=3))
    assert usual.shape == (400, 2)
    assert abs(np.square(np.exp(usual)).mean() - 1) < 0.05  # the mean square is one by definition
    assert np.array_equal(shifted[:, 0], usual[:, 0])
    assert (shifted[:, 1] > usual[:, 1]).mean() > 0.99


def test_dead_map_does_not_decide() -> None:
    own = activity(1)
    own[:, 0] = 0
    profile = profile_activity(own, LAYERS)
    other = activity(2)
    other[:, 0] = 1e-6
    assert profile.discrepancy(other)[:, 0].max() < 1.5


def test_distance_to_the_nearest_class_finds_what_lies_between_them() -> None:
    rng = stream(1, "features")
    label = np.arange(400) % 2
    own = rng.normal(size=(400, 4)) + 8 * label[:, None] * np.array([1, 0, 0, 0])
    gaussians = fit_gaussians(own, label)
    between = rng.normal(size=(50, 4)) * 0.2 + np.array([4, 0, 0, 0])
    assert np.median(gaussians.distance(between)) > np.quantile(gaussians.distance(own), 0.95)
    one = fit_gaussians(own, np.zeros(400))  # the control: one Gaussian over both sees nothing
    assert np.median(one.distance(between)) < np.quantile(one.distance(own), 0.5)


def test_relative_distance_does_not_grow_along_what_all_classes_share() -> None:
    rng = stream(2, "features")
    label = np.arange(600) % 2
    own = rng.normal(size=(600, 2)) * np.array([1, 5]) + 8 * label[:, None] * np.array([1, 0])
    gaussians = fit_gaussians(own, label)
    along = np.array([[0.0, 15.0], [8.0, -15.0]])
    plain, relative = gaussians.distance(along), gaussians.relative_distance(along)
    assert (plain > np.quantile(gaussians.distance(own), 0.95)).all()
    assert (relative < np.quantile(gaussians.relative_distance(own), 0.95)).all()


def test_low_confidence_is_one_minus_the_largest_probability() -> None:
    logit = np.log(np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]]))
    np.testing.assert_allclose(low_confidence(logit + 5), [0.3, 2 / 3])


def test_covariance_of_few_images_can_be_inverted() -> None:
    rows = stream(3, "rows").normal(size=(3, 6))
    covariance = np.cov(rows.T, bias=True)
    assert np.linalg.matrix_rank(covariance) < 6
    rounded = toward_round(covariance)
    assert np.linalg.eigvalsh(rounded).min() > 0
    assert np.trace(rounded) == pytest.approx(np.trace(covariance))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    own = activity(1)
    profile = profile_activity(own, LAYERS)
    own[3, 2] = bad
    with pytest.raises(DataError):
        profile.discrepancy(own)
    with pytest.raises(DataError):
        profile_activity(own, LAYERS)
    with pytest.raises(DataError):
        fit_gaussians(own, np.zeros(len(own)))


def test_activity_of_another_network_is_refused() -> None:
    profile = profile_activity(activity(1), LAYERS)
    with pytest.raises(DataError, match="8 maps are expected"):
        profile.discrepancy(activity(1)[:, :7])
    with pytest.raises(DataError, match="two images or more"):
        profile_activity(activity(1)[:1], LAYERS)
    with pytest.raises(DataError, match="each with a label"):
        fit_gaussians(activity(1), np.zeros(3))
