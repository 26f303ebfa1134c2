"""Matched negatives: hard to tell from copies, and nobody's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.unit.privacy.audit.test_plants import cohort
from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants.negatives import (
    MOST_DROPPED,
    NEGATIVES,
    draw_negatives,
    look_alikes,
    matched_strangers,
    pooled_band,
    template_means,
)


def _people(count: int, seed: int) -> np.ndarray:
    """Return age in [0, 1], sex, and a scanner's number."""
    rng = stream(seed, "people")
    age, sex, scanner = (
        rng.uniform(0, 1, count),
        rng.integers(2, size=count),
        rng.integers(3, size=count),
    )
    return np.stack([age, sex, scanner], axis=1).astype(np.float64)


def _cost(patients: np.ndarray, strangers: np.ndarray) -> float:
    spread = np.concatenate([patients, strangers])[:, 0].std()
    age = np.abs(patients[:, 0] - strangers[:, 0]).sum() / spread
    return float(age + (patients[:, 1:] != strangers[:, 1:]).sum())


def test_each_kind_may_be_dropped_in_one_of_twenty_and_pooled_about_the_rate() -> None:
    assert MOST_DROPPED == 0.05
    assert {n.most_dropped for n in NEGATIVES.values()} == {0.05}
    assert pooled_band(0.05) == pytest.approx((0.025, 0.1))


def test_matched_strangers_are_the_nearest_and_each_is_used_once() -> None:
    patients, strangers = _people(20, 1), _people(60, 2)
    rows = matched_strangers(patients, strangers, categorical=(1, 2))
    assert len(rows) == len(set(rows.tolist())) == 20
    anybody = stream(3, "any").permutation(60)[:20]
    assert _cost(patients, strangers[rows]) < 0.2 * _cost(patients, strangers[anybody])
    twins = np.concatenate([_people(5, 9), patients[::-1]])
    assert (matched_strangers(patients, twins, categorical=(1, 2)) == np.arange(24, 4, -1)).all()


def test_no_other_pairing_of_strangers_is_nearer() -> None:
    patients, strangers = _people(4, 4), _people(6, 5)
    rows = matched_strangers(patients, strangers, categorical=(1, 2))
    spread = np.concatenate([patients, strangers])[:, 0].std()

    def cost(chosen: tuple[int, ...]) -> float:
        pick = strangers[list(chosen)]
        age = np.abs(patients[:, 0] - pick[:, 0]).sum() / spread
        return float(age + (patients[:, 1:] != pick[:, 1:]).sum())

    assert cost(tuple(rows)) == pytest.approx(min(map(cost, itertools.permutations(range(6), 4))))


def test_units_of_a_covariate_do_not_matter_and_constant_ones_neither() -> None:
    patients, strangers = _people(10, 1), _people(30, 2)
    rows = matched_strangers(patients, strangers)
    scale = np.array([128.0, 1.0, 4.0])
    assert (matched_strangers(scale * patients, scale * strangers) == rows).all()
    wide = [np.concatenate([x, np.ones((len(x), 1))], axis=1) for x in (patients, strangers)]
    assert (matched_strangers(wide[0], wide[1]) == rows).all()


def test_fewer_strangers_match_fewer_patients() -> None:
    assert len(matched_strangers(_people(10, 1), _people(4, 2))) == 4
    assert len(matched_strangers(_people(10, 1), _people(0, 2))) == 0


def test_covariates_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        matched_strangers(_people(3, 1) * np.nan, _people(3, 1))
    with pytest.raises(DataError, match="different covariates"):
        matched_strangers(_people(3, 1), _people(3, 1)[:, :2])


def test_look_alike_is_found_whatever_its_gain_and_offset() -> None:
    gallery = cohort(12).image_BCDHW
    strangers = cohort(10, first=50).image_BCDHW
    disguised = 0.5 * gallery[[3]] + 0.1
    rows = look_alikes(np.concatenate([strangers, disguised]), gallery, count=4)
    assert rows[0] == 10
    assert len(set(rows.tolist())) == 4
    inverted = 1 - gallery[[3]]
    assert look_alikes(np.concatenate([strangers, inverted]), gallery, count=11)[-1] == 10


def test_template_is_of_many_and_of_nobody() -> None:
    images = cohort(24)
    means = template_means(images, 3, rng=stream(1, "template"))
    assert means.shape == (3, *images.image_BCDHW.shape[1:])
    flat, people = means.reshape(3, -1), images.image_BCDHW.reshape(24, -1)
    to_people = np.sqrt(np.square(flat[:, None] - people[None]).sum(2))
    between = np.sqrt(np.square(flat[:1] - flat[1:]).sum(1))
    assert between.max() < to_people.min()
    assert between.min() > 0
    assert len(template_means(cohort(21), 3, rng=stream(1, "template"))) == 0


def test_every_kind_is_drawn_from_strangers_once_each() -> None:
    gallery, strangers = cohort(22, visits=1), cohort(9, visits=2, first=100)
    fakes = cohort(5, first=200).image_BCDHW
    drawn = draw_negatives(strangers, gallery, 6, rng=stream(1, "n"), disjoint_BCDHW=fakes)
    assert {name: len(images) for name, images in drawn.items()} == {
        "matched": 6,
        "template": 6,
        "look_alike": 6,
        "disjoint": 5,
    }
    assert drawn.keys() == NEGATIVES.keys()
    flat = strangers.image_BCDHW.reshape(len(strangers), -1)
    for name in ("matched", "look_alike"):
        gaps = np.abs(drawn[name].reshape(6, 1, -1) - flat[None]).sum(2)
        assert gaps.min(1).max() == 0
        assert len(set(strangers.patient_B[gaps.argmin(1)].tolist())) == 6
    assert len(draw_negatives(strangers, gallery, 6, rng=stream(1, "n"))["disjoint"]) == 0


def test_unusable_negatives_are_refused() -> None:
    gallery, strangers = cohort(3), cohort(3, first=9)
    for fakes, match in (
        (gallery.image_BCDHW * np.nan, "not finite"),
        (gallery.image_BCDHW[:, :, 1:], "another grid"),
        (0 * gallery.image_BCDHW, "constant"),
    ):
        with pytest.raises(DataError, match=match):
            draw_negatives(strangers, gallery, 2, rng=stream(1, "n"), disjoint_BCDHW=fakes)
    blank = PatientImages(
        0 * strangers.image_BCDHW, strangers.condition_BK, strangers.patient_B, strangers.visit_B
    )
    with pytest.raises(DataError, match="constant"):
        draw_negatives(blank, gallery, 2, rng=stream(1, "n"))
