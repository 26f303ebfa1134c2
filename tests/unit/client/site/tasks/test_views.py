"""A site's pictures in the study's words; nothing is learned or told of a view of few patients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.factories.own_views import VIEWS, bar_of, draw_clip, experts_study
from tests.factories.site_study import STUDY
from vitrael.client.site.tasks.views import (
    KNOWN,
    build_common,
    open_experts,
    read_learnable,
    read_views,
)
from vitrael.core.data.splits import Split
from vitrael.core.errors import DataError, StudyError, WeightsError
from vitrael.core.study import parse_study

if TYPE_CHECKING:
    from tests.unit.client.site.tasks.conftest import MakeStation, Station


def test_words_of_the_site_become_those_of_the_study(station: Station) -> None:
    own = read_views(station.context(), Split.TRAINING)
    assert own.views == ("A2C", "A4C")
    assert own.words == {"A2C": "A2C", "apical 4": "A4C"}
    counts = {VIEWS[n]: int((own.view_B == n).sum()) for n in range(len(VIEWS))}
    assert counts == {"A2C": 12, "A4C": 11, "PLAX": 0, "PSAX": 0}
    assert len(own) == len(own.image_BCHW) == len(own.patient_B) == len(own.images) == 23
    assert own.sector_BHW is None


def test_pictures_stay_with_their_views(station: Station) -> None:
    """A bar of the drawings stands at a place of its own for each word."""
    context = station.context()
    own = read_views(context, Split.TRAINING)
    every = context.cohort.views(Split.TRAINING)
    row_B = own.image_BCHW[:, 0].mean(axis=2).argmax(axis=1) // 3
    assert row_B.tolist() == [bar_of(VIEWS[place]) for place in own.view_B]
    assert len(set(row_B.tolist())) == 2
    assert len(every) == 33  # the control: those of the third view are there, and left out


@pytest.mark.parametrize("pictures", [1, 2])
def test_view_of_ten_patients_is_left_out_and_its_word_not_told(
    make_station: MakeStation, pictures: int
) -> None:
    """However many pictures they have."""
    patients = {Split.TRAINING: {"A2C": 11, "PSAX": 11, "apical 4": 10}}
    own = read_views(make_station(patients, pictures=pictures).context(), Split.TRAINING)
    assert own.views == ("A2C", "PSAX")
    assert own.words == {"A2C": "A2C", "PSAX": "PSAX"}
    assert len(own) == 22 * pictures
    patients = {Split.TRAINING: {"A2C": 11, "PSAX": 11, "apical 4": 11}}  # the control: one more
    own = read_views(make_station(patients).context(), Split.TRAINING)
    assert own.views == ("A2C", "A4C", "PSAX")
    assert own.words["apical 4"] == "A4C"


def test_patients_of_two_words_for_one_view_count_together(make_station: MakeStation) -> None:
    patients = {Split.TRAINING: {"A4C": 6, "apical 4": 5, "A2C": 11}}
    own = read_views(make_station(patients).context(), Split.TRAINING)
    assert own.views == ("A2C", "A4C")
    assert own.words == {"A2C": "A2C", "A4C": "A4C"}  # of six and of five patients: the study's
    many = {Split.TRAINING: {"A4C": 6, "apical 4": 11, "A2C": 11}}  # the control
    told = read_views(make_station(many).context(), Split.TRAINING).words
    assert told == {"A2C": "A2C", "apical 4": "A4C"}
    fewer = {Split.TRAINING: {"A4C": 5, "apical 4": 5, "A2C": 11}}
    assert read_views(make_station(fewer).context(), Split.TRAINING).views == ("A2C",)


def test_patients_are_counted_in_the_split_alone(make_station: MakeStation) -> None:
    patients = {Split.TRAINING: {"A2C": 11, "PLAX": 10}, Split.UTILITY: {"PLAX": 11}}
    context = make_station(patients).context()
    assert read_views(context, Split.TRAINING).views == ("A2C",)
    assert read_views(context, Split.UTILITY).views == ("PLAX",)
    assert read_views(context, Split.CALIBRATION).views == ()


def test_views_that_are_named_are_read_however_few(station: Station) -> None:
    named = read_views(station.context(), Split.CALIBRATION, views=("A2C", "A4C"))
    assert len(named) == 11
    assert set(named.view_B.tolist()) == {0, 1}
    assert len(read_views(station.context(), Split.CALIBRATION)) == 0  # the control


def test_word_that_the_study_does_not_map_is_refused(make_station: MakeStation) -> None:
    patients = {Split.TRAINING: {"A2C": 11, "apical 4": 11, "long axis": 11}}
    with pytest.raises(DataError, match="long axis is none of A2C, A4C, PLAX, PSAX") as caught:
        read_views(make_station(patients).context(), Split.TRAINING)
    assert "north has a label that the study does not map" in caught.value.sentence()
    assert "map it in the study" in caught.value.fix


def test_word_of_few_patients_is_refused_and_not_told(make_station: MakeStation) -> None:
    """A table may have anything in a cell, and the sentence leaves the site."""
    patients = {Split.TRAINING: {"A2C": 11, "apical 4": 11, "Almeida": 10}}
    with pytest.raises(DataError, match="the study does not map") as caught:
        read_views(make_station(patients).context(), Split.TRAINING)
    assert "Almeida" not in caught.value.sentence()
    assert caught.value.__suppress_context__
    assert "report.html" in caught.value.fix


def test_words_of_another_site_are_not_those_of_this_one(make_station: MakeStation) -> None:
    patients = {Split.TRAINING: {"A2C": 11, "apical 4": 11}}
    station = make_station(patients)
    assert len(read_views(station.context(), Split.TRAINING).views) == 2
    roster = station.study.roster
    moved = roster.model_copy(update={"labels": {"harbour": dict(roster.labels["north"])}})
    study = station.study.model_copy(update={"roster": moved})
    with pytest.raises(DataError, match="apical 4"):
        read_views(station.context(study), Split.TRAINING)


def test_sectors_stay_with_their_pictures(make_station: MakeStation) -> None:
    study = experts_study({"data.recipe": "echo-apical"})
    station = make_station({Split.TRAINING: {"A2C": 11, "PLAX": 10, "apical 4": 11}}, study)
    own = read_views(station.context(), Split.TRAINING)
    assert own.sector_BHW is not None
    assert own.sector_BHW.shape == (22, 16, 16)
    number_B = np.rint(255 * own.image_BCHW[:, 0, 0, 0]).astype(int) - 100
    assert sorted(number_B.tolist()) == [*range(11), *range(21, 32)]
    for number, sector_HW in zip(number_B.tolist(), own.sector_BHW, strict=True):
        np.testing.assert_array_equal(sector_HW, draw_clip(number)[1][0] == 1)


@pytest.mark.parametrize(
    "words", [{"A2C": 11, "apical 4": 10}, {"A4C": 11, "apical 4": 11}, {"A2C": 10, "PLAX": 10}, {}]
)
def test_site_with_fewer_than_two_views_trains_no_expert(
    make_station: MakeStation, words: dict[str, int]
) -> None:
    station = make_station({Split.TRAINING: words, Split.UTILITY: {"A2C": 11, "PLAX": 11}})
    with pytest.raises(DataError, match="the site can train no expert") as caught:
        read_learnable(station.context())
    assert "at least two views need 11 patients each" in caught.value.why
    assert caught.value.fix
    assert not any(word in caught.value.sentence() for word in VIEWS)


def test_site_with_two_views_learns_from_them(station: Station) -> None:
    assert read_learnable(station.context()).views == ("A2C", "A4C")


def test_own_views_show_nothing_of_a_patient(station: Station) -> None:
    assert repr(read_learnable(station.context())) == "OwnViews(private)"


def test_study_of_a_synthetic_set_asks_for_no_views(station: Station) -> None:
    context = station.context(parse_study(STUDY.encode(), label="other"))
    with pytest.raises(StudyError, match="trains no experts"):
        read_views(context, Split.TRAINING)


def test_experts_are_those_of_the_members_with_what_they_know(station: Station) -> None:
    inputs = station.bring({2: ("A2C", "A4C"), 0: ("A4C", "PLAX", "PSAX")})
    experts = open_experts(inputs, station.context(), device="cpu")
    assert [(one.name, one.labels) for one in experts] == [
        ("harbour", ("A4C", "PLAX", "PSAX")),
        ("valley", ("A2C", "A4C")),
    ]
    brought = inputs["expert-2"]["net.head.weight"]
    np.testing.assert_array_equal(experts[1].tensors()["net.head.weight"], brought)


def test_experts_that_do_not_fit_what_is_known_of_them_are_refused(station: Station) -> None:
    inputs = station.bring({0: ("A2C", "A4C"), 1: ("A2C", "A4C")})
    context = station.context()
    assert len(open_experts(inputs, context, device="cpu")) == 2  # the control
    known_NV = inputs[KNOWN][KNOWN]
    without = {name: tensors for name, tensors in inputs.items() if name != KNOWN}
    for wrong in (
        without,
        {**inputs, KNOWN: {"other": known_NV}},
        {**inputs, KNOWN: {KNOWN: known_NV[:2]}},
        {**inputs, KNOWN: {KNOWN: known_NV[:, :3]}},
        {**without, KNOWN: {KNOWN: known_NV}, "expert-3": inputs["expert-0"]},
        {KNOWN: inputs[KNOWN]},
    ):
        with pytest.raises(WeightsError, match="no experts that can be used"):
            open_experts(wrong, context, device="cpu")
    for count in (3, 4):
        more = known_NV.copy()
        more[0] = np.arange(len(VIEWS)) < count
        with pytest.raises(WeightsError):
            open_experts({**inputs, KNOWN: {KNOWN: more}}, context, device="cpu")


def test_common_network_is_the_same_at_every_site(station: Station) -> None:
    first, second = build_common(station.context()), build_common(station.context())
    assert first.classes == len(VIEWS)
    assert (first.head.weight == second.head.weight).all()
    other = build_common(station.context(experts_study({"seed": 6})))  # the control
    assert (first.head.weight != other.head.weight).any()
