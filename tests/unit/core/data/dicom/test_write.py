"""What is written for rehearsals looks like a hospital's: identifiers in every usual place."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from tests.factories.dicom import IDENTITY, code, facts_of, small_clip, small_scan
from vitrael.core.data.dicom.instance import read_instance
from vitrael.core.data.dicom.read import read_clip
from vitrael.core.data.dicom.series import group_series
from vitrael.core.data.dicom.write import (
    DicomIdentity,
    Plane,
    made_uid,
    write_dicom_clip,
    write_dicom_series,
)
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError


def test_every_text_of_the_identity_stands_in_a_slice_and_in_a_clip(tmp_path: Path) -> None:
    series = write_dicom_series(small_scan(), tmp_path / "a", identity=IDENTITY, seed=1)
    write_dicom_clip(small_clip(), tmp_path / "b", identity=IDENTITY, seed=1)
    assert len(IDENTITY.texts()) == 11
    for path in (series[0], tmp_path / "b"):
        data = path.read_bytes()
        assert [text for text in IDENTITY.texts() if text.encode() not in data] == []
    header = dcmread(series[0])
    private = header.private_block(0x0029, "VITRAEL PHANTOM")
    assert private[0x10].value == IDENTITY.name
    assert header.RequestAttributesSequence[0].ScheduledProcedureStepID == IDENTITY.accession


def test_the_identity_shows_nothing() -> None:
    assert repr(IDENTITY) == "DicomIdentity(private)"


def test_equal_arguments_give_equal_files(tmp_path: Path) -> None:
    def files(folder: str, **changes: object) -> list[bytes]:
        options = {"identity": IDENTITY, "seed": 5} | changes
        paths = write_dicom_series(small_scan(), tmp_path / folder, **options)  # type: ignore[arg-type]
        return [path.read_bytes() for path in paths]

    assert files("a") == files("b")
    assert files("a") != files("c", seed=6)


def test_identifiers_are_unique_where_they_must_be(tmp_path: Path) -> None:
    later = DicomIdentity("VX-20417", "Amendoeira^Iris", date(1957, 4, 9), "F", date(2022, 5, 1))
    instances = []
    for name, identity, series in (("a", IDENTITY, 1), ("b", IDENTITY, 2), ("c", later, 1)):
        paths = write_dicom_series(
            small_scan(), tmp_path / name, identity=identity, seed=1, series=series
        )
        instances += facts_of(paths)
    assert len({facts.sop for facts in instances}) == 18
    assert len({facts.series for facts in instances}) == 3
    assert len({facts.dicom_study for facts in instances}) == 2
    assert len({facts.patient for facts in instances}) == 1
    assert [plan.fault for plan in group_series(instances)] == ["", "", ""]


def test_an_identifier_is_one_of_the_standard() -> None:
    one = made_uid(1, "series", 2)
    assert one.startswith("2.25.")
    assert len(one) <= 64
    assert one == made_uid(1, "series", 2) != made_uid(1, "series", 3)


def test_a_burned_in_text_is_seen_and_told(tmp_path: Path) -> None:
    clip = small_clip(size=(64, 96))
    for name, text in (("with", "IRIS A"), ("without", "")):
        write_dicom_clip(clip, tmp_path / name, identity=IDENTITY, seed=1, burned_in=text)
    seen = read_clip(tmp_path / "with").frames_THW
    plain = read_clip(tmp_path / "without").frames_THW
    assert np.array_equal(plain, clip.frames_THW)
    changed = np.argwhere((seen != plain).any(axis=0))
    assert len(changed) > 20
    assert changed[:, 0].max() < 20
    told = [facts.burned_in for facts in facts_of([tmp_path / "with", tmp_path / "without"])]
    assert told == [True, False]


def test_region_and_spacing_are_told_together_or_not_at_all(tmp_path: Path) -> None:
    clip = small_clip()
    write_dicom_clip(clip, tmp_path / "a", identity=IDENTITY, seed=1, region=(2, 3, 29, 20))
    write_dicom_clip(clip, tmp_path / "b", identity=IDENTITY, seed=1)
    bare = small_clip(spacing=False)
    write_dicom_clip(bare, tmp_path / "c", identity=IDENTITY, seed=1, region=(2, 3, 29, 20))
    spacings = [facts.plane_mm for facts in facts_of(tmp_path / name for name in "abc")]
    assert spacings == [pytest.approx((0.5, 0.4)), None, None]
    region = dcmread(tmp_path / "a").SequenceOfUltrasoundRegions[0]
    assert (region.RegionLocationMinX0, region.RegionLocationMaxY1) == (2, 20)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_another_program_finds_every_voxel_at_its_place(tmp_path: Path, plane: Plane) -> None:
    program = pytest.importorskip("dcm2niix").bin
    scan = small_scan(shape=(20, 18, 16))
    write_dicom_series(scan, tmp_path / "in", identity=IDENTITY, seed=1, plane=plane)
    command = [program, "-z", "n", "-b", "n", "-f", "out", "-o", str(tmp_path)]
    subprocess.run([*command, str(tmp_path / "in")], check=True, capture_output=True, timeout=60)
    read = read_nifti(tmp_path / "out.nii")
    assert np.array_equal(read.image_CDHW, scan.image_CDHW)
    assert np.allclose(read.affine, scan.affine, atol=1e-4)


def test_the_subject_is_given_apart_from_the_facts(tmp_path: Path) -> None:
    write_dicom_clip(small_clip(), tmp_path / "a", identity=IDENTITY, seed=1)
    assert read_instance(tmp_path / "a", code=code)[1].subject == "VX-20417"


def test_a_scan_that_slices_cannot_hold_is_refused(tmp_path: Path) -> None:
    scan = small_scan()
    sheared = scan.affine.copy()
    sheared[0, 2] += 0.3
    with pytest.raises(ScanError, match="sheared"):
        write_dicom_series(
            Scan(scan.image_CDHW, sheared, "T1w"), tmp_path, identity=IDENTITY, seed=1
        )
    two = np.concatenate([scan.image_CDHW, scan.image_CDHW])
    with pytest.raises(ScanError, match="channels"):
        write_dicom_series(Scan(two, scan.affine, "T1w"), tmp_path, identity=IDENTITY, seed=1)
