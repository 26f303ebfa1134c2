"""Public images beside the checkout go in with the counts that their own index gives."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from tests.factories.intake import (
    BRAIN,
    ECHO,
    KEY,
    PLANE,
    make_home,
    manifest_of,
    refused,
    set_aside,
    take_in,
)
from tests.factories.planted_dicom import spellings
from vitrael.client.site.ingest.assemble import ONE_A_VISIT, SAME_IMAGE
from vitrael.client.site.ingest.dicom_copies import copy_folder
from vitrael.client.site.ingest.outcome import IngestReport
from vitrael.core.data.cache import open_shard
from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.data.recipes import RecipeSettings, settings_for

LESIONS = settings_for("brain-lesion", grid_vox=(16, 16, 16), spacing_mm=12.0)
XRAY = settings_for("xray-2d", grid_vox=(16, 16))

Rows = list[dict[str, str]]


def below(rows: Rows, folder: str, modality: str = "") -> Rows:
    kept = [row for row in rows if row["path"].startswith(f"{folder}/")]
    return [row for row in kept if row["modality"].startswith(modality)]


def patients(rows: Iterable[dict[str, str]]) -> set[str]:
    return {row["subject"] for row in rows}


def take(
    folder: Path, settings: RecipeSettings, tmp_path: Path, *, mask: Path | None = None
) -> IngestReport:
    """Take a folder in, twice: the second time nothing is read and nothing changes."""
    home = make_home(tmp_path / "home")
    report = take_in(folder, home, settings, pixel_mask=mask)
    assert not list(home.folder.rglob(".partial-*"))
    if report.items:
        again = take_in(folder, home, settings, pixel_mask=mask)
        assert (again.anew, again.digest) == (0, report.digest)
    return report


def subjects_in(tmp_path: Path) -> set[str]:
    return {item.subject for item in manifest_of(make_home(tmp_path / "home")).items}


def some(data_home: Path, rows: Rows, tmp_path: Path) -> Path:
    """Copy some of the files beside an index that lists them alone; return the folder."""
    sample = tmp_path / "sample"
    for row in rows:
        path = sample / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((data_home / row["path"]).read_bytes())
    with (sample / "index.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return sample / rows[0]["path"].split("/")[0]


def test_some_brains(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    scans = below(rows, "brain_t1")
    twice = [r for r in scans if [s["subject"] for s in scans].count(r["subject"]) > 1]
    single = [r for r in scans if r not in twice][:2]
    report = take(some(data_home, [*twice, *single], tmp_path), BRAIN, tmp_path)
    assert (len(twice), report.items, report.patients) == (2, 3, 3)
    assert set_aside(report) == {ONE_A_VISIT: 1}
    assert refused(report) == {}
    assert subjects_in(tmp_path) == {
        pseudonym_of(name, key=KEY) for name in patients([*twice, *single])
    }
    known = manifest_of(make_home(tmp_path / "home")).items[0].covariates
    assert {"brain_ml", "ventricle_ml"} <= known.keys()


def test_brains_are_cut_by_a_small_grid_and_not_by_their_own(
    data_home: Path, rows: Rows, tmp_path: Path
) -> None:
    folder = some(data_home, below(rows, "brain_t1")[:2], tmp_path)
    for grid, cut in (((20, 28, 20), []), ((10, 14, 10), ["problem"])):
        settings = settings_for("brain-t1", grid_vox=grid, spacing_mm=8.0)
        report = take(folder, settings, tmp_path)
        found = [finding for finding in report.findings if finding.check == "cut-brain"]
        assert [finding.severity for finding in found] == cut
        assert all(finding.count == report.items for finding in found)


@pytest.mark.slow
def test_all_brains(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    scans = below(rows, "brain_t1")
    report = take(data_home / "brain_t1", BRAIN, tmp_path)
    assert (len(scans), len(patients(scans))) == (38, 37)
    assert (report.items, report.patients) == (37, 37)
    assert (set_aside(report), refused(report)) == ({ONE_A_VISIT: 1}, {})


def test_radiographs(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    listed = below(rows, "cxr", "CXR")
    report = take(data_home / "cxr", XRAY, tmp_path)
    assert (len(listed), len(patients(listed))) == (126, 36)
    assert (report.items, report.patients) == (126, 36)
    assert refused(report) == {}
    items = manifest_of(make_home(tmp_path / "home")).items
    sessions = {(row["subject"], row["session"]) for row in listed}
    assert len({(item.subject, item.visit) for item in items}) == len(sessions)


def test_brains_with_lesions(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    """With the contrast alone, each visit's plain T1 image is an item."""
    plain = below(rows, "brain_ms", "MR-T1w")
    plain = [row for row in plain if row["modality"] == "MR-T1w"]
    report = take(data_home / "brain_ms", BRAIN, tmp_path)
    assert (len(plain), len(patients(plain))) == (6, 5)
    assert (report.items, report.patients) == (6, 5)
    assert refused(report) == {}
    assert subjects_in(tmp_path) == {pseudonym_of(name, key=KEY) for name in patients(plain)}


