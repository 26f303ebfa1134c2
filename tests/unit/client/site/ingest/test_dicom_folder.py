"""Which series become items, and which files are told as lost rather than as of no use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset as DicomHeader

from tests.factories.dicom import edit_file
from tests.factories.intake import (
    BRAIN,
    ECHO,
    PLANE,
    identity_of,
    make_home,
    manifest_of,
    reason_of,
    refused,
    set_aside,
    small_brain,
    small_clip,
    take_in,
    write_dicom_echo,
    write_slices,
)
from vitrael.client.site.ingest.dicom_folder import NO_IMAGE, ZEROS
from vitrael.core.data.dicom.write import write_dicom_clip, write_dicom_series
from vitrael.core.data.planar import Clip
from vitrael.core.data.scan import Scan


def test_file_cut_within_its_header_makes_an_intake_partial(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_slices(root / "good", 0)
    data = write_slices(tmp_path / "other", 1)[0].read_bytes()
    for end, reason in ((140, "its header is cut short"), (130, ZEROS), (9, ZEROS)):
        cut = root / "cut"
        cut.write_bytes(data[:end])
        report = take_in(root, make_home(tmp_path / "home"), BRAIN)
        assert reason_of(report, cut) == reason
        assert refused(report) == {reason: 1}
        assert report.items == 1
    # Control: another kind of object is whole, and of no use.
    other = edit_file(root / "good" / "IM00001", as_report, to=root / "cut")
    report = take_in(root, make_home(tmp_path / "home"), BRAIN)
    assert (reason_of(report, other), refused(report)) == (NO_IMAGE, {})


def as_report(header: DicomHeader) -> None:
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    del header.PixelData


def write_still(path: Path, patient: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    still = Clip(small_clip(patient).frames_THW[:1], None, None, "US")
    whole = (0, 0, still.frames_THW.shape[2] - 1, still.frames_THW.shape[1] - 1)
    write_dicom_clip(still, path, identity=identity_of(patient), seed=7, region=whole)
    return path


def test_ultrasound_still_is_a_picture_and_no_clip(tmp_path: Path) -> None:
    root = tmp_path / "in"
    still = write_still(root / "still", 0)
    clip = write_dicom_echo(root / "clip", 1, region=(0, 0, 31, 31))
    pictures = take_in(root, make_home(tmp_path / "pictures"), PLANE)
    assert (pictures.items, reason_of(pictures, still)) == (1, "")
    assert "it is a series" in reason_of(pictures, clip)
    clips = take_in(root, make_home(tmp_path / "clips"), ECHO)
    assert (clips.items, reason_of(clips, clip)) == (1, "")
    assert set_aside(clips) == {"it is a single image, not a clip": 1}
    assert refused(clips) == {}


def test_slices_torn_into_series_of_their_own_make_an_intake_partial(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_slices(root / "good", 0)
    affine = np.diag([12.0, 12.0, 6.0, 1.0])
    fine = np.repeat(small_brain(1).image_CDHW, 2, axis=3)
    scan = Scan(fine, affine, "T1w")
    torn = write_dicom_series(scan, root / "torn", identity=identity_of(1), seed=7)
    for number, path in enumerate(torn):

        def tear(header: DicomHeader, number: int = number) -> None:
            header.SeriesInstanceUID = f"1.2.3.{number}"

        edit_file(path, tear)
    report = take_in(root, make_home(tmp_path / "home"), BRAIN)
    assert refused(report) == {"one slice is no volume": len(torn)}
    # Control: a few are scouts, as every study has them.
    for path in torn[8:]:
        path.unlink()
    report = take_in(root, make_home(tmp_path / "home"), BRAIN)
    assert (refused(report), set_aside(report)) == ({}, {"one slice is no volume": 8})


@pytest.mark.parametrize("series", [(1, 2), (2, 1)])
@pytest.mark.parametrize("change", ["derived", "coarse"])
def test_of_a_visit_the_scanners_own_finest_volume_is_taken(
    tmp_path: Path, series: tuple[int, int], change: str
) -> None:
    """Whatever its identifiers are, and not by the chance of their codes."""
    best, other = series
    root = tmp_path / "in"
    write_slices(root / "a", 0, series=best)
    scan = small_brain(0, shift=5)
    if change == "coarse":
        scan = Scan(scan.image_CDHW[..., ::2], scan.affine @ np.diag([1.0, 1.0, 2.0, 1.0]), "T1w")
    paths = write_dicom_series(scan, root / "b", identity=identity_of(0), seed=7, series=other)
    if change == "derived":
        for path in paths:
            edit_file(path, lambda header: setattr(header, "ImageType", ["DERIVED", "SECONDARY"]))
    for key in (bytes(range(32)), bytes(32), b"k" * 32):
        home = make_home(tmp_path / f"home{key[1]}", key=key)
        report = take_in(root, home, BRAIN)
        assert len(manifest_of(home).items) == 1
        assert reason_of(report, paths[0]) == "its visit has another image already"
