"""A phantom hospital is a folder like any other: files, a manifest, patients with visits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitrael.core.data.cohort import Cohort
from vitrael.core.data.manifest import Manifest, read_manifest
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.phantoms.cohorts import draw_scan, write_phantom_scans
from vitrael.core.data.splits import Split
from vitrael.core.study import Protocol

PATIENTS, VISITS = 8, 2
GRID = (24, 24, 24)


def draw(
    seed: int = 1, site: str = "north", patient: int = 0, visit: int = 0
) -> tuple[np.ndarray, float, float]:
    scan, age, sex = draw_scan(seed, site, patient, visit, grid_vox=GRID, spacing_mm=8.0)
    return scan.image_CDHW, age, sex


def write(folder: Path, *, seed: int = 1, site: str = "north") -> Manifest:
    return write_phantom_scans(
        folder,
        seed=seed,
        site=site,
        patients=PATIENTS,
        visits=VISITS,
        grid_vox=GRID,
        spacing_mm=8.0,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "scans"
    write(folder)
    return folder


def test_equal_arguments_give_equal_scans() -> None:
    assert np.array_equal(draw()[0], draw()[0])
    for other in ({"seed": 2}, {"site": "valley"}, {"patient": 1}, {"visit": 1}):
        assert not np.array_equal(draw()[0], draw(**other)[0])  # type: ignore[arg-type]


def test_visits_are_years_apart_and_of_the_same_person() -> None:
    (first, age, sex), (second, later, same_sex) = draw(visit=0), draw(visit=1)
    assert later == age + 1.5
    assert same_sex == sex
    own = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    strangers = [np.corrcoef(first.ravel(), draw(patient=p)[0].ravel())[0, 1] for p in range(1, 12)]
    assert own > max(strangers)


def test_patient_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    few = write_phantom_scans(
        tmp_path, seed=1, site="north", patients=2, visits=1, grid_vox=GRID, spacing_mm=8.0
    )
    many = {item.path: item for item in read_manifest(folder / "manifest.json").items}
    for item in few.items:
        assert (item.age_years, item.sex) == (many[item.path].age_years, many[item.path].sex)
        one, two = (read_nifti(place / item.path).image_CDHW for place in (tmp_path, folder))
        assert np.array_equal(one, two)


def test_writing_again_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    write(tmp_path)
    assert read_manifest(tmp_path / "manifest.json") == read_manifest(folder / "manifest.json")
    other = write(tmp_path / "other", site="valley")
    assert not {item.digest for item in other.items} & {
        item.digest for item in read_manifest(folder / "manifest.json").items
    }


def test_files_and_manifest_open_as_a_cohort(folder: Path, protocol: Protocol) -> None:
    cohort = Cohort.open(folder, protocol, key=bytes(32))
    parts = [cohort.images(split) for split in Split]
    assert sum(len(np.unique(part.patient_B)) for part in parts) == PATIENTS
    assert sum(map(len, parts)) == PATIENTS * VISITS
    condition_BK = np.concatenate([part.condition_BK for part in parts])
    assert condition_BK.min() >= 0
    assert condition_BK.max() <= 1
    assert len(np.unique(condition_BK[:, 2])) > PATIENTS  # measured, visit by visit


def test_manifest_says_what_was_drawn_and_leaves_volumes_to_the_measurer(folder: Path) -> None:
    manifest = read_manifest(folder / "manifest.json")
    assert {item.visit for item in manifest.items} == set(range(VISITS))
    for item in manifest.items:
        assert (item.ventricle_ml, item.brain_ml) == (None, None)
        image, age, sex = draw(patient=int(item.subject.removeprefix("ph-")), visit=item.visit)
        assert (item.age_years, item.sex) == (age, sex)
        scan = read_nifti(folder / item.path)
        np.testing.assert_allclose(scan.image_CDHW, image, atol=1e-4)
