"""A cohort gives each patient's scans to one split, and tells nothing when it fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories.cohort import recipe_settings, write_cohort
from vitrael.core.data.cache import shard_name
from vitrael.core.data.cohort import Cohort, find_cohort
from vitrael.core.data.manifest import Item, Manifest, read_manifest, write_manifest
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.recipes import RecipeSettings
from vitrael.core.data.scan import Scan
from vitrael.core.data.splits import Split, split_of
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import CohortError
from vitrael.core.geometry import centered_affine
from vitrael.core.protocols import Data, Protocol

MakeBrain = Callable[..., Scan]
KEY = b"a key of one site, 32 bytes long"

PATIENTS = 30
ROWS = tuple(tuple(row) for row in np.eye(4).tolist())


def visits(patient: int) -> int:
    return 2 if patient % 3 == 0 else 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_brain: MakeBrain) -> Path:
    """Return 30 patients, every third with two visits; volumes recorded for even ones."""
    folder = tmp_path_factory.mktemp("cohort")

    def draw(patient: int, visit: int) -> np.ndarray:
        scan = make_brain(
            ventricle_ml=10 + 2 * patient, noise=0.01, seed=10 * patient + visit, parts=2
        )
        return np.clip(scan.image_CDHW, 0, 1)

    def covariates(patient: int, _: int) -> dict[str, float]:
        known = {"ventricle_ml": 50.0, "brain_ml": 1300.0} if patient % 2 == 0 else {}
        return {"age_years": 30.0 + patient, "sex": float(patient % 2), **known}

    write_cohort(folder, patients=PATIENTS, visits=visits, draw=draw, covariates=covariates)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_every_scan_is_in_one_split_with_its_patient(folder: Path, protocol: Protocol) -> None:
    cohort = Cohort.open(folder, protocol, key=KEY)
    images = [cohort.images(split) for split in Split]
    assert sum(len(np.unique(part.patient_B)) for part in images) == PATIENTS
    assert sum(map(len, images)) == PATIENTS + 10


def test_images_conditions_visits_and_items_fit_together(
    folder: Path, protocol: Protocol, make_brain: MakeBrain
) -> None:
    cohort = Cohort.open(folder, protocol, key=KEY)
    images = cohort.images(Split.TRAINING)
    items = cohort.items(Split.TRAINING)
    assert images.image_BCDHW.shape == (len(items), 1, 24, 24, 24)
    assert images.image_BCDHW.dtype == images.condition_BK.dtype == np.float32
    for row, item in enumerate(items):
        patient = int(item.subject.removeprefix("p-"))
        assert split_of(item.subject, protocol.data.splits, key=KEY) is Split.TRAINING
        assert round(18 + 77 * float(images.condition_BK[row, 0])) == 30 + patient
        assert images.visit_B[row] == item.visit
        scan = make_brain(
            ventricle_ml=10 + 2 * patient, noise=0.01, seed=10 * patient + item.visit, parts=2
        )
        error = np.abs(images.image_BCDHW[row] - np.clip(scan.image_CDHW, 0, 1))
        assert error.max() <= 0.51 / 32767
    subjects = [item.subject for item in items]
    assert len(set(zip(subjects, images.patient_B.tolist(), strict=True))) == len(set(subjects))


def test_recorded_volume_is_used_and_a_missing_one_is_measured(
    folder: Path, protocol: Protocol
) -> None:
    images = Cohort.open(folder, protocol, key=KEY).images(Split.TRAINING)
    even = images.condition_BK[:, 1] == 0
    assert np.allclose(images.condition_BK[even, 2], 50 / 110)
    assert np.allclose(images.condition_BK[even, 3], 0.5)
    affine = centered_affine((24, 24, 24), spacing=8.0)
    ventricle_B, brain_B = measure_volumes(images.image_BCDHW[~even], affine)
    assert np.allclose(images.condition_BK[~even, 2], np.clip(ventricle_B / 110, 0, 1))
    assert np.allclose(images.condition_BK[~even, 3], np.clip((brain_B - 800) / 1000, 0, 1))
    patient = 77 * images.condition_BK[~even, 0] + 18 - 30
    assert np.corrcoef(patient, images.condition_BK[~even, 2])[0, 1] > 0.95


def test_unknown_age_is_the_middle_of_the_range_and_unknown_sex_a_half(
    tmp_path: Path, protocol: Protocol
) -> None:
    write_cohort(tmp_path, patients=4, covariates=lambda _patient, _visit: {})
    cohort = Cohort.open(tmp_path, protocol, key=KEY)
    condition = np.concatenate([cohort.images(split).condition_BK for split in Split])
    assert condition.shape == (4, 4)
    assert np.array_equal(condition[:, :2], np.full((4, 2), 0.5, dtype=np.float32))
    assert (condition[:, 3] > 0).all()


def test_several_images_of_a_visit_follow_each_other(protocol: Protocol, tmp_path: Path) -> None:
    """So that only one row of a patient is the first."""
    times = [(1, 0), (0, 1), (0, 0), (2, 0)]
    items = [item_of(number, "p-1", *time) for number, time in enumerate(times)]
    cohort = Cohort(tmp_path, manifest_of(items), protocol.data, key=KEY)
    split = split_of("p-1", protocol.data.splits, key=KEY)
    assert [(item.visit, item.part) for item in cohort.items(split)] == sorted(times)


def test_images_are_read_once(copy: Path, protocol: Protocol) -> None:
    cohort = Cohort.open(copy, protocol, key=KEY)
    first = cohort.images(Split.AUDIT)
    shutil.rmtree(copy / "shards")
    assert cohort.images(Split.AUDIT) is first


def test_empty_split_gives_arrays_of_length_zero(tmp_path: Path, protocol: Protocol) -> None:
    for patients in (0, 1):
        write_cohort(tmp_path / str(patients), patients=patients)
        cohort = Cohort.open(tmp_path / str(patients), protocol, key=KEY)
        empty = [split for split in Split if not len(cohort.images(split))]
        assert len(empty) == 5 - patients
        images = cohort.images(empty[0])
        assert images.image_BCDHW.shape == (0, 1, 24, 24, 24)
        assert images.condition_BK.shape == (0, 4)
        assert cohort.items(empty[0]) == ()


def test_version_names_the_content(copy: Path, protocol: Protocol) -> None:
    manifest = read_manifest(copy / "manifest.json")
    assert Cohort.open(copy, protocol, key=KEY).version == manifest.digest
    fewer = manifest.model_copy(update={"items": manifest.items[1:]})
    write_manifest(fewer, copy / "manifest.json")
    assert Cohort.open(copy, protocol, key=b"another key of 16").version == fewer.digest
    assert fewer.digest != manifest.digest


def test_repr_shows_nothing_of_a_patient(folder: Path, protocol: Protocol) -> None:
    cohort = Cohort.open(folder, protocol, key=KEY)
    assert repr(cohort) == "Cohort(private)"
    assert repr(cohort.images(Split.AUDIT)) == "PatientImages(private)"


def item_of(number: int, subject: str, visit: int, part: int) -> Item:
    digest = digest_bytes(number.to_bytes(4, "big"))
    return Item.model_validate(
        {
            "subject": subject,
            "visit": visit,
            "part": part,
            "affine": ROWS,
            "digest": digest,
            "shard": shard_name(digest),
        }
    )


def manifest_of(items: list[Item]) -> Manifest:
    return Manifest(recipe=recipe_settings(), items=tuple(items))


SCANS = st.lists(
    st.tuples(st.integers(0, 30).map("p-{}".format), st.integers(0, 4), st.integers(0, 2)),
    max_size=25,
    unique=True,
)


def parted(scans: list[tuple[str, int, int]], data: Data, key: bytes) -> dict[Split, list[Item]]:
    items = [item_of(number, *scan) for number, scan in enumerate(scans)]
    cohort = Cohort(Path("nowhere"), manifest_of(items), data, key=key)
    return {split: list(cohort.items(split)) for split in Split}


@given(SCANS, st.binary(min_size=16, max_size=40))
def test_patient_never_in_two_splits(
    data: Data, scans: list[tuple[str, int, int]], key: bytes
) -> None:
    splits = parted(scans, data, key)
    homes: dict[str, set[Split]] = {}
    for split, items in splits.items():
        for item in items:
            homes.setdefault(item.subject, set()).add(split)
    assert all(len(home) == 1 for home in homes.values())
    everything = [(i.subject, i.visit, i.part) for items in splits.values() for i in items]
    assert sorted(everything) == sorted(scans)


@given(SCANS, SCANS)
def test_added_scans_move_nobody(
    data: Data, first: list[tuple[str, int, int]], more: list[tuple[str, int, int]]
) -> None:
    """Neither to another split nor past each other."""
    both = list(dict.fromkeys([*more, *first]))
    before, after = parted(first, data, KEY), parted(both, data, KEY)
    known = set(first)
    for split in Split:
        times = [[(i.subject, i.visit, i.part) for i in part[split]] for part in (before, after)]
        assert times[0] == [time for time in times[1] if time in known]


def read_everything(folder: Path, protocol: Protocol) -> None:
    cohort = Cohort.open(folder, protocol, key=KEY)
    for split in Split:
        cohort.images(split)


def shard_path(folder: Path, place: int) -> Path:
    return folder / "shards" / read_manifest(folder / "manifest.json").items[place].shard


def test_missing_scan_is_named_by_its_place_only(copy: Path, protocol: Protocol) -> None:
    path = shard_path(copy, 1)
    path.unlink()
    with pytest.raises(CohortError, match="item 1 of the cohort is missing") as caught:
        read_everything(copy, protocol)
    assert path.stem not in str(caught.value)
    assert "p-0" not in str(caught.value)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-1] + b"\x01"], ids=["short", "other"]
)
def test_changed_scan_is_refused(
    copy: Path, protocol: Protocol, damage: Callable[[bytes], bytes]
) -> None:
    path = shard_path(copy, 4)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CohortError, match="item 4 of the cohort is not what was taken in") as told:
        read_everything(copy, protocol)
    assert str(copy) not in str(told.value)


def test_scan_of_another_size_is_refused(tmp_path: Path, protocol: Protocol) -> None:
    """The recipe may say what it likes."""
    image = np.full((1, 24, 24, 23), 0.5, dtype=np.float32)
    write_cohort(tmp_path, patients=1, draw=lambda _patient, _visit: image)
    with pytest.raises(CohortError, match="item 0 of the cohort has another size"):
        read_everything(tmp_path, protocol)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (recipe_settings((24, 24, 32)), "another grid.*--study"),
        (recipe_settings(spacing_mm=4.0), "another grid"),
        (recipe_settings(version=99), "another version of the recipe"),
        (recipe_settings(name="brain-lesion"), "by the recipe brain-lesion"),
        (recipe_settings((64, 64), None, name="xray-2d"), "by the recipe xray-2d"),
    ],
)
def test_cohort_of_another_recipe_or_grid_is_refused(
    tmp_path: Path, protocol: Protocol, recipe: RecipeSettings, told: str
) -> None:
    write_manifest(Manifest(recipe=recipe), tmp_path / "manifest.json")
    with pytest.raises(CohortError, match=told):
        Cohort.open(tmp_path, protocol, key=KEY)


def test_the_one_cohort_that_fits_is_found(tmp_path: Path, data: Data) -> None:
    with pytest.raises(CohortError, match=r"no cohort .* nothing was taken in yet"):
        find_cohort(tmp_path / "none", data)
    write_manifest(Manifest(recipe=recipe_settings((8, 8, 8))), tmp_path / "coarse/manifest.json")
    with pytest.raises(CohortError, match=r"no cohort of this site fits.*another grid"):
        find_cohort(tmp_path, data)
    write_manifest(Manifest(recipe=recipe_settings()), tmp_path / "brain/manifest.json")
    (tmp_path / "unfinished").mkdir()
    assert find_cohort(tmp_path, data) == tmp_path / "brain"


def test_one_of_several_cohorts_must_be_named(tmp_path: Path, data: Data) -> None:
    for name in ("brain", "trial", "coarse"):
        grid = (8, 8, 8) if name == "coarse" else (24, 24, 24)
        write_manifest(Manifest(recipe=recipe_settings(grid)), tmp_path / name / "manifest.json")
    with pytest.raises(CohortError, match=r"2 cohorts fit the study.*name the one") as caught:
        find_cohort(tmp_path, data)
    assert "trial" not in str(caught.value)
    assert find_cohort(tmp_path, data, name="trial") == tmp_path / "trial"
    for name in ("other", "", "..", "../brain", str(tmp_path / "brain")):
        with pytest.raises(CohortError, match="no cohort of this name"):
            find_cohort(tmp_path, data, name=name)


def test_damaged_manifest_is_not_passed_over(tmp_path: Path, data: Data) -> None:
    write_manifest(Manifest(recipe=recipe_settings()), tmp_path / "brain/manifest.json")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{")
    with pytest.raises(CohortError, match="not JSON"):
        find_cohort(tmp_path, data)
    assert find_cohort(tmp_path, data, name="brain") == tmp_path / "brain"
