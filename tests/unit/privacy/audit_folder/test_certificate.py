"""What a class of plants needs to be reached, and the plants of pictures."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.core.workbench.progress import silent
from vitrael.privacy.audit.plants import (
    VOLUME_PLANTS,
    Means,
    PlantClass,
    draw_sources,
    make_plants,
    why_empty,
)
from vitrael.privacy.audit.plants.classes import Way
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.audit_folder.certificate import (
    certify,
    deal_plants,
    judge,
    most_shown,
    no_certificate,
    plants_taken,
)
from vitrael.privacy.audit_folder.crossing import CrossScreener, calibrate, fit_filter
from vitrael.privacy.audit_folder.encoders import Budget
from vitrael.privacy.audit_folder.mixtures import votes_agree
from vitrael.privacy.audit_folder.picture_plants import NOT_OF_PICTURES, PICTURE_PLANTS
from vitrael.privacy.suite import Demand


def _plant(demanded: float | None, *, group_images: int = 1) -> PlantClass:
    return PlantClass("some", Demand("some", demanded, group_images=group_images), Way(None))


@pytest.mark.parametrize(
    ("demanded", "shown", "caught", "outcome"),
    [
        (0.95, 59, 59, "reached"),
        (0.95, 58, 58, "not estimable"),
        (0.95, 100, 90, "not reached"),
        (0.95, 8, 7, "not estimable"),
        (0.95, 8, 2, "not reached"),
        (0.95, 0, 0, "not estimable"),
        (None, 8, 0, "reported"),
        (None, 0, 0, "not estimable"),
    ],
)
def test_few_patients_never_reach_a_demand(
    demanded: float | None, shown: int, caught: int, outcome: str
) -> None:
    assert judge(_plant(demanded), Tally(shown, caught)) == outcome


def test_a_missed_group_is_not_reached_and_few_groups_are_no_pass() -> None:
    group = _plant(1.0, group_images=20)
    assert judge(group, Tally(59, 59)) == "reached"
    assert judge(group, Tally(58, 58)) == "not estimable"
    assert judge(group, Tally(59, 58)) == "not reached"


@pytest.mark.parametrize(("demanded", "takes"), [(0.95, 59), (0.98, 149), (0.99, 299)])
def test_fewer_plants_than_a_demand_takes_cannot_show_it(demanded: float, takes: int) -> None:
    assert plants_taken(_plant(demanded)) == takes
    assert judge(_plant(demanded), Tally(takes, takes)) == "reached"
    assert judge(_plant(demanded), Tally(takes - 1, takes - 1)) == "not estimable"
    assert most_shown(takes - 1) < demanded <= most_shown(takes)


def test_a_class_without_a_demand_takes_no_number_and_groups_take_theirs() -> None:
    assert plants_taken(_plant(None)) is None
    assert plants_taken(_plant(1.0, group_images=20)) == 59


def test_no_filter_is_no_pass_for_any_class() -> None:
    for kind in ("picture", "volume", "clip"):
        certificate = no_certificate(kind, "too few patients")  # type: ignore[arg-type]
        assert {one.outcome for one in certificate.plants} <= {"not estimable"}
        assert bool(certificate.plants) == (kind != "clip")
        assert certificate.agreement.value is None


def _pictures() -> PatientImages:
    rng = stream(1, "pictures")
    image = rng.random((12, 1, 1, 32, 32)).astype(np.float32)
    return PatientImages(
        image, np.zeros((12, 1), np.float32), np.arange(12) // 2, np.arange(12) % 2
    )


def test_every_class_of_pictures_is_made_on_their_grid() -> None:
    images = _pictures()
    sources = draw_sources(images, 4, rng=stream(1, "sources"), strangers=images)
    plants = make_plants(PICTURE_PLANTS, sources, Means(), rng=stream(1, "plants"))
    unchanged = set()
    for name, made in plants.items():
        if why_empty(PICTURE_PLANTS[name], sources, Means()):
            assert not len(made)
            continue
        assert made.shape[1:] == (1, 1, 32, 32)
        if len(made) == 4 and np.array_equal(made, sources.image_PCDHW):
            unchanged.add(name)
    assert unchanged == {"exact"}
    assert np.array_equal(plants["flip_columns"], sources.image_PCDHW[..., ::-1])


def test_pictures_have_the_demands_of_volumes() -> None:
    assert not {*NOT_OF_PICTURES} & {*PICTURE_PLANTS}
    shared = {*PICTURE_PLANTS} & {*VOLUME_PLANTS}
    assert len(shared) > 40
    for name in shared:
        assert PICTURE_PLANTS[name].demanded == VOLUME_PLANTS[name].demanded
        assert PICTURE_PLANTS[name].must == VOLUME_PLANTS[name].must
    own = {*VOLUME_PLANTS} - {*PICTURE_PLANTS} - {*NOT_OF_PICTURES}
    assert own == {"flip_y", "flip_z", "turn_x", "other_sequence"}  # under other names


@pytest.mark.parametrize(("most", "dealt"), [(1, (1, 0, 0)), (10, (4, 3, 3)), (60, (20, 20, 20))])
def test_parts_give_as_many_plants_as_are_allowed_and_no_more(
    most: int, dealt: tuple[int, ...]
) -> None:
    assert deal_plants(most) == dealt
    assert sum(deal_plants(most)) == most


def test_no_class_has_more_plants_than_are_allowed() -> None:
    image = stream(1, "pictures").random((12, 1, 1, 24, 24)).astype(np.float32)
    images = PatientImages(image, np.zeros((12, 1), np.float32), np.arange(12), np.zeros(12, int))
    cross = fit_filter(images, budget=Budget(length_images=32, channels=(4,)), seed=1)
    point, _ = calibrate(cross, rate=0.3, seed=1)
    assert point is not None

    def shown(most: int) -> dict[str, int]:
        certificate = certify(
            CrossScreener(cross, point),
            image[:2],
            kind="picture",
            most_plants=most,
            classes=frozenset({"exact", "half"}),
            seed=1,
            content_N=np.arange(12),
            groups={},
            tell=silent,
        )
        return {one.name: one.caught.n for one in certificate.plants}

    assert "stranger" in PICTURE_PLANTS["half"].needs  # dealt over the parts, as exact is not
    assert shown(4) == {"exact": 4, "half": 4}
    assert shown(1) == {"exact": 1, "half": 1}


def _dims(image: np.ndarray) -> np.ndarray:
    return np.asarray(image.reshape(len(image), -1).mean(1) < 0.5)


def test_votes_that_depend_on_the_batch_are_noticed() -> None:
    rng = stream(1, "votes")
    plants = {"some": rng.random((80, 1, 1, 8, 8)).astype(np.float32)}
    genuine = rng.random((120, 1, 1, 8, 8)).astype(np.float32)
    agree = votes_agree(plants, genuine, _dims, seed=1, tell=silent)
    assert agree.value == 0
    assert agree.n > 0

    def by_batch(image: np.ndarray) -> np.ndarray:
        mean = image.reshape(len(image), -1).mean(1)
        return np.asarray(np.argsort(np.argsort(mean)) < min(60, len(image)))

    changed = votes_agree(plants, genuine, by_batch, seed=1, tell=silent)
    assert changed.value is not None
    assert changed.value > 0


def test_few_images_hold_no_hundredth_of_plants() -> None:
    rng = stream(1, "votes")
    plants = {"some": rng.random((8, 1, 1, 8, 8)).astype(np.float32)}
    few = votes_agree(
        plants, rng.random((98, 1, 1, 8, 8)).astype(np.float32), _dims, seed=1, tell=silent
    )
    assert few.value is None
    assert "99" in few.reason


def test_a_planted_copy_among_the_candidates_stops_no_mixture() -> None:
    rng = stream(1, "votes")
    plants = {"some": rng.random((8, 1, 1, 8, 8)).astype(np.float32)}
    genuine = np.concatenate([plants["some"], rng.random((110, 1, 1, 8, 8)).astype(np.float32)])
    assert votes_agree(plants, genuine, _dims, seed=1, tell=silent).value == 0
