"""A phantom hospital is a folder like any other: files and tables in BIDS, nothing of ours."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.phantoms.cohorts import draw_patient, draw_scan, write_phantom_files

PATIENTS, VISITS = 8, 2
GRID = (24, 24, 24)


def draw(
    seed: int = 1, site: str = "north", patient: int = 0, visit: int = 0
) -> tuple[np.ndarray, float, float]:
    scan, age, sex = draw_scan(seed, site, patient, visit, grid_vox=GRID, spacing_mm=8.0)
    return scan.image_CDHW, age, sex


def write(folder: Path, *, site: str = "north", patients: int = PATIENTS) -> int:
    return write_phantom_files(
        folder,
        seed=1,
        site=site,
        patients=patients,
        visits=VISITS,
        grid_vox=GRID,
        spacing_mm=8.0,
    )


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "scans"
    assert write(folder) == PATIENTS * VISITS
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


def test_ventricles_of_a_patient_grow_by_one_rate_over_all_visits() -> None:
    rates = []
    for patient in range(40):
        volume_ml = [draw_patient(1, "north", patient, visit).ventricle_ml for visit in range(4)]
        if volume_ml[-1] < 120:
            steps = np.diff(np.log(volume_ml))
            np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
            rates.append(steps[0])
    assert len(rates) > 30
    assert np.std(rates) > 0.005  # control: everybody has a rate of his own


def test_folder_holds_scans_by_patient_and_visit_and_two_kinds_of_table(folder: Path) -> None:
    names = set(contents(folder))
    assert "sub-0001/ses-1/anat/sub-0001_ses-1_T1w.nii.gz" in names
    assert "sub-0008/ses-2/anat/sub-0008_ses-2_T1w.nii.gz" in names
    tables = {name for name in names if name.endswith(".tsv")}
    assert tables == {
        "participants.tsv",
        *(f"sub-{n:04d}/sub-{n:04d}_sessions.tsv" for n in range(1, PATIENTS + 1)),
    }
    assert len(names - tables) == PATIENTS * VISITS
    assert all(name.endswith("_T1w.nii.gz") for name in names - tables)


def test_tables_and_files_say_what_was_drawn(folder: Path) -> None:
    people = read_table(folder / "participants.tsv")
    assert [row["participant_id"] for row in people] == [f"sub-{n + 1:04d}" for n in range(8)]
    assert {row["sex"] for row in people} == {"F", "M"}
    for patient, row in enumerate(people):
        subject = row["participant_id"]
        visits = read_table(folder / subject / f"{subject}_sessions.tsv")
        assert [visit["session_id"] for visit in visits] == ["ses-1", "ses-2"]
        for number, visit in enumerate(visits):
            image, age, sex = draw(patient=patient, visit=number)
            assert float(visit["age"]) == pytest.approx(age, abs=0.0051)
            assert row["sex"] == "FM"[int(sex)]
            name = f"{subject}_{visit['session_id']}_T1w.nii.gz"
            scan = read_nifti(folder / subject / visit["session_id"] / "anat" / name)
            np.testing.assert_allclose(scan.image_CDHW, image, atol=1e-4)


def test_patient_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    assert write(tmp_path, patients=2) == 4
    many, few = contents(folder), contents(tmp_path)
    few.pop("participants.tsv")
    assert all(many[name] == data for name, data in few.items())


def test_writing_again_gives_the_same_files_and_another_site_others(
    folder: Path, tmp_path: Path
) -> None:
    write(tmp_path / "again", patients=2)
    write(tmp_path / "other", site="valley", patients=2)
    again, other = contents(tmp_path / "again"), contents(tmp_path / "other")
    assert again.keys() == other.keys()
    scans = [name for name in again if name.endswith(".nii.gz")]
    assert all(again[name] == contents(folder)[name] for name in scans)
    assert not {again[name] for name in scans} & {other[name] for name in scans}
