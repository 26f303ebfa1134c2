"""The power of the filter: every class of planted copies that must be caught, and the strangers.

In brief: 60 plants of each class that needs no model, from patients whom no encoder has seen.
``test_filter_certificate`` plants 300, those of a model among them.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.factories.filter_power import RATE, Hospital, catch, draw_patients, half_gallery
from vitrael.core.metrics.intervals import clopper_pearson
from vitrael.core.records import PatientImages
from vitrael.privacy.audit.plants import VOLUME_PLANTS, Means
from vitrael.privacy.reid.screen import Screener

pytestmark = [
    pytest.mark.federation,  # takes as long as a whole study
]

_EDGE_VOX = 24
_PLANTS = 60


@pytest.fixture(scope="module")
def hospital() -> Hospital:
    def draw(name: str, count: int, visits: int = 1) -> PatientImages:
        return draw_patients(name, count, visits=visits, edge_vox=_EDGE_VOX)

    return Hospital(
        training=draw("T", 64),
        learning=draw("F", 16, 2),
        calibration=draw("C", 20),
        strangers=draw("S", 60),
        fresh=draw("A", 60),
    )


@pytest.fixture(scope="module")
def screener(hospital: Hospital) -> Screener:
    return hospital.screener(hospital.encoders(960, seed=5))


def test_every_class_that_must_be_caught_is(hospital: Hospital, screener: Screener) -> None:
    table = {name: plant for name, plant in VOLUME_PLANTS.items() if plant.must}
    quick = {name: plant for name, plant in table.items() if plant.group_images == 1}
    found = list(catch(screener, quick, hospital.sources(_PLANTS, seed=1), Means(), seed=2))
    assert len(found) > 15
    for caught in found:
        assert caught.tally.shown == _PLANTS
        assert caught.plant.demanded is not None
        assert caught.share >= caught.plant.demanded, caught.line


def test_new_patients_are_not_proven_to_be_dropped_at_twice_the_rate(
    hospital: Hospital, screener: Screener
) -> None:
    dropped = int((~screener(hospital.fresh.image_BCDHW)).sum())
    bounds = clopper_pearson(dropped, len(hospital.fresh), confidence=0.99)
    assert bounds.low <= 2 * RATE


def test_gallery_that_was_cut_short_loses_power(hospital: Hospital, screener: Screener) -> None:
    short = Hospital(
        training=half_gallery(hospital),
        learning=hospital.learning,
        calibration=hospital.calibration,
        strangers=hospital.strangers,
        fresh=hospital.fresh,
    )
    blind = short.screener(screener.gallery.lens.encoders)
    table = {"noise_2": VOLUME_PLANTS["noise_2"]}
    sources = hospital.sources(_PLANTS, seed=1)
    (whole,) = catch(screener, table, sources, Means(), seed=2)
    (half,) = catch(blind, table, sources, Means(), seed=2)
    assert whole.share >= 0.98
    assert half.share < 0.75


def test_members_see_what_others_miss(hospital: Hospital, screener: Screener) -> None:
    table = {name: VOLUME_PLANTS[name] for name in ("half", "slice_1", "blend_60")}
    found = {
        caught.plant.name: caught
        for caught in catch(screener, table, hospital.sources(30, seed=1), Means(), seed=2)
    }
    copy, patient, registered, regions = found["slice_1"].members
    assert max(copy, patient, registered) < 0.3
    assert regions >= 0.9
    assert found["half"].members[3] >= 0.8
    assert found["blend_60"].members[2] > max(found["blend_60"].members[:2])


def test_vote_of_one_is_its_vote_among_many(hospital: Hospital, screener: Screener) -> None:
    images = np.concatenate([hospital.training.image_BCDHW[:3], hospital.fresh.image_BCDHW[:9]])
    together = screener(images)
    assert (together == np.concatenate([screener(one[None]) for one in images])).all()
