"""The power of the filter on clips: what is done to pictures, to time, and to single frames.

As ``test_filter_power`` for volumes: 60 plants of each class that needs no model. Classes that
turn time about are held to what they demand, though no release depends on them yet.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.factories.clip_power import draw_clips
from tests.factories.filter_power import RATE, Hospital, catch
from vitrael.core.metrics.intervals import clopper_pearson
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants import CLIP_PLANTS, Means, make_plants, why_empty
from vitrael.privacy.audit.plants.frames import crop_picture
from vitrael.privacy.reid.screen import Screener

pytestmark = [
    pytest.mark.federation,  # takes as long as a whole study
]

_PLANTS = 60
_GROUPS = 12
_OF_TIME = ("reversed", "phase_shift", "speed_half", "speed_double", "every_second", "loop")
_OF_FRAMES = ("frames_50", "frames_10", "frame_1")


@pytest.fixture(scope="module")
def hospital() -> Hospital:
    return Hospital(
        training=draw_clips("T", 64),
        learning=draw_clips("F", 16, visits=2),
        calibration=draw_clips("C", 20),
        strangers=draw_clips("S", 60),
        fresh=draw_clips("A", 60),
        along="time",
    )


@pytest.fixture(scope="module")
def screener(hospital: Hospital) -> Screener:
    return hospital.screener(hospital.encoders(960, seed=5))


def test_every_class_that_must_be_caught_is(hospital: Hospital, screener: Screener) -> None:
    quick = {name: plant for name, plant in CLIP_PLANTS.items() if plant.group_images == 1}
    must = {name: plant for name, plant in quick.items() if plant.must}
    table = must | {name: quick[name] for name in (*_OF_TIME, *_OF_FRAMES)}
    found = list(catch(screener, table, hospital.sources(_PLANTS, seed=1), Means(), seed=2))
    assert len(found) > 20
    for caught in found:
        print(caught.line)  # noqa: T201 - read by whoever runs it
        assert caught.tally.shown == _PLANTS
        assert caught.plant.demanded is not None
        assert caught.share >= caught.plant.demanded, caught.line


def test_one_of_twenty_near_copies_is_caught(hospital: Hospital, screener: Screener) -> None:
    table = {"group_20": CLIP_PLANTS["group_20"]}
    (caught,) = catch(screener, table, hospital.sources(_GROUPS, seed=1), Means(), seed=2)
    print(caught.line)  # noqa: T201 - read by whoever runs it
    assert caught.tally.shown == caught.tally.dropped == _GROUPS


def test_still_that_a_generator_animates_is_not_made_and_says_why(hospital: Hospital) -> None:
    still = CLIP_PLANTS["animated_still"]
    sources = hospital.sources(2, seed=1)
    assert still.must
    assert why_empty(still, sources, Means()) == "no video generator was given"
    made = make_plants({"animated_still": still}, sources, Means(), rng=np.random.default_rng(1))
    assert len(made["animated_still"]) == 0


@pytest.mark.parametrize("cut", [False, True], ids=["as they are", "cut to 80 %"])
def test_new_patients_are_not_proven_to_be_dropped_at_twice_the_rate(
    hospital: Hospital, screener: Screener, *, cut: bool
) -> None:
    """A cut must not be what a filter knows a copy by."""
    fresh = hospital.fresh.image_BCDHW
    shown = crop_picture(fresh, share=0.8, rng=stream(3, "cut")) if cut else fresh
    dropped = int((~screener(shown)).sum())
    print(f"  {dropped} of {len(fresh)} new patients")  # noqa: T201
    bounds = clopper_pearson(dropped, len(fresh), confidence=0.99)
    assert bounds.low <= 2 * RATE


def test_gallery_of_first_frames_alone_loses_power(hospital: Hospital, screener: Screener) -> None:
    whole = hospital.training
    first = np.repeat(whole.image_BCDHW[:, :, :1], whole.image_BCDHW.shape[2], axis=2)
    blind = replace(hospital, training=replace(whole, image_BCDHW=first)).screener(
        screener.gallery.lens.encoders
    )
    table = {name: CLIP_PLANTS[name] for name in ("frame_1", "frames_10")}
    sources = hospital.sources(_PLANTS, seed=1)
    for caught in catch(blind, table, sources, Means(), seed=2):
        print(caught.line)  # noqa: T201 - read by whoever runs it
        assert caught.plant.demanded is not None
        assert caught.bounds.high < caught.plant.demanded


def test_members_see_what_others_miss(hospital: Hospital, screener: Screener) -> None:
    table = {name: CLIP_PLANTS[name] for name in ("frame_1", "loop")}
    found = {
        caught.plant.name: caught
        for caught in catch(screener, table, hospital.sources(30, seed=1), Means(), seed=2)
    }
    assert max(found["frame_1"].members[:3]) < 0.3
    assert found["frame_1"].members[3] >= 0.9
    assert found["loop"].members[2] > max(found["loop"].members[:2])


def test_vote_of_one_is_its_vote_among_many(hospital: Hospital, screener: Screener) -> None:
    images = np.concatenate([hospital.training.image_BCDHW[:3], hospital.fresh.image_BCDHW[:9]])
    together = screener(images)
    assert (together == np.concatenate([screener(one[None]) for one in images])).all()
