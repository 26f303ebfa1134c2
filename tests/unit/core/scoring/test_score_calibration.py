"""An expert's scores are held to its own images that it has not learned from."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.rng import stream
from vitrael.core.scoring.in_distribution import calibrate_scores, without_calibration

LAYERS = 6


def discrepancy(name: str, *, count: int = 4_000, shift: float = 0.0) -> np.ndarray:
    """Return scores of layers with means and spreads of their own, which agree a little."""
    rng = stream(7, name)
    together = 0.5 * rng.normal(size=(count, 1))
    own = rng.normal(size=(count, LAYERS)) + together + shift
    return np.asarray(own * np.arange(1, LAYERS + 1) - 3, dtype=np.float32)


def test_held_out_images_get_mean_zero_and_spread_one_in_every_layer() -> None:
    held_out = discrepancy("held out")
    scaled = calibrate_scores(held_out).scale(held_out)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), np.zeros(LAYERS), atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), np.ones(LAYERS), atol=1e-5)
    assert np.abs(held_out.mean(axis=0)).max() > 1  # the control
    assert held_out.std(axis=0).max() > 2


def test_about_one_in_twenty_of_the_experts_own_images_is_beyond_the_limit() -> None:
    calibration = calibrate_scores(discrepancy("held out"))
    assert 0.02 < calibration.is_foreign(discrepancy("other images")).mean() < 0.065
    foreign = calibration.is_foreign(discrepancy("other images", shift=4))  # the control
    assert foreign.mean() > 0.9


def test_layers_that_know_nothing_of_each_other_move_the_limit_further_out() -> None:
    """The largest of many is large by chance."""
    alone = stream(8, "alone").normal(size=(4_000, LAYERS))
    apart, same = calibrate_scores(alone), calibrate_scores(np.repeat(alone[:, :1], LAYERS, 1))
    assert same.center == pytest.approx(0, abs=1e-6)
    assert same.spread == pytest.approx(1)
    assert apart.limit > same.limit + 0.3


def test_one_layer_beyond_the_limit_is_enough() -> None:
    calibration, usual = calibrate_scores(discrepancy("held out")), discrepancy("other images")
    for layer in range(LAYERS):
        foreign = usual.copy()
        foreign[:, layer] += 5 * usual[:, layer].std()
        assert calibration.is_foreign(foreign).mean() > 0.9
    assert calibration.is_foreign(usual).mean() < 0.065  # the control


def test_scale_of_a_layer_does_not_matter() -> None:
    held_out, other = discrepancy("held out"), discrepancy("other images", shift=1)
    factor = np.array([1, 10, 0.1, 3, 5, 7], dtype=np.float32)
    plain = calibrate_scores(held_out).scale(other)
    scaled = calibrate_scores(factor * held_out + 2).scale(factor * other + 2)
    np.testing.assert_allclose(scaled, plain, atol=1e-3)


def test_layer_that_never_changes_stays_finite() -> None:
    held_out = discrepancy("held out")
    held_out[:, 2] = 0.5
    calibration = calibrate_scores(held_out)
    assert np.isfinite(calibration.scale(held_out)).all()
    assert not calibration.scale(held_out)[:, 2].any()
    constant = calibrate_scores(np.full((5, LAYERS), 0.5, np.float32))
    assert constant.spread > 0


def test_without_calibration_nothing_changes_and_nothing_is_foreign() -> None:
    plain = without_calibration(LAYERS)
    far = discrepancy("far", shift=1_000)
    np.testing.assert_array_equal(plain.scale(far), far)
    assert not plain.is_foreign(far).any()
    assert calibrate_scores(discrepancy("held out")).is_foreign(far).all()  # the control


@pytest.mark.parametrize("count", [0, 1])
def test_scores_of_fewer_than_two_images_cannot_be_calibrated(count: int) -> None:
    with pytest.raises(DataError, match="cannot be calibrated"):
        calibrate_scores(discrepancy("held out", count=count))
    assert calibrate_scores(discrepancy("held out", count=2)).spread > 0  # the control


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_calibration_on_what_is_not_finite_is_refused(bad: float) -> None:
    held_out = discrepancy("held out", count=20)
    held_out[3, 1] = bad
    with pytest.raises(DataError, match="finite"):
        calibrate_scores(held_out)


def test_calibration_shows_nothing_of_the_images() -> None:
    held_out = discrepancy("held out", count=20)
    assert str(held_out.mean()) not in repr(calibrate_scores(held_out))