def test_one_visit_with_lesions(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    who = "openms-lg-01"
    report = take(
        some(data_home, [r for r in below(rows, "brain_ms") if r["subject"] == who], tmp_path),
        LESIONS,
        tmp_path,
    )
    home = make_home(tmp_path / "home")
    assert (report.items, report.patients) == (2, 1)
    for item in manifest_of(home).items:
        arrays = open_shard(home.cohort("main").shards / item.shard)
        assert arrays["image"].shape == (3, 16, 16, 16)


@pytest.mark.slow
def test_all_visits_with_lesions(data_home: Path, tmp_path: Path) -> None:
    report = take(data_home / "brain_ms", LESIONS, tmp_path)
    assert (report.items, report.patients) == (6, 5)
    assert refused(report) == {"the visit lacks T1w": 2}


def test_some_clips(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    videos = sorted(below(rows, "us_lung", "US-video"), key=lambda row: int(row["bytes"]))[:3]
    report = take(some(data_home, videos, tmp_path), ECHO, tmp_path)
    assert (report.items, report.patients) == (3, len(patients(videos)))
    assert refused(report) == {}


@pytest.mark.slow
def test_all_clips(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    videos = below(rows, "us_lung", "US-video")
    report = take(data_home / "us_lung", ECHO, tmp_path)
    assert (len(videos), len(patients(videos))) == (18, 6)
    assert (report.items, report.patients) == (18, 6)
    assert set_aside(report) == {"a file of arrays, which is not read": 19}


def test_some_small_pictures(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    listed = below(rows, "mednist")
    digests = [row["sha256"] for row in listed]
    twice = [row for row in listed if digests.count(row["sha256"]) > 1]
    report = take(some(data_home, [*twice, *listed[::60]], tmp_path), PLANE, tmp_path)
    assert (len(twice), report.items) == (2, 11)
    assert set_aside(report) == {SAME_IMAGE: 1}


@pytest.mark.slow
def test_all_small_pictures(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    report = take(data_home / "mednist", PLANE, tmp_path)
    assert len(below(rows, "mednist")) == 600
    assert (report.items, report.patients, set_aside(report)) == (599, 599, {SAME_IMAGE: 1})


def test_dicom_folder_by_recipe(data_home: Path, rows: Rows, tmp_path: Path) -> None:
    folder = data_home / "dicom"
    pictures = take(folder, PLANE, tmp_path / "2d")
    assert (len(below(rows, "dicom")), pictures.files) == (54, 54)
    assert (pictures.items, pictures.patients, refused(pictures)) == (2, 2, {})
    brains = take(folder, BRAIN, tmp_path / "t1")
    assert (brains.items, brains.version) == (0, 0)
    assert refused(brains) == {
        "its header does not tell whether it is T1, T2 or FLAIR": 35,
        "the face cannot be removed: no plausible brain is found in the scan": 16,
    }
    assert not (tmp_path / "t1" / "home" / "cohorts" / "main" / "manifest.json").exists()


@pytest.fixture
def echo(data_home: Path, tmp_path: Path) -> Path:
    """A folder with the one clip of a heart."""
    source = data_home / "dicom" / "us_echo_a4c_multiframe.dcm"
    path = tmp_path / "echo" / "IM0001"
    path.parent.mkdir()
    path.write_bytes(source.read_bytes())
    return path


@pytest.fixture
def visible(echo: Path) -> np.ndarray:
    """What a site's mask shows of it: neither the upper quarter nor the right one."""
    header = dcmread(echo, stop_before_pixels=True)
    shown = np.zeros((header.Rows, header.Columns), bool)
    shown[header.Rows // 4 :, : header.Columns * 3 // 4] = True
    return shown


def save_mask(visible: np.ndarray, path: Path) -> Path:
    Image.fromarray((visible * 255).astype(np.uint8)).save(path)
    return path


def test_echo_is_refused_without_a_mask_and_dark_outside_of_one(
    echo: Path, visible: np.ndarray, tmp_path: Path
) -> None:
    refusal = take(echo.parent, ECHO, tmp_path / "bare")
    assert refusal.items == 0
    (reason,) = refused(refusal)
    assert reason.startswith("burned-in text cannot be ruled out")
    mask = save_mask(visible, tmp_path / "cone.png")
    report = take(echo.parent, ECHO, tmp_path / "masked", mask=mask)
    assert report.items == 1
    home = make_home(tmp_path / "masked" / "home")
    (item,) = manifest_of(home).items
    arrays = open_shard(home.cohort("main").shards / item.shard)
    assert item.unit == "px"
    centers = np.arange(16)
    column_px = item.affine[0][0] * centers + item.affine[0][3]
    row_px = item.affine[1][1] * centers + item.affine[1][3]
    reach_px = item.affine[0][0]
    dark = (row_px < visible.shape[0] / 4 - reach_px)[:, None]
    dark = dark | (column_px > visible.shape[1] * 3 / 4 + reach_px)[None]
    assert not arrays["image"][:, dark].any()
    assert not arrays["sector"][:, dark].any()
    assert arrays["image"].any()


def test_copy_of_the_echo_shows_and_says_nothing_of_the_patient(
    echo: Path, visible: np.ndarray, tmp_path: Path
) -> None:
    out, before = tmp_path / "copies", dcmread(echo)
    mask = save_mask(visible, tmp_path / "cone.png")
    report = copy_folder(
        echo.parent, out, key=KEY, mask=mask, workers=0, tell=lambda _what, _done, _total: None
    )
    assert report.copies == 1
    (path,) = out.rglob("*.dcm")
    header = dcmread(path)
    assert not header.pixel_array[:, ~visible].any()
    assert before.pixel_array[:, ~visible].any(), "control: something was there"
    assert header.pixel_array[:, visible].any()
    assert header.PatientID == pseudonym_of(str(before.PatientID), key=KEY)
    assert str(header.PatientName) != str(before.PatientName)
    assert header.StudyDate < before.StudyDate
    data = path.read_bytes() + str(path).encode()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        uid = str(before[keyword].value)
        assert not any(form in data for form in spellings(uid))
        assert uid.encode() in echo.read_bytes(), "control"
