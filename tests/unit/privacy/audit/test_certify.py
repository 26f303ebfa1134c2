"""The power certificate of a filter, by plain filters that need no training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit.certify import certify_filter
from vitrael.privacy.audit.planting import PlantList, content_ids
from vitrael.privacy.audit.plants import VOLUME_PLANTS, Means, Sources, draw_sources
from vitrael.privacy.audit.power import Certificate, Tally
from vitrael.privacy.reid.roles import Keep, keep_all

SALT = "0" * 32
PATIENTS = 30
CLASSES = (
    "exact",
    "noise_2",
    "flip_x",
    "inversion",
    "half",
    "other_visit",
    "group_20",
    "memorized",
)


def _images(name: str, count: int, visits: int = 1) -> PatientImages:
    """Return patients who are told apart by coarse blocks; visits differ a little."""
    rng = stream(3, name)
    coarse = rng.uniform(0.2, 0.8, (count, 1, 4, 4, 4)).repeat(visits, axis=0)
    image = coarse.repeat(3, 2).repeat(3, 3).repeat(3, 4)
    image = np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1).astype(np.float32)
    return PatientImages(
        image,
        np.zeros((len(image), 4), np.float32),
        np.repeat(np.arange(count), visits),
        np.tile(np.arange(visits), count),
    )


@pytest.fixture(scope="module")
def gallery() -> PatientImages:
    return _images("T", PATIENTS, visits=2)


@pytest.fixture(scope="module")
def strangers() -> PatientImages:
    return _images("A", 120)


@pytest.fixture(scope="module")
def sources(gallery: PatientImages, strangers: PatientImages) -> Sources:
    return draw_sources(gallery, PATIENTS, rng=stream(1, "sources"), strangers=strangers)


def _near(gallery: np.ndarray) -> Keep:
    """Return a filter that drops whatever is near a scan or its mirror image."""
    known = np.concatenate([gallery, gallery[:, :, ::-1]]).reshape(2 * len(gallery), -1)

    def keep(image: np.ndarray) -> np.ndarray:
        flat = image.reshape(len(image), -1)
        return np.array([np.sqrt(np.square(known - one).mean(1)).min() > 0.1 for one in flat])

    return keep


def _certify(
    keep: Keep,
    sources: Sources,
    strangers: PatientImages,
    *,
    keep_others: Keep | None = None,
    subgroup_PG: np.ndarray | None = None,
) -> tuple[Certificate, PlantList]:
    return certify_filter(
        keep,
        sources,
        Means(),
        table={name: VOLUME_PLANTS[name] for name in CLASSES},
        keep_others=keep_others or keep,
        negatives={"matched": strangers.image_BCDHW[:20], "template": strangers.image_BCDHW[:5]},
        genuine_BCDHW=strangers.image_BCDHW,
        subgroup_PG=np.full((len(sources), 1), "all") if subgroup_PG is None else subgroup_PG,
        salt=SALT,
        rng=stream(2, "plants"),
        told=lambda _done, _total: None,
    )


def test_every_class_is_counted_by_the_filter_that_votes(
    gallery: PatientImages, sources: Sources, strangers: PatientImages
) -> None:
    found, _ = _certify(_near(gallery.image_BCDHW), sources, strangers)
    assert found.plants["exact"] == found.plants["flip_x"] == Tally(PATIENTS, PATIENTS)
    assert found.plants["group_20"].shown == PATIENTS
    assert found.plants["inversion"].dropped < PATIENTS  # a filter of pixels does not know it
    assert found.plants["memorized"] == Tally(0, 0)  # nobody gave any
    assert found.negatives == {"matched": Tally(20, 0), "template": Tally(0, 0)}
    assert (found.must.share, found.must.patients) == (PATIENTS, PATIENTS)
    blind, _ = _certify(keep_all, sources, strangers)
    assert blind.plants["exact"] == Tally(PATIENTS, 0)
    assert blind.must.share == 0


def test_other_visit_is_not_found_by_itself(
    gallery: PatientImages, sources: Sources, strangers: PatientImages
) -> None:
    keep = _near(gallery.image_BCDHW)
    with_itself, _ = _certify(keep, sources, strangers)
    without, _ = _certify(keep, sources, strangers, keep_others=keep_all)
    assert with_itself.plants["other_visit"] == Tally(PATIENTS, PATIENTS)
    assert without.plants["other_visit"] == Tally(PATIENTS, 0)


def test_votes_that_depend_on_the_batch_are_counted(
    gallery: PatientImages, sources: Sources, strangers: PatientImages
) -> None:
    near = _near(gallery.image_BCDHW)

    def by_batch(image: np.ndarray) -> np.ndarray:
        """Drop the half of a batch that is brightest, as one does that normalizes over it."""
        means = image.mean((1, 2, 3, 4))
        return np.asarray(near(image) & (means < np.median(means)))

    honest, _ = _certify(near, sources, strangers)
    changed, _ = _certify(by_batch, sources, strangers)
    assert honest.mixing.shown > 10
    assert honest.mixing.dropped == 0
    assert changed.mixing.dropped > 0


def test_subgroup_that_is_small_leaves_its_division_untold(
    gallery: PatientImages, sources: Sources, strangers: PatientImages
) -> None:
    sex = np.where(np.arange(PATIENTS) < 10, "female", "male")
    age = np.where(np.arange(PATIENTS) < 11, "younger", "older")
    divisions = np.stack([sex, age], axis=1)
    keep = _near(gallery.image_BCDHW)
    found, _ = _certify(keep, sources, strangers, subgroup_PG=divisions)
    assert found.subgroups.keys() == {"younger", "older"}
    assert found.subgroups["younger"].patients == 11


def test_class_of_fewer_than_eleven_is_shown_to_nobody(
    gallery: PatientImages, strangers: PatientImages
) -> None:
    few = draw_sources(gallery, 10, rng=stream(1, "sources"), strangers=strangers)
    found, plants = _certify(_near(gallery.image_BCDHW), few, strangers)
    assert set(found.plants.values()) == {Tally(0, 0)}
    assert found.must.patients == 0
    assert plants.ids  # what was made is on the list all the same


def test_list_names_every_plant_of_every_class(
    gallery: PatientImages, sources: Sources, strangers: PatientImages
) -> None:
    _, plants = _certify(_near(gallery.image_BCDHW), sources, strangers)
    assert {name: len(ids) for name, ids in plants.plants.items()} == {
        **dict.fromkeys(CLASSES, PATIENTS),
        "group_20": 20 * PATIENTS,
        "memorized": 0,
    }
    assert content_ids(sources.image_PCDHW, salt=SALT)[4] in plants.ids
    assert content_ids(strangers.image_BCDHW, salt=SALT)[4] not in plants.ids
    assert content_ids(sources.image_PCDHW, salt="1" * 32)[4] not in plants.ids


def test_plants_do_not_depend_on_the_filter(
    gallery: PatientImages, sources: Sources, strangers: PatientImages
) -> None:
    _, one = _certify(_near(gallery.image_BCDHW), sources, strangers)
    _, other = _certify(keep_all, sources, strangers)
    assert one.digest == other.digest
    moved = replace(sources, image_PCDHW=sources.image_PCDHW[::-1].copy())
    _, third = _certify(keep_all, moved, strangers)
    assert third.digest != one.digest


def test_other_visits_are_not_told_where_few_patients_have_none(
    gallery: PatientImages, sources: Sources, strangers: PatientImages
) -> None:
    visits, rows = sources.visit_PCDHW, sources.visit_row_V
    assert visits is not None
    assert rows is not None
    keep = _near(gallery.image_BCDHW)

    def shown(without: int) -> int:
        some = replace(
            sources,
            visit_PCDHW=visits[: PATIENTS - without],
            visit_row_V=rows[: PATIENTS - without],
        )
        return _certify(keep, some, strangers)[0].plants["other_visit"].shown

    assert [shown(0), shown(4), shown(11)] == [PATIENTS, 0, PATIENTS - 11]
