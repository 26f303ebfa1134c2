"""The attack suite for volumes, on phantom brains."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from vitrael.core.data.phantoms.brain import draw_acquisition, image_brain
from vitrael.core.data.phantoms.cohorts import draw_patient, draw_scan
from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants import (
    VOLUME_PLANTS,
    Means,
    PlantClass,
    Sources,
    draw_sources,
    each_plant,
    found_groups,
    make_plants,
    why_empty,
)
from vitrael.privacy.audit.plants.classes import Way, join_table, strangers_of
from vitrael.privacy.audit.plants.sources import demand_usable
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.suite import VOLUME_SUITE, Demand

GRID = (24, 24, 20)
_DARK = 0.05

DEMANDS = {
    "exact": (True, 0.99),
    "dtype_half": (True, 0.99),
    "bits_12": (True, 0.99),
    "bits_8": (True, 0.99),
    "noise_1": (True, 0.98),
    "noise_2": (True, 0.98),
    "noise_5": (True, 0.98),
    "noise_10": (False, 0.95),
    "rician_5": (False, 0.95),
    **dict.fromkeys(("flip_x", "flip_y", "flip_z", "turn_x", "turn_y", "turn_z"), (True, 0.98)),
    "axes": (True, 0.98),
    "affine_5": (True, 0.98),
    "affine_10": (False, 0.95),
    **dict.fromkeys(("elastic", "bias_field", "gamma_07", "gamma_14"), (False, 0.95)),
    **dict.fromkeys(("contrast_30", "brightness_30", "histogram_match"), (False, 0.95)),
    "inversion": (False, 0.90),
    **dict.fromkeys(("blur_2", "resample_half", "resample_double", "jpeg_30"), (True, 0.95)),
    **dict.fromkeys(("crop_70", "crop_80", "crop_90", "padding"), (False, 0.95)),
    **dict.fromkeys(("masked_face", "masked_skull"), (False, 0.95)),
    "autoencoder": (True, 0.98),
    "sdedit_10": (True, 0.95),
    "sdedit_20": (True, 0.95),
    "sdedit_30": (False, 0.90),
    "sdedit_50": (False, 0.75),
    "sdedit_70": (False, None),
    "memorized": (True, 0.95),
    **dict.fromkeys(("blend_90", "latent_blend_90"), (True, 0.98)),
    **dict.fromkeys(("blend_80", "latent_blend_80"), (True, 0.95)),
    **dict.fromkeys(("blend_70", "latent_blend_70"), (True, 0.95)),
    **dict.fromkeys(("blend_60", "latent_blend_60"), (False, 0.80)),
    **dict.fromkeys(("blend_50", "latent_blend_50"), (False, None)),
    "half": (False, 0.95),
    "copy_50": (False, 0.95),
    "copy_25": (False, 0.85),
    "copy_10": (False, 0.60),
    "lesion": (False, None),
    "slices_all": (False, 0.98),
    "slices_shuffled": (False, 0.98),
    "slices_50": (False, 0.95),
    "slices_10": (False, 0.85),
    "slice_1": (False, None),
    "slice_alone": (False, None),
    "other_visit": (False, 0.90),
    "other_sequence": (False, None),
    "adversarial": (False, 0.90),
    "group_20": (True, 1.0),
}


def cohort(patients: int, *, visits: int = 1, first: int = 0) -> PatientImages:
    """Return phantom patients' scans."""
    scans = [
        draw_scan(3, "north", patient, visit, grid_vox=GRID, spacing_mm=8.0)[0].image_CDHW
        for patient in range(first, first + patients)
        for visit in range(visits)
    ]
    return PatientImages(
        np.clip(np.stack(scans), 0, 1),
        np.linspace(0, 1, 4 * len(scans), dtype=np.float32).reshape(-1, 4),
        np.repeat(np.arange(patients), visits),
        np.tile(np.arange(visits), patients),
    )


def _t2(patient: int, visit: int) -> np.ndarray:
    acquisition = draw_acquisition(stream(3, "acquisition", "north", patient, visit))
    anatomy = draw_patient(3, "north", patient, visit)
    session = image_brain(anatomy, acquisition, grid_vox=GRID, spacing_mm=8.0, contrasts=("T2w",))
    return np.clip(session.scans["T2w"].image_CDHW, 0, 1)


