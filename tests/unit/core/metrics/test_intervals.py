from __future__ import annotations

import math

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import (
    Estimate,
    auc,
    binned_auc,
    clopper_pearson,
    normal_interval,
    pearson_interval,
    pearson_r,
    permuted_r,
    share_excess,
    stratified,
    wilson,
)
from vitrael.core.rng import stream

BOUNDS = (clopper_pearson, wilson)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(300, 300, 0.990, 1.0), (299, 300, 0.984, None), (100, 100, 0.970, 1.0), (0, 299, 0.0, 0.01)],
)
def test_clopper_pearson_agrees_with_the_known_table(
    hits: int, trials: int, low: float, high: float | None
) -> None:
    interval = clopper_pearson(hits, trials)
    assert interval.low == pytest.approx(low, abs=5e-4)
    if high is not None:
        assert interval.high == pytest.approx(high, abs=5e-4)


def test_no_trial_tells_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("hits", "trials"), [(2, 1), (-1, 3)])
def test_impossible_share_is_refused(hits: int, trials: int) -> None:
    with pytest.raises(DataError):
        clopper_pearson(hits, trials)


def test_clopper_pearson_bound_holds_at_its_confidence() -> None:
    hits = stream(1, "coverage").binomial(60, 0.9, size=2000)
    held = np.mean([clopper_pearson(int(h), 60).low <= 0.9 for h in hits])
    assert held >= 0.94


@pytest.mark.parametrize(("hits", "trials"), [(7, 10), (81, 263), (15, 148), (1, 29)])
def test_wilson_bounds_are_the_roots_of_the_score_test(hits: int, trials: int) -> None:
    for bound in wilson(hits, trials):
        error = math.sqrt(bound * (1 - bound) / trials)
        assert abs(hits / trials - bound) / error == pytest.approx(1.6448536, rel=1e-6)


def test_wilson_lies_inside_the_exact_bounds_and_promises_less() -> None:
    for hits in range(61):
        exact, score = clopper_pearson(hits, 60), wilson(hits, 60)
        assert exact.low - 1e-9 <= score.low <= hits / 60 <= score.high <= exact.high + 1e-9
    drawn = stream(1, "coverage").binomial(60, 0.02, size=2000)
    held = [np.mean([bounds(int(h), 60).low <= 0.02 for h in drawn]) for bounds in BOUNDS]
    assert held[0] >= 0.95
    assert held[1] < 0.91


def test_wilson_of_no_trial_tells_nothing_and_of_an_impossible_share_is_refused() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert (wilson(0, 9).low, wilson(9, 9).high) == (0.0, 1.0)
    assert wilson(9, 9, confidence=0.99).low < wilson(9, 9).low < 1
    for hits, trials in ((2, 1), (-1, 3), (math.nan, 3)):
        with pytest.raises(DataError):
            wilson(hits, trials)


def test_auc_is_the_share_of_ordered_pairs() -> None:
    rng = stream(2, "auc")
    higher, lower = rng.integers(0, 6, 40) + 1, rng.integers(0, 6, 30)
    pairs = (higher[:, None] > lower) + 0.5 * (higher[:, None] == lower)
    assert auc(higher, lower).value == pytest.approx(pairs.mean())
    assert auc(lower, higher).value == pytest.approx(1 - pairs.mean())


def test_auc_interval_covers_one_half_under_the_null() -> None:
    rng = stream(3, "null")
    intervals = [normal_interval(auc(rng.normal(size=55), rng.normal(size=22))) for _ in range(400)]
    below = np.mean([interval.high < 0.5 for interval in intervals])
    above = np.mean([interval.low > 0.5 for interval in intervals])
    assert below < 0.09
    assert above < 0.09


