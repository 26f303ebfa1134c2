"""A cohort of pictures gives each patient's to one split, with the word for what they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.factories.cohort import write_cohort
from tests.factories.own_views import (
    EDGE_PX,
    KEY,
    draw_clip,
    draw_view,
    experts_study,
    subjects_of,
    write_views,
)
from vitrael.core.data.cohort import Cohort, find_cohort
from vitrael.core.data.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from vitrael.core.data.splits import Split, split_of, split_subjects
from vitrael.core.errors import CohortError
from vitrael.core.protocols import ExpertsProtocol, Protocol

PATIENTS = {
    Split.TRAINING: {"A2C": 3, "apical 4": 2},
    Split.CALIBRATION: {"A2C": 2},
    Split.UTILITY: {"PLAX": 2, "A2C": 1},
}
PICTURES = {Split.TRAINING: 10, Split.FILTER: 0, Split.CALIBRATION: 4, Split.AUDIT: 0} | {
    Split.UTILITY: 6
}


@pytest.fixture
def views() -> ExpertsProtocol:
    return experts_study().experts


@pytest.fixture
def clips() -> ExpertsProtocol:
    return experts_study({"data.recipe": "echo-apical"}).experts


@pytest.fixture
def folder(tmp_path: Path, views: ExpertsProtocol) -> Path:
    """Return the pictures of ten patients, two of each."""
    write_views(tmp_path / "main", views.data, PATIENTS, pictures=2)
    return tmp_path / "main"


def with_labels(folder: Path, change: Callable[[int], dict[str, str]]) -> None:
    """Write a manifest whose items have other labels, by their place."""
    manifest = read_manifest(folder / MANIFEST_NAME)
    items = tuple(
        item.model_copy(update={"labels": change(place)})
        for place, item in enumerate(manifest.items)
    )
    write_manifest(Manifest(recipe=manifest.recipe, items=items), folder / MANIFEST_NAME)


def test_pictures_labels_and_patients_fit_together(folder: Path, views: ExpertsProtocol) -> None:
    cohort = Cohort.open(folder, views, key=KEY)
    every = read_manifest(folder / MANIFEST_NAME).items
    for split, count in PICTURES.items():
        pictures, items = cohort.views(split), cohort.items(split)
        assert pictures.image_BCHW.shape == (count, 1, EDGE_PX, EDGE_PX)
        assert pictures.image_BCHW.dtype == np.float32
        assert pictures.sector_BHW is None
        assert pictures.label_B == tuple(item.labels["view"] for item in items)
        for row, item in enumerate(items):
            drawn = draw_view(every.index(item), item.labels["view"])
            assert np.abs(pictures.image_BCHW[row] - drawn).max() <= 0.51 / 32767
        subjects = [item.subject for item in items]
        pairs = set(zip(subjects, pictures.patient_B.tolist(), strict=True))
        assert len(pairs) == len(set(subjects)) == count // 2
        assert len(np.unique(pictures.patient_B)) == count // 2


def test_patient_with_several_pictures_is_in_one_split(
    folder: Path, views: ExpertsProtocol
) -> None:
    cohort = Cohort.open(folder, views, key=KEY)
    homes: dict[str, set[Split]] = {}
    for split in Split:
        for item in cohort.items(split):
            homes.setdefault(item.subject, set()).add(split)
            assert split_of(item.subject, views.data.splits, key=KEY) is split
    assert len(homes) == 10
    assert all(len(home) == 1 for home in homes.values())
    other = Cohort.open(folder, views, key=b"another key of one site")  # the control
    assert {i.subject for i in other.items(Split.TRAINING)} != {
        i.subject for i in cohort.items(Split.TRAINING)
    }


def test_experts_need_neither_a_filter_nor_an_audit(
    views: ExpertsProtocol, protocol: Protocol
) -> None:
    subjects = [f"q-{number}" for number in range(400)]
    parted = split_subjects(subjects, views.data.splits, key=KEY)
    assert parted[Split.FILTER] == parted[Split.AUDIT] == ()
    shares = {split: len(own) / 400 for split, own in parted.items() if own}
    assert shares == pytest.approx(
        {Split.TRAINING: 0.4, Split.CALIBRATION: 0.3, Split.UTILITY: 0.3}, abs=0.08
    )
    synthetic = split_subjects(subjects, protocol.data.splits, key=KEY)  # the control
    assert synthetic[Split.FILTER]
    assert synthetic[Split.AUDIT]


def test_clip_gives_its_middle_frame_and_its_sector(tmp_path: Path, clips: ExpertsProtocol) -> None:
    manifest = write_views(tmp_path, clips.data, PATIENTS)
    cohort = Cohort.open(tmp_path, clips, key=KEY)
    seen = 0
    for split in PATIENTS:
        pictures = cohort.views(split)
        assert pictures.sector_BHW is not None
        assert pictures.sector_BHW.dtype == bool
        for row, item in enumerate(cohort.items(split)):
            number = manifest.items.index(item)
            frames_THW, sector_1HW = draw_clip(number)
            assert len(set(frames_THW[:, 0, 0].tolist())) == 3  # another frame would be seen
            np.testing.assert_allclose(pictures.image_BCHW[row], (100 + number) / 255, rtol=1e-6)
            np.testing.assert_array_equal(pictures.sector_BHW[row], sector_1HW[0] == 1)
            seen += 1
    assert seen == 10


def test_view_is_the_label_before_any_other(folder: Path, views: ExpertsProtocol) -> None:
    with_labels(folder, lambda place: {"label": "folder", **({"view": "A2C"} if place % 2 else {})})
    cohort = Cohort.open(folder, views, key=KEY)
    every = read_manifest(folder / MANIFEST_NAME).items
    found = {
        every.index(item): word
        for split in Split
        for item, word in zip(cohort.items(split), cohort.views(split).label_B, strict=True)
    }
    assert found == {place: "A2C" if place % 2 else "folder" for place in range(len(every))}


def test_picture_that_nothing_is_said_of_is_refused_by_its_place(
    folder: Path, views: ExpertsProtocol
) -> None:
    items = read_manifest(folder / MANIFEST_NAME).items
    with_labels(folder, lambda place: {"finding": "none"} if place == 3 else {"view": "A2C"})
    cohort = Cohort.open(folder, views, key=KEY)
    split = split_of(items[3].subject, views.data.splits, key=KEY)
    with pytest.raises(CohortError, match="item 3 of the cohort has no view") as caught:
        cohort.views(split)
    assert caught.value.fix
    assert items[3].subject not in caught.value.sentence()
    other = next(each for each in PATIENTS if each is not split)
    assert len(cohort.views(other)) == PICTURES[other]  # the control: the others are used


@pytest.mark.parametrize("recipe", ["image-2d", "echo-apical"])
def test_empty_split_gives_no_pictures(tmp_path: Path, recipe: str) -> None:
    protocol = experts_study({"data.recipe": recipe}).experts
    write_views(tmp_path, protocol.data, {Split.TRAINING: {"A2C": 1}})
    pictures = Cohort.open(tmp_path, protocol, key=KEY).views(Split.UTILITY)
    assert pictures.image_BCHW.shape == (0, 1, EDGE_PX, EDGE_PX)
    assert (pictures.label_B, len(pictures.patient_B)) == ((), 0)
    sectors = pictures.sector_BHW
    assert (sectors is None) == (recipe == "image-2d")
    assert sectors is None or sectors.shape == (0, EDGE_PX, EDGE_PX)


def test_pictures_are_read_once_and_shown_to_nobody(folder: Path, views: ExpertsProtocol) -> None:
    cohort = Cohort.open(folder, views, key=KEY)
    assert cohort.views(Split.TRAINING) is cohort.views(Split.TRAINING)
    assert repr(cohort.views(Split.TRAINING)) == "ViewImages(private)"


def test_changed_picture_is_refused_by_its_place(folder: Path, views: ExpertsProtocol) -> None:
    item = read_manifest(folder / MANIFEST_NAME).items[0]
    path = folder / "shards" / item.shard
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CohortError, match="item 0 of the cohort is not what was taken in"):
        Cohort.open(folder, views, key=KEY).views(Split.TRAINING)
    path.write_bytes(data)  # the control
    assert len(Cohort.open(folder, views, key=KEY).views(Split.TRAINING)) == 10


def test_pictures_give_no_volumes(folder: Path, views: ExpertsProtocol) -> None:
    with pytest.raises(CohortError, match="holds pictures, not volumes"):
        Cohort.open(folder, views, key=KEY).images(Split.TRAINING)


def test_volumes_give_no_views(tmp_path: Path, protocol: Protocol) -> None:
    write_cohort(tmp_path, patients=6)
    cohort = Cohort.open(tmp_path, protocol, key=KEY)
    split = next(split for split in Split if cohort.items(split))
    assert len(cohort.images(split))  # the control
    with pytest.raises(CohortError):
        cohort.views(split)


def test_cohort_of_the_other_aim_is_not_opened(
    tmp_path: Path, folder: Path, views: ExpertsProtocol, clips: ExpertsProtocol, protocol: Protocol
) -> None:
    write_cohort(tmp_path / "brain", patients=1)
    for own, wanted in ((folder, protocol), (tmp_path / "brain", views), (folder, clips)):
        with pytest.raises(CohortError, match="by the recipe"):
            Cohort.open(own, wanted, key=KEY)
    assert find_cohort(tmp_path, views.data) == folder  # each study finds its own
    assert find_cohort(tmp_path, protocol.data) == tmp_path / "brain"


def test_pictures_of_another_size_are_not_opened(folder: Path) -> None:
    larger = experts_study({"data.edge_px": 32}).experts
    with pytest.raises(CohortError, match="another grid"):
        Cohort.open(folder, larger, key=KEY)


def test_factory_fills_the_splits_that_it_is_told(views: ExpertsProtocol) -> None:
    """What the tests of the tasks rest on."""
    for split in PATIENTS:
        subject = next(subjects_of(split, views.data))
        assert split_of(subject, views.data.splits, key=KEY) is split