class SmoothEmbedder(torch.nn.Module):
    """A small smooth network with weights from a stream of its own."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(5)
        voxels = GRID[0] * GRID[1] * GRID[2]
        self.weight = torch.nn.Parameter(0.05 * torch.randn(voxels, 16, generator=rng))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.tanh(x.flatten(1) @ self.weight), dim=1)


@pytest.fixture(scope="module")
def images() -> PatientImages:
    return cohort(6, visits=2)


@pytest.fixture(scope="module")
def sources(images: PatientImages) -> Sources:
    sequence = np.stack([_t2(p, v) for p in range(6) for v in range(2)])
    return draw_sources(
        images,
        5,
        rng=stream(1, "sources"),
        strangers=cohort(6, first=50),
        sequence_BCDHW=sequence,
    )


@pytest.fixture(scope="module")
def means(images: PatientImages) -> Means:
    return Means(
        round_trip=lambda image: 0.9 * image,
        renoise=lambda image, share: (1 - share) * image + share * image.mean(),
        latent_blend=lambda image, other, weight: (weight * image + (1 - weight) * other) ** 1.1,
        memorized_BCDHW=images.image_BCDHW[:3],
        embedder=SmoothEmbedder(),
    )


@pytest.fixture(scope="module")
def plants(sources: Sources, means: Means) -> dict[str, np.ndarray]:
    return make_plants(VOLUME_PLANTS, sources, means, rng=stream(2, "plants"))


def _rms(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(np.square(first - second).mean()))


def test_every_class_demands_what_the_table_says() -> None:
    assert {p.name: (p.must, p.demanded) for p in VOLUME_PLANTS.values()} == DEMANDS
    assert all(name == plant.name for name, plant in VOLUME_PLANTS.items())


def test_class_without_a_way_to_make_it_is_refused() -> None:
    ways = {name: plant.way for name, plant in VOLUME_PLANTS.items()}
    assert join_table(VOLUME_SUITE, ways).keys() == VOLUME_PLANTS.keys()
    del ways["sdedit_20"]
    with pytest.raises(KeyError, match="sdedit_20"):
        join_table(VOLUME_SUITE, ways)


def test_names_are_identifiers_and_clauses_are_one_line() -> None:
    for plant in VOLUME_PLANTS.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", plant.name)
        assert plant.says
        assert "\n" not in plant.says
        assert not plant.says.endswith(".")


def test_every_class_is_made_on_the_grid_in_the_range(
    plants: dict[str, np.ndarray], sources: Sources
) -> None:
    assert plants.keys() == VOLUME_PLANTS.keys()
    for name, made in plants.items():
        usual = {"memorized": 3, "group_20": 5 * 20}.get(name, len(sources))
        assert made.shape == (usual, 1, *GRID), name
        assert made.dtype == np.float32
        assert made.flags.c_contiguous
        assert made.min() >= 0
        assert made.max() <= 1


def test_every_class_but_plain_copies_is_a_disguise(
    plants: dict[str, np.ndarray], sources: Sources
) -> None:
    same = [
        name
        for name, made in plants.items()
        if made.shape == sources.image_PCDHW.shape and _rms(made, sources.image_PCDHW) < 1e-5
    ]
    assert same == ["exact"]


def test_equal_generators_give_equal_plants_and_others_do_not(
    plants: dict[str, np.ndarray], sources: Sources, means: Means
) -> None:
    again = make_plants(VOLUME_PLANTS, sources, means, rng=stream(2, "plants"))
    other = make_plants(VOLUME_PLANTS, sources, means, rng=stream(3, "plants"))
    assert all(np.array_equal(plants[name], again[name]) for name in plants)
    changed = {name for name in plants if not np.array_equal(plants[name], other[name])}
    assert {"noise_5", "affine_5", "elastic", "copy_25", "slices_50", "group_20"} <= changed
    assert not changed & {"exact", "flip_x", "blend_90", "blur_2"}


def test_class_is_the_same_whatever_else_the_table_holds(
    plants: dict[str, np.ndarray], sources: Sources, means: Means
) -> None:
    few = {name: VOLUME_PLANTS[name] for name in ("group_20", "noise_5", "copy_25")}
    made = dict(each_plant(few, sources, means, rng=stream(2, "plants")))
    assert all(np.array_equal(made[name], plants[name]) for name in few)


def test_class_without_its_means_is_empty_and_says_why(sources: Sources) -> None:
    lonely = replace(
        sources,
        other_PCDHW=None,
        others_are_strangers=False,
        visit_PCDHW=None,
        sequence_PCDHW=None,
    )
    made = make_plants(VOLUME_PLANTS, lonely, Means(), rng=stream(2, "plants"))
    empty = {name for name, plants in made.items() if not len(plants)}
    assert empty == {name for name, plant in VOLUME_PLANTS.items() if plant.needs}
    for name, plant in VOLUME_PLANTS.items():
        assert bool(why_empty(plant, lonely, Means())) == (name in empty)
    assert made["blend_90"].shape == (0, 1, *GRID)


def test_part_of_a_scan_is_never_copied_into_a_patient_of_the_gallery(
    images: PatientImages,
) -> None:
    within = draw_sources(images, 5, rng=stream(1, "s"))
    made = make_plants(VOLUME_PLANTS, within, Means(), rng=stream(1, "p"))
    parts = {name for name, plant in VOLUME_PLANTS.items() if "stranger" in plant.needs}
    assert parts == {
        *("half", "copy_50", "copy_25", "copy_10", "lesion"),
        *("slices_all", "slices_50", "slices_10", "slice_1"),
    }
    assert all(not len(made[name]) for name in parts)
    assert len(made["blend_80"]) == 5
    for name in parts:
        assert why_empty(VOLUME_PLANTS[name], within, Means()).startswith("no patients outside")

    strangers = cohort(3, first=50)
    sources = draw_sources(images, 5, rng=stream(1, "s"), strangers=strangers)
    assert sources.other_PCDHW is not None
    gaps = np.abs(sources.other_PCDHW[:, None] - strangers.image_BCDHW[None]).sum((2, 3, 4, 5))
    assert gaps.min(1).max() == 0
    assert set(gaps.argmin(1)[:3].tolist()) == {0, 1, 2}
    made = make_plants(VOLUME_PLANTS, sources, Means(), rng=stream(1, "p"))
    assert all(len(made[name]) == 5 for name in parts)
    other_grid = replace(strangers, image_BCDHW=strangers.image_BCDHW[:, :, 1:])
    with pytest.raises(DataError, match="two grids"):
        draw_sources(images, 5, rng=stream(1, "s"), strangers=other_grid)


def test_mixture_of_a_single_patient_is_refused() -> None:
    alone = draw_sources(cohort(1), 4, rng=stream(1, "s"))
    assert len(alone) == 1
    with pytest.raises(DataError, match="single patient"):
        strangers_of(alone)
    make = VOLUME_PLANTS["copy_50"].make
    assert make is not None
    with pytest.raises(DataError, match="single patient"):
        make(alone, Means(), stream(1, "p"))


def test_sources_are_distinct_patients_and_visits_are_their_own(images: PatientImages) -> None:
    sources = draw_sources(images, 6, rng=stream(4, "sources"))

    def rows(image: np.ndarray | None) -> np.ndarray:
        assert image is not None
        gaps = np.abs(image[:, None] - images.image_BCDHW[None]).sum((2, 3, 4, 5))
        assert gaps.min(1).max() == 0
        return gaps.argmin(1)

    source, other, visit = map(
        rows, (sources.image_PCDHW, sources.other_PCDHW, sources.visit_PCDHW)
    )
    assert sorted(images.patient_B[source]) == list(range(6))
    assert (images.patient_B[other] != images.patient_B[source]).all()
    assert (images.patient_B[visit] == images.patient_B[source]).all()
    assert (images.visit_B[visit] != images.visit_B[source]).all()
    assert (sources.visit_row_V == visit).all()
    assert (sources.condition_PK == images.condition_BK[source]).all()
    assert draw_sources(cohort(3), 3, rng=stream(4, "s")).visit_PCDHW is None


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda x: x.__setitem__((0, 0, 3, 3, 3), np.nan), "not finite"),
        (lambda x: x.__setitem__(0, 0.3), "constant"),
        (lambda x: x.__setitem__((0, 0, 3, 3, 3), 1.5), "range"),
    ],
)
def test_unusable_scans_are_refused(break_it: object, match: str) -> None:
    images = cohort(2)
    demand_usable(images.image_BCDHW)
    break_it(images.image_BCDHW)  # type: ignore[operator]
    with pytest.raises(DataError, match=match):
        draw_sources(images, 2, rng=stream(1, "s"))


def test_no_patient_and_no_plant_are_refused(images: PatientImages) -> None:
    nobody = PatientImages(*(getattr(images, name)[:0] for name in images.__slots__))
    for some, count in ((nobody, 3), (images, 0)):
        with pytest.raises(DataError, match="no copy can be planted"):
            draw_sources(some, count, rng=stream(1, "s"))
    with pytest.raises(DataError, match="do not go with"):
        draw_sources(images, 3, rng=stream(1, "s"), sequence_BCDHW=images.image_BCDHW[:-1])


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda image: image[:, :, :-1], "another grid"),
        (lambda image: image * np.nan, "not finite"),
        (lambda image: 0 * image, "constant"),
    ],
)
def test_means_that_give_no_plants_are_refused(sources: Sources, spoil: object, match: str) -> None:
    table = {"autoencoder": VOLUME_PLANTS["autoencoder"]}
    with pytest.raises(DataError, match=match):
        make_plants(table, sources, Means(round_trip=spoil), rng=stream(1, "p"))  # type: ignore[arg-type]


def test_private_arrays_are_not_shown(sources: Sources, means: Means) -> None:
    assert (repr(sources), repr(means)) == ("Sources(private)", "Means(private)")


def test_group_is_found_by_any_of_its_images(plants: dict[str, np.ndarray]) -> None:
    group = VOLUME_PLANTS["group_20"]
    dropped = np.zeros(60, dtype=bool)
    dropped[[3, 59]] = True
    assert found_groups(dropped, group) == Tally(3, 2)
    assert found_groups(dropped, VOLUME_PLANTS["exact"]) == Tally(60, 2)
    assert found_groups(dropped[:0], group) == Tally(0, 0)
    with pytest.raises(DataError, match="whole number of groups"):
        found_groups(dropped[1:], group)


def test_class_that_nobody_can_make_is_empty(sources: Sources) -> None:
    plant = PlantClass("some_day", Demand("made some day", 0.95, must=True), Way(None))
    made = make_plants({"some_day": plant}, sources, Means(), rng=stream(1, "p"))
    assert len(made["some_day"]) == 0
    assert why_empty(plant, sources, Means()) == "nothing makes such plants yet"
