"""A perfect score is 1, a blind one is chance, an inverted one is named so."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.ood import (
    average_precision,
    best_dice,
    detect,
    false_alarm_share,
    judge_maps,
)
from vitrael.core.rng import stream


def drawn_maps(
    images: int = 30, *, lift: float = 3.0, share: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    rng = stream(1, "maps")
    mask = rng.random((images, 12, 12)) < share
    return rng.normal(size=mask.shape) + lift * mask, mask


def test_detection_is_the_area_with_an_interval_that_narrows() -> None:
    rng = stream(2, "scores")
    few, many = (detect(rng.normal(1, 1, n), rng.normal(0, 1, n)) for n in (40, 4_000))
    assert many.auroc == pytest.approx(0.760, abs=0.02)  # Phi(1 / sqrt 2)
    assert many.interval.low < many.auroc < many.interval.high
    assert few.interval.high - few.interval.low > 5 * (many.interval.high - many.interval.low)
    assert (many.foreign_images, many.familiar_images) == (4_000, 4_000)


def test_verdict_says_when_foreign_images_look_too_familiar() -> None:
    rng = stream(3, "verdict")
    high, low = rng.normal(2, 1, 60), rng.normal(0, 1, 60)
    assert detect(high, low).verdict == "foreign"
    assert detect(low, high).verdict == "inverted"
    assert detect(rng.normal(size=60), rng.normal(size=60)).verdict == "no difference"


def test_false_alarms_are_counted_where_95_percent_are_caught() -> None:
    foreign, familiar = np.arange(100.0), np.arange(-50.0, 50.0)
    assert false_alarm_share(foreign, familiar) == pytest.approx(0.45)  # at 5 and above
    assert false_alarm_share(foreign + 1_000, familiar) == 0
    assert false_alarm_share(foreign - 1_000, familiar) == 1
    assert false_alarm_share(foreign, familiar, caught=1.0) == pytest.approx(0.5)


def test_average_precision_is_the_mean_precision_at_foreign_voxels() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    foreign = np.array([True, False, True, False, False])
    assert average_precision(score, foreign) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(foreign.astype(float), foreign) == 1


def test_average_precision_of_ties_is_the_prevalence() -> None:
    foreign = np.arange(40) % 8 == 0
    assert average_precision(np.zeros(40), foreign) == pytest.approx(1 / 8)


def test_best_dice_is_the_largest_over_all_thresholds() -> None:
    rng = stream(4, "dice")
    score = rng.integers(0, 12, 300) / 4
    foreign = rng.random(300) < 0.1 + 0.2 * score / score.max()
    by_hand = {
        at: 2 * (foreign & (score >= at)).sum() / (foreign.sum() + (score >= at).sum())
        for at in np.unique(score)
    }
    best = best_dice(score, foreign)
    assert best.value == pytest.approx(max(by_hand.values()))
    assert by_hand[best.threshold] == pytest.approx(best.value)


def test_judgment_of_maps_is_the_exact_one_over_all_voxels() -> None:
    score, mask = drawn_maps()
    quality = judge_maps(score, mask, rng=stream(5, "boot"), draws=200)
    assert quality.average_precision == pytest.approx(average_precision(score, mask), abs=2e-3)
    assert quality.dice.value == pytest.approx(best_dice(score, mask).value, abs=2e-3)
    assert quality.prevalence == pytest.approx(mask.mean())
    low, high = quality.average_precision_interval
    assert low < quality.average_precision < high
    assert high - low < 0.2
    assert quality.dice_interval.low < quality.dice.value < quality.dice_interval.high


def test_map_without_information_has_the_prevalence_and_a_sharper_one_more() -> None:
    found = [
        judge_maps(*drawn_maps(lift=lift), rng=stream(6, "boot"), draws=50).average_precision
        for lift in (0.0, 1.0, 2.0, 4.0)
    ]
    assert found[0] == pytest.approx(0.05, abs=0.02)
    assert all(blunt < sharp for blunt, sharp in pairwise(found))


def test_interval_resamples_images_and_not_voxels() -> None:
    """Ten copies of every image bring no new voxels, but ten times as many images."""
    score, mask = drawn_maps(images=12)
    once = judge_maps(score, mask, rng=stream(7, "boot")).average_precision_interval
    copied = judge_maps(
        np.repeat(score, 10, 0), np.repeat(mask, 10, 0), rng=stream(7, "boot")
    ).average_precision_interval
    assert copied.high - copied.low < 0.5 * (once.high - once.low)
    tall = judge_maps(
        np.repeat(score, 10, 1), np.repeat(mask, 10, 1), rng=stream(7, "boot")
    ).average_precision_interval
    assert tall.high - tall.low == pytest.approx(once.high - once.low, rel=0.3)


def test_bad_scores_are_refused() -> None:
    score, mask = drawn_maps(images=3)
    with pytest.raises(DataError, match="nothing is foreign"):
        judge_maps(score, mask & False, rng=stream(8, "boot"))
    with pytest.raises(DataError, match="mask of its shape"):
        judge_maps(score, mask[:2], rng=stream(8, "boot"))
    with pytest.raises(DataError, match="not finite"):
        judge_maps(np.where(mask, np.nan, score), mask, rng=stream(8, "boot"))
    with pytest.raises(DataError, match="mask is empty"):
        average_precision(score[0], mask[0] & False)
    with pytest.raises(DataError, match="both groups"):
        false_alarm_share(np.zeros(0), np.zeros(3))
    with pytest.raises(DataError, match="not finite"):
        detect(np.array([0.0, np.nan]), np.zeros(3))
    judge_maps(score, mask, rng=stream(8, "boot"), draws=5)  # the control
