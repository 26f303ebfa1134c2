from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.bootstrap import (
    Compared,
    bootstrap,
    centered_interval,
    cluster_bootstrap,
    jackknife_error,
    paired_difference,
    paired_ratio,
)
from vitrael.core.rng import stream


def test_bootstrap_of_a_mean_has_its_standard_error() -> None:
    rows = stream(1, "rows").normal(size=400)
    draws = bootstrap(lambda i: float(rows[i].mean()), (400,), rng=stream(1, "b"), draws=2000)
    assert draws.std() == pytest.approx(rows.std() / 20, rel=0.06)


def test_equal_streams_give_equal_draws() -> None:
    rows = np.arange(9.0)
    first, second, other = (
        bootstrap(lambda i: float(rows[i].sum()), (9,), rng=stream(seed, "b"), draws=5)
        for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_groups_are_resampled_apart() -> None:
    sizes = bootstrap(lambda i, j: float(len(i) * 100 + len(j)), (3, 7), rng=stream(1, "b"))
    assert (sizes == 307).all()


def test_shifted_draws_move_no_bound() -> None:
    draws = stream(2, "draws").normal(size=1000)
    assert centered_interval(0.0, draws) == pytest.approx(centered_interval(0.0, draws + 5))


def test_bounds_are_cut_but_keep_the_value() -> None:
    draws = stream(2, "draws").normal(size=1000)
    low, high = centered_interval(0.1, draws, within=(0.0, math.inf))
    assert low == 0.0
    assert high > 1.0
    assert centered_interval(-1.0, draws, within=(0.0, math.inf)).low == -1.0


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    rows = stream(3, "rows").normal(size=50)
    without = (rows.sum() - rows) / 49
    assert jackknife_error(without) == pytest.approx(rows.std(ddof=1) / math.sqrt(50))
    assert jackknife_error(without, without) == pytest.approx(
        math.sqrt(2) * rows.std(ddof=1) / 50**0.5
    )


def test_one_row_says_nothing_of_its_spread() -> None:
    assert jackknife_error(np.ones(1)) == math.inf


@pytest.mark.parametrize(("sizes", "draws"), [((0,), 10), ((5,), 1)])
def test_nothing_to_resample_is_refused(sizes: tuple[int, ...], draws: int) -> None:
    with pytest.raises(DataError, match="nothing to resample"):
        bootstrap(lambda _: 0.0, sizes, rng=stream(1, "b"), draws=draws)


def _visits(patients: int, visits: int, *, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return values that a patient's visits share almost wholly, and the patients."""
    rng = stream(7, name)
    own = np.repeat(rng.normal(size=patients), visits)
    return own + rng.normal(0, 0.1, len(own)), np.repeat(np.arange(patients), visits)


def test_patients_are_resampled_with_all_their_rows() -> None:
    patient = np.array([5, 2, 5, 9, 2, 5])

    def whole(rows: np.ndarray) -> float:
        counts = np.bincount(rows, minlength=6)
        return float(all(len(set(counts[patient == p])) == 1 for p in (2, 5, 9)))

    drawn = cluster_bootstrap(whole, patient, rng=stream(1, "c"), draws=100)
    assert drawn.shape == (100,)
    assert drawn.all()
    # The control: rows resampled apart tear patients.
    assert not bootstrap(whole, (6,), rng=stream(1, "c"), draws=100).all()


def test_clusters_have_the_error_of_patients_and_not_of_rows() -> None:
    values, patient = _visits(50, 8, name="error")

    def mean(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    by_patient = cluster_bootstrap(mean, patient, rng=stream(1, "c"), draws=1000).std()
    truth = values.reshape(50, 8).mean(1).std() / math.sqrt(50)
    assert by_patient == pytest.approx(truth, rel=0.08)
    assert bootstrap(mean, (400,), rng=stream(1, "c"), draws=1000).std() < truth / 2


def test_paired_difference_is_that_of_the_resampled_means() -> None:
    values, patient = _visits(20, 3, name="first")
    other = _visits(20, 3, name="second")[0]
    found = paired_difference(values, other, patient, rng=stream(1, "c"), draws=300)
    drawn = cluster_bootstrap(
        lambda rows: float((values[rows] - other[rows]).mean()),
        patient,
        rng=stream(1, "c"),
        draws=300,
    )
    assert found.value == pytest.approx((values - other).mean())
    assert found.p == pytest.approx((1 + (drawn <= 0).sum()) / 301)
    assert drawn.min() < found.interval.low < found.value < found.interval.high < drawn.max()
    assert found.clusters == 20


@pytest.mark.parametrize("visits", [1, 4])
def test_paired_tests_keep_their_level(visits: int) -> None:
    rng = stream(8, "level", visits)
    patient = np.repeat(np.arange(60), visits)
    p_values, naive, ratios = [], [], []
    for _ in range(300):
        first, second = (np.repeat(rng.random(60) < 0.3, visits).astype(float) for _ in range(2))
        p_values.append(paired_difference(first, second, patient, rng=rng, draws=199).p)
        ratios.append(paired_ratio(first, second, patient, rng=rng, draws=199).p)
        apart = paired_difference(first, second, np.arange(len(patient)), rng=rng, draws=199)
        naive.append(apart.p)
    assert np.mean(np.array(p_values) <= 0.05) < 0.09
    assert np.mean(np.array(ratios) <= 0.05) < 0.09
    if visits > 1:  # the control: rows are no patients
        assert np.mean(np.array(naive) <= 0.05) > 0.15


def test_pairing_finds_what_groups_apart_would_not() -> None:
    values, patient = _visits(40, 1, name="paired")
    shifted = values + 0.2 + stream(9, "noise").normal(0, 0.1, 40)
    assert paired_difference(shifted, values, patient, rng=stream(1, "c")).p < 0.01
    assert paired_difference(values, shifted, patient, rng=stream(1, "c")).p > 0.99
    mixed = stream(9, "mixed").permutation(values)  # the control: pairs are lost
    assert paired_difference(shifted, mixed, patient, rng=stream(1, "c")).p > 0.05


def test_p_is_never_zero_and_few_patients_cannot_make_it_small() -> None:
    one, nothing = np.ones(40), np.zeros(40)
    many = paired_difference(one, nothing, np.arange(40), rng=stream(1, "c"), draws=99)
    assert many.p == pytest.approx(1 / 100)
    assert many.interval == (1.0, 1.0)
    few = paired_difference(one, nothing, np.arange(40) % 3, rng=stream(1, "c"), draws=99)
    assert few.p == 1 / 8


def test_ratio_below_its_bound_is_found_and_an_equal_one_is_not() -> None:
    rng = stream(10, "ratio")
    before = (rng.random(300) < 0.5).astype(float)
    after, random = (before * (rng.random(300) < kept) for kept in (0.4, 0.97))
    rows = np.arange(300)
    found = paired_ratio(after, before, rows, rng=rng, most=0.7)
    assert found.value == pytest.approx(after.sum() / before.sum())
    assert found.interval.low < found.value < found.interval.high < 0.7
    assert found.p < 0.05
    assert paired_ratio(random, before, rows, rng=rng, most=0.7).p > 0.95
    assert paired_ratio(before, before, rows, rng=rng).p == 1.0


def test_ratio_to_nothing_is_not_estimable() -> None:
    found = paired_ratio(np.ones(9), np.zeros(9), np.arange(9), rng=stream(1, "c"))
    assert math.isnan(found.value)
    assert (found.interval, found.p) == ((0.0, math.inf), 1.0)
    rare = np.eye(9)[0]
    low, high = paired_ratio(rare, rare, np.arange(9), rng=stream(1, "c")).interval
    assert low <= 1
    assert high == math.inf


@pytest.mark.parametrize("compare", [paired_difference, paired_ratio])
@pytest.mark.parametrize(
    ("first", "second", "patient", "draws"),
    [
        ([], [], [], 9),
        ([1.0, 2.0], [1.0], [0, 1], 9),
        ([1.0, 2.0], [1.0, 2.0], [0], 9),
        ([1.0, math.nan], [1.0, 2.0], [0, 1], 9),
        ([1.0, 2.0], [1.0, math.inf], [0, 1], 9),
        ([1.0, 2.0], [1.0, 2.0], [3, 3], 9),
        ([1.0, 2.0], [1.0, 2.0], [0, 1], 1),
    ],
)
def test_what_cannot_be_compared_is_refused(
    compare: Callable[..., Compared],
    first: list[float],
    second: list[float],
    patient: list[int],
    draws: int,
) -> None:
    rows = (np.array(first), np.array(second), np.array(patient))
    with pytest.raises(DataError):
        compare(*rows, rng=stream(1, "c"), draws=draws)


def test_bad_ratios_and_single_clusters_are_refused() -> None:
    rows = np.arange(4)
    with pytest.raises(DataError, match="negative"):
        paired_ratio(rows - 1.0, rows, rows, rng=stream(1, "c"))
    with pytest.raises(DataError, match="positive"):
        paired_ratio(rows, rows, rows, rng=stream(1, "c"), most=0.0)
    for patient in (np.zeros(4), np.empty(0), np.zeros((2, 2))):
        with pytest.raises(DataError):
            cluster_bootstrap(lambda _: 0.0, patient, rng=stream(1, "c"))
