"""What a hospital of phantom brains writes is found and read as any hospital's, and is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from tests.factories.folders import find, partial
from vitrael.core.data.dicom.instance import read_instance
from vitrael.core.data.dicom.read import read_volume
from vitrael.core.data.dicom.series import SeriesPlan, group_series
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.phantoms.acquisition import STYLES
from vitrael.core.data.phantoms.hospital import Written, write_hospital
from vitrael.core.data.phantoms.orders import Hospital, order_hospital
from vitrael.core.data.sources import Source

GRID = 24
CONTRASTS = ("T1w", "T2w", "FLAIR")


def order(**choices: object) -> Hospital:
    usual = {"patients": 4, "visits": 2, "seed": 3, "edge": GRID}
    return order_hospital("brain", **{**usual, **choices})  # type: ignore[arg-type]


def by_visit(sources: tuple[Source, ...]) -> dict[tuple[str, str], Source]:
    return {(source.subject, source.session): source for source in sources}


def plans_of(folder: Path) -> tuple[list[SeriesPlan], list[Path]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return group_series([read_instance(path, code=str)[0] for path in paths]), paths


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    folder = tmp_path_factory.mktemp("bids") / "out"
    return folder, write_hospital(folder, order(contrasts=CONTRASTS))


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    folder = tmp_path_factory.mktemp("pacs") / "out"
    hospital = order(file_format="dicom", contrasts=("T1w", "FLAIR"), patients=2)
    return folder, write_hospital(folder, hospital)


def test_bids_folder_is_found_with_its_people(bids: tuple[Path, Written]) -> None:
    folder, written = bids
    found = find(folder)
    sources = by_visit(found.sources)
    assert partial(found) == {}
    assert len(sources) == len(written.truth) == 8
    for row in written.truth:
        source = sources[row.subject, row.session]
        assert source.images["T1w"] == (folder / row.path,)
        assert source.taken == row.taken
        assert source.covariates["age_years"] == pytest.approx(row.facts["age_years"], abs=0.006)
        assert source.covariates["sex"] == row.facts["sex"]
        assert source.labels == {"group": row.facts["group"]}
        assert (row.facts["group"] == "disease") == bool(row.facts["disease"])
    assert {row.facts["group"] for row in written.truth} == {"control", "disease"}


def test_tables_tell_no_volume(bids: tuple[Path, Written]) -> None:
    told = {source_name for source in find(bids[0]).sources for source_name in source.covariates}
    assert told == {"age_years", "sex"}


def test_lesion_masks_lie_on_their_visits(bids: tuple[Path, Written]) -> None:
    folder, written = bids
    sources = by_visit(find(folder, "brain-lesion").sources)
    with_mask = {visit for visit, source in sources.items() if "lesion" in source.masks}
    assert len(sources) == len(written.truth)
    assert 0 < len(with_mask) < len(sources)
    for row in written.truth:
        present_ml = row.facts["present_wmh_ml"]
        assert isinstance(present_ml, float)
        if (row.subject, row.session) in with_mask:
            mask = read_nifti(sources[row.subject, row.session].masks["lesion"])
            scan = read_nifti(folder / row.path)
            assert set(np.unique(mask.image_CDHW)) == {0, 1}
            assert np.allclose(mask.affine, scan.affine)
            assert present_ml > 0
        else:
            assert present_ml < 3 * 8**3 / 1000  # a few voxels' worth, none of them half full


def test_patients_grow_older_by_the_days_between_visits(bids: tuple[Path, Written]) -> None:
    rows = bids[1].truth
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first.subject == second.subject
        years = (second.taken - first.taken).days / 365.25
        ages = [row.facts["age_years"] for row in (first, second)]
        assert years > 0.4
        assert float(ages[1]) - float(ages[0]) == pytest.approx(years, abs=1e-6)
        assert float(second.facts["ventricle_ml"]) > float(first.facts["ventricle_ml"])
        assert float(second.facts["wmh_ml"]) >= float(first.facts["wmh_ml"])


def test_volume_in_the_image_is_that_of_the_truth(tmp_path: Path) -> None:
    written = write_hospital(tmp_path, order(patients=6, visits=1))
    pairs = []
    for row in written.truth:
        scan = read_nifti(tmp_path / row.path)
        seen_ml = float((scan.image_CDHW > 0.05).sum()) * 8**3 / 1000
        pairs.append((seen_ml, float(row.facts["present_brain_ml"])))
    seen, true = np.array(pairs).T
    assert np.abs(seen / true - 1.1).max() < 0.15  # voxels at the border are counted whole
    assert np.corrcoef(seen, true)[0, 1] > 0.9
    assert np.corrcoef(seen, true[::-1])[0, 1] < 0.9


def test_dicom_is_what_the_nifti_is(pacs: tuple[Path, Written], tmp_path: Path) -> None:
    folder, written = pacs
    hospital = order(contrasts=("T1w", "FLAIR"), patients=2)
    same = write_hospital(tmp_path, hospital)
    for row, twin in zip(written.truth, same.truth, strict=True):
        assert dict(row.facts) == dict(twin.facts)
        paths = sorted((folder / row.path).iterdir())
        scan, expected = read_volume(paths), read_nifti(tmp_path / twin.path)
        assert scan.modality == "T1w"
        assert np.abs(scan.image_CDHW - expected.image_CDHW).max() < 1e-4
        assert np.allclose(scan.affine, expected.affine, atol=1e-4)


def test_dicom_names_say_nothing_and_headers_say_all(pacs: tuple[Path, Written]) -> None:
    folder, written = pacs
    subjects = {row.subject for row in written.truth}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert all(not path.suffix and path.parts[-4] == "DICOM" for path in files)
    assert not any(
        subject in str(path.relative_to(folder)) for path in files for subject in subjects
    )
    dates = {(row.subject, f"{row.taken:%Y%m%d}") for row in written.truth}
    headers = [dcmread(path, stop_before_pixels=True) for path in files]
    assert {(str(h.PatientID), str(h.StudyDate)) for h in headers} == dates
    assert len(dates) == len({str(h.StudyInstanceUID) for h in headers}) == 4
    assert all(str(h.PatientName) and h.PatientAddress and h.InstitutionName for h in headers)
    assert len({str(h.PatientName) for h in headers}) == len(subjects)


def test_each_dicom_study_has_a_localizer_and_its_scans(pacs: tuple[Path, Written]) -> None:
    plans, _ = plans_of(pacs[0])
    faults = [plan.fault for plan in plans]
    assert sorted(faults) == [""] * 8 + ["it is a localizer"] * 4
    localizers = [plan for plan in plans if plan.fault]
    assert all(len(plan.indices) == 3 for plan in localizers)
    contrasts = [plan.instances[0].contrast for plan in plans if not plan.fault]
    assert sorted(contrasts) == ["FLAIR"] * 4 + ["T1w"] * 4  # type: ignore[type-var]


def test_ages_in_dicom_are_those_of_the_truth(pacs: tuple[Path, Written]) -> None:
    folder, written = pacs
    for row in written.truth:
        path = next((folder / row.path).iterdir())
        instance, identity = read_instance(path, code=str)
        assert identity.subject == row.subject
        assert instance.taken == row.taken
        assert instance.sex == ("M" if row.facts["sex"] else "F")
        assert instance.age_years is not None
        assert 0 <= float(row.facts["age_years"]) - instance.age_years < 1.01


@pytest.mark.parametrize(("site", "edge"), [*((site, 16) for site in STYLES), ("sharp", 32)])
def test_every_style_exports_volumes_that_are_read(site: str, edge: int, tmp_path: Path) -> None:
    hospital = order(file_format="dicom", site=site, patients=1, visits=1, edge=edge)
    written = write_hospital(tmp_path, hospital)
    scan = read_volume(sorted((tmp_path / written.truth[0].path).iterdir()))
    assert scan.image_CDHW.shape == (1, edge, edge, edge)
    assert scan.affine[0, 0] == pytest.approx(hospital.spacing_mm)


def test_slices_are_found_with_their_people(tmp_path: Path) -> None:
    written = write_hospital(tmp_path, order(file_format="png", edge=48))
    found = find(tmp_path, "image-2d")
    sources = by_visit(found.sources)
    assert partial(found) == {}
    assert len(sources) == 8
    for row in written.truth:
        source = sources[row.subject, row.session]
        assert source.images["image"] == (tmp_path / row.path,)
        assert (source.taken, source.covariates["sex"]) == (row.taken, row.facts["sex"])
        assert source.labels == {"diagnosis": row.facts["group"]}
        with Image.open(tmp_path / row.path) as picture:
            assert (picture.size, picture.mode) == ((48, 48), "L")
            assert not picture.info
