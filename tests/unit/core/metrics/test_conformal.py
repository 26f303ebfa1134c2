from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.conformal import (
    conformal_p,
    estimable,
    frozen_threshold,
    least_null,
    leave_one_patient_out,
    smallest_p,
)
from vitrael.core.metrics.intervals import clopper_pearson
from vitrael.core.rng import stream


def test_ties_count_against() -> None:
    null = np.array([1.0, 2.0, 2.0, 3.0])
    found = conformal_p(null, np.array([0.0, 2.0, 2.5, 3.0, 4.0]))
    assert found == pytest.approx([1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5])
    assert conformal_p(null, np.empty(0)).shape == (0,)
    assert conformal_p(np.empty(0), np.array([7.0])) == [1.0]


@pytest.mark.parametrize(("rate", "least"), [(0.05, 19), (0.01, 99), (0.2, 4), (1.0, 0), (0.3, 3)])
def test_too_small_a_null_is_not_estimable(rate: float, least: int) -> None:
    assert least_null(rate) == least
    assert smallest_p(least) <= rate + 1e-12
    assert estimable(least, rate)
    assert frozen_threshold(np.arange(float(max(least, 1))), rate) is not None
    if least:
        assert smallest_p(least - 1) > rate
        assert not estimable(least - 1, rate)
        assert frozen_threshold(np.arange(least - 1.0), rate) is None


def test_above_the_threshold_is_a_p_value_of_at_most_the_rate() -> None:
    rng = stream(1, "threshold")
    for count in (19, 38, 39, 60):
        null, fresh = rng.integers(0, 30, count) / 1.0, rng.integers(0, 32, 200) / 1.0
        threshold = frozen_threshold(null, 0.05)
        assert threshold is not None
        assert ((fresh > threshold) == (conformal_p(null, fresh) <= 0.05 + 1e-12)).all()


@pytest.mark.parametrize("count", [25, 45])
def test_newcomers_are_rejected_at_most_at_the_rate(count: int) -> None:
    drawn = stream(2, "validity", count).standard_cauchy(size=(4000, count + 1))
    hits = sum(float(conformal_p(row[:-1], row[-1:])[0]) <= 0.05 for row in drawn)
    assert clopper_pearson(hits, 4000, confidence=0.999).low <= 0.05
    # The control: without the one for the newcomer itself the rate is exceeded.
    naive = sum((row[:-1] >= row[-1]).mean() <= 0.05 for row in drawn)
    assert clopper_pearson(naive, 4000, confidence=0.999).low > 0.05


def _largest(refs: int, count: int, *, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(count, refs)).max(1)


def test_null_of_equal_size_keeps_five_percent_and_a_smaller_one_a_quarter() -> None:
    """Maxima over 1,277 references judge maxima over 7,465: 1 - 0.95 ** (7465 / 1277) = 0.259."""
    rng, small, large = stream(3, "sizes"), 26, 152
    rejected = {small: 0, large: 0}
    for _ in range(40):
        fresh = _largest(large, 100, rng=rng)
        for refs in rejected:
            threshold = frozen_threshold(_largest(refs, 399, rng=rng), 0.05)
            assert threshold is not None
            rejected[refs] += int((fresh > threshold).sum())
    assert clopper_pearson(rejected[large], 4000, confidence=0.999).low <= 0.05
    mismatched = rejected[small] / 4000
    assert 1 - 0.95 ** (large / small) == pytest.approx(0.259, abs=0.002)
    assert 0.23 < mismatched < 0.30


def test_own_scans_are_left_out_and_the_first_scan_asks() -> None:
    patient = np.array([7, 3, 7, 5])
    similarity = np.array(
        [[9.0, 0.1, 9.0, 0.4], [0.2, 9.0, 0.6, 0.3], [5.0, 5.0, 9.0, 5.0], [0.8, 0.2, 0.7, 9.0]]
    )
    null = leave_one_patient_out(similarity, patient)
    assert null.patient_P.tolist() == [3, 5, 7]
    assert null.score_P.tolist() == [0.6, 0.8, 0.4]
    assert repr(null) == "PatientNull(private)"


def test_one_scan_of_each_patient_asks_so_that_maxima_are_of_equal_size() -> None:
    rng = stream(4, "visits")
    patient = np.repeat(np.arange(120), 3)
    flagged, by_all = [], []
    for _ in range(20):
        similarity = rng.normal(size=(360, 360))
        null = leave_one_patient_out(similarity, patient).score_P
        every = similarity.reshape(120, 3, 360).max((1, 2))
        fresh = rng.normal(size=(200, 360)).max(1)
        for scores, shares in ((null, flagged), (every, by_all)):
            threshold = frozen_threshold(scores, 0.05)
            assert threshold is not None
            shares.append((fresh > threshold).mean())
    assert 0.035 < np.mean(flagged) < 0.065
    assert np.mean(by_all) < 0.03  # the control: the null is too high, and copies would pass


@pytest.mark.parametrize(
    ("similarity", "patient"),
    [
        (np.zeros((3, 2)), np.arange(3)),
        (np.zeros((3, 3)), np.arange(2)),
        (np.zeros((3, 3)), np.zeros(3)),
        (np.zeros((0, 0)), np.arange(0)),
        (np.full((3, 3), np.nan), np.arange(3)),
    ],
)
def test_what_no_patient_can_be_left_out_of_is_refused(
    similarity: np.ndarray, patient: np.ndarray
) -> None:
    with pytest.raises(DataError):
        leave_one_patient_out(similarity, patient)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    good, spoilt = np.arange(40.0), np.append(np.arange(40.0), bad)
    for null, scores in ((good, spoilt), (spoilt, good)):
        with pytest.raises(DataError, match="not finite"):
            conformal_p(null, scores)
    with pytest.raises(DataError, match="not finite"):
        frozen_threshold(spoilt, 0.05)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, np.nan])
def test_what_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(DataError, match="rate"):
        frozen_threshold(np.arange(40.0), rate)
    with pytest.raises(DataError, match="rate"):
        least_null(rate)
    with pytest.raises(DataError):
        smallest_p(-1)


@pytest.mark.parametrize(("patients", "rate"), [(39, 0.05), (30, 0.1), (50, 0.1)])
def test_left_out_patients_who_are_alike_in_pairs_keep_the_rate(patients: int, rate: float) -> None:
    rng = stream(8, "mutual", patients)
    kept, naive = [], []
    for _ in range(3000):
        mutual = rng.normal(size=(patients + 1, patients + 1))
        mutual = np.triu(mutual, 1) + np.triu(mutual, 1).T
        np.fill_diagonal(mutual, -np.inf)
        null, newcomer = mutual[:-1, :-1].max(1), mutual[-1, :-1].max()
        for lifted, found in ((1, kept), (0, naive)):
            threshold = frozen_threshold(null, rate, lifted=lifted)
            assert threshold is not None
            found.append(newcomer > threshold)
    error = 3 * np.sqrt(rate * (1 - rate) / 3000)
    assert np.mean(kept) <= rate + error
    if patients == 30:
        assert np.mean(naive) > rate + error  # as if the scores were independent