def test_auc_of_an_empty_group_is_refused() -> None:
    with pytest.raises(DataError):
        binned_auc([0, 0], [1, 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_auc_of_scores_that_are_not_finite_is_refused(bad: float) -> None:
    good = np.arange(4.0)
    for scores in ((np.full(4, bad), good), (good, np.append(good, bad))):
        with pytest.raises(DataError, match="not finite"):
            auc(*scores)
    with pytest.raises(DataError, match="not finite"):
        binned_auc([1, bad], [1, 2])  # type: ignore[list-item]
    assert auc(good, good).value == 0.5  # the control


def test_strata_are_not_compared_with_each_other() -> None:
    shifted = [auc(np.array([1.0, 2.0]) + at, np.array([1.0, 2.0]) + at) for at in (0, 100)]
    assert stratified(shifted, [1, 1]).value == pytest.approx(0.5)
    with pytest.raises(DataError):
        stratified([], [])


def test_pooled_error_is_smaller_than_each() -> None:
    assert stratified([Estimate(0.5, 0.1)] * 4, [1] * 4).error == pytest.approx(0.05)


def test_correlation_interval_and_its_control() -> None:
    rng = stream(4, "r")
    asked = rng.normal(size=96)
    measured = asked + rng.normal(0, 0.5, 96)
    r = pearson_r(asked, measured)
    low, high = pearson_interval(r, 96)
    assert 0.8 < low < r < high < 1
    shuffled = permuted_r(asked, measured, rng=rng, draws=50)
    assert 0 <= shuffled.low < shuffled.mean < shuffled.high < 0.3
    assert shuffled.mean < 0.15
    assert permuted_r(asked[:9], measured[:9], rng=rng, draws=50).high > 0.3


def test_constant_series_has_no_correlation() -> None:
    assert math.isnan(pearson_r(np.ones(5), np.arange(5.0)))
    assert pearson_interval(math.nan, 96) == (-1.0, 1.0)
    assert pearson_interval(0.9, 3) == (-1.0, 1.0)


def test_share_excess_of_equal_shares_covers_zero() -> None:
    value, (low, high) = share_excess([5], [5], 100, scales=[1.0])
    assert value == low == 0
    assert 0 < high < 0.1
    value, (low, _) = share_excess([60], [0], 100, scales=[2.5])
    assert value == pytest.approx(0.6)
    assert low > 0.4
    for hits, scales in (([], []), ([5], [0.0])):
        with pytest.raises(DataError):
            share_excess(hits, hits, 100, scales=scales)


def test_controls_of_one_stratum_pay_for_no_other() -> None:
    alone, (_, high) = share_excess([30], [0], 96, scales=[2.5])
    value, bounds = share_excess([30, 0], [0, 20], 96, scales=[2.5, 2.5])
    assert value == alone == pytest.approx(30 / 96)
    assert bounds.high == pytest.approx(high)
    # The control: at the same stratum they explain the hits.
    assert share_excess([30, 0], [12, 0], 96, scales=[2.5, 2.5])[0] == 0


@pytest.mark.parametrize("shares", [(0.10, 0.02), (0.04, 0.005), (0.02, 0.04)])
def test_excess_of_unequal_scales_is_covered(shares: tuple[float, float]) -> None:
    rng = stream(5, "excess")
    scales, found = (1.0, 5.0), (0.10, 0.05)
    truth = sum(max(0.0, p - s * q) for p, s, q in zip(found, scales, shares, strict=True))
    bounds = []
    for _ in range(400):
        hits, control = rng.binomial(96, found), rng.binomial(96, shares)
        bounds.append(share_excess(hits.tolist(), control.tolist(), 96, scales=scales)[1])
    assert np.mean([high < truth for _, high in bounds]) < 0.07
    assert np.mean([low > truth for low, _ in bounds]) < 0.07
    assert np.mean([high < truth + 0.3 for _, high in bounds]) > 0.5


@pytest.mark.parametrize("size", [5, 10, 30, 1000])
def test_perfect_separation_of_few_is_not_certain(size: int) -> None:
    apart = auc(np.arange(size) + size, np.arange(size))
    low, high = normal_interval(apart, within=(0, 1))
    assert (apart.value, high) == (1.0, 1.0)
    assert 0.2 / size < 1 - low < 1.2 / size
    assert auc(np.arange(size), np.arange(size) + size).error == pytest.approx(apart.error)


def test_floor_of_the_error_leaves_ordinary_areas_alone() -> None:
    scores = stream(6, "ordinary").normal(size=(2, 40))
    assert auc(*scores).error == pytest.approx(math.sqrt(81 / (12 * 40 * 40)), rel=0.1)


def test_bounds_are_cut_to_where_the_quantity_lies() -> None:
    assert normal_interval(Estimate(0.98, 0.1), within=(0, 1)).high == 1
    assert normal_interval(Estimate(0.98, 0.1)).high > 1
    assert normal_interval(Estimate(1.5, 0.1), within=(0, 1)).high == 1.5
