"""Retrieval is judged patient by patient: a good order scores high, chance scores chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.retrieval import (
    RetrievalScores,
    Revisit,
    average_patients,
    measure_retrieval,
)
from vitrael.core.rng import stream

PLACES = np.linspace(0, 1, 40)


def revisit(similarity: np.ndarray) -> Revisit:
    return Revisit(similarity, PLACES, PLACES)


def score(revisits: list[Revisit]) -> RetrievalScores:
    return measure_retrieval(revisits, rng=stream(1, "draws"))


def test_order_by_true_distance_is_perfect_and_chance_is_chance() -> None:
    truth = -np.abs(PLACES[:, None] - PLACES[None])
    best = score([revisit(truth)] * 3)
    assert (best.hit.value, best.gap.value, best.same_view.value) == (1, 0, 1)
    rng = stream(1, "noise")
    chance = score([revisit(rng.normal(size=truth.shape)) for _ in range(20)])
    assert chance.same_view.value == pytest.approx(0.5, abs=0.02)
    assert chance.gap.value == pytest.approx(1 - 0.5**0.5, abs=0.04)  # of two uniform numbers
    assert chance.same_view.low < 0.5 < chance.same_view.high


def test_numbers_of_a_small_example_are_those_by_hand() -> None:
    place = np.array([0.0, 0.5, 1.0])
    lost = np.array([[1.0, 0.5, 0.9], [0.1, 0.2, 0.3], [0.0, 0.1, 0.2]])
    found = measure_retrieval([Revisit(lost, place, place)] * 2, rng=stream(1, "draws"), top=1)
    assert found.hit.value == pytest.approx(2 / 3)
    assert found.gap.value == 0
    # Same views score 1, .2, .2; of the six others .5, .9, .3 lie above .2.
    assert found.same_view.value == pytest.approx((6 + 3 + 3) / 18)


def test_more_clips_of_the_same_patients_do_not_narrow_the_bounds() -> None:
    rng = stream(2, "noise")
    quality = rng.uniform(0.02, 1, 12)
    truth = -np.abs(PLACES[:, None] - PLACES[None])
    few = [revisit(truth + q * rng.normal(size=truth.shape)) for q in quality]
    many = [
        Revisit(np.repeat(visit.similarity_QG, 5, axis=0), np.repeat(PLACES, 5), visit.gallery_G)
        for visit in few
    ]
    for name in ("hit", "gap", "same_view"):
        one, other = getattr(score(many), name), getattr(score(few), name)
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
        assert one.n == 12
    more = score(few * 5).same_view  # the control: five times the patients
    width = score(few).same_view
    assert more.high - more.low < 0.7 * (width.high - width.low)


def test_bounds_hold_the_mean_over_patients() -> None:
    values = stream(3, "values").normal(0.05, 0.02, 25)
    found = average_patients("area_error", values, rng=stream(3, "draws"))
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.645 * 0.02 / 5, rel=0.4)


def test_one_patient_is_refused() -> None:
    with pytest.raises(DataError, match="two patients"):
        score([revisit(np.eye(40))])
    with pytest.raises(DataError, match="two patients"):
        average_patients("area_error", np.array([0.1]), rng=stream(1, "draws"))


def test_similarities_that_do_not_fit_are_refused() -> None:
    good = revisit(np.eye(40))
    with pytest.raises(DataError, match="do not belong together"):
        replace(good, query_Q=PLACES[:3])
    with pytest.raises(DataError, match="not finite"):
        replace(good, similarity_QG=np.full((40, 40), np.nan))
    with pytest.raises(DataError, match="queries and a gallery"):
        Revisit(np.empty((0, 40)), np.empty(0), PLACES)


def test_visits_without_a_common_view_are_refused() -> None:
    with pytest.raises(DataError, match="both groups"):
        score([Revisit(np.eye(3), np.zeros(3), np.ones(3))] * 2)


def test_revisit_shows_nothing_of_a_patient() -> None:
    assert repr(revisit(np.eye(40))) == "Revisit(40 queries, 40 clips)"
