"""A bad file costs itself, with a reason; the rest of its folder goes in, nothing is left over."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset as DicomHeader
from pydicom.uid import ExplicitVRLittleEndian

from tests.factories.dicom import edit_file, write_enhanced
from tests.factories.intake import (
    KEY,
    identity_of,
    leftovers,
    make_home,
    manifest_of,
    reason_of,
    refused,
    set_aside,
    small_brain,
    take_in,
    write_brain,
    write_brains,
    write_slices,
)
from vitrael.client.site.ingest import dicom_folder
from vitrael.client.site.ingest.assemble import ONE_A_VISIT, SAME_IMAGE
from vitrael.client.site.ingest.dicom_folder import COPY, EMPTY, LOCALIZER, NOT_DICOM, UNREADABLE
from vitrael.core.data.dicom.write import made_uid, write_dicom_series
from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.data.walk import BROKEN_LINK, CIRCLE, CLOSED_FILE, CLOSED_FOLDER, LINKED_FOLDER

GOOD = 2
NOBODY = 65534
BAD = 9
"""The patient whose files are bad."""

Reasons = Mapping[Path, str]
Plant = Callable[[Path], Reasons]

GEOMETRY = np.diag([12.0, 12.0, 12.0, 1.0])


def edit_all(paths: list[Path], **elements: object) -> None:
    def edit(header: DicomHeader) -> None:
        for keyword, value in elements.items():
            setattr(header, keyword, value)

    for path in paths:
        edit_file(path, edit)


def slice_cut_short(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD)
    paths[6].write_bytes(paths[6].read_bytes()[:-200])
    rest = dict.fromkeys(paths, "slices are missing: 1 of 16")
    return rest | {paths[6]: "its pixel data is cut short"}


def slice_without_pixels(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD)
    data = paths[6].read_bytes()
    paths[6].write_bytes(data[: data.index(b"\xe0\x7f\x10\x00")])
    rest = dict.fromkeys(paths, "slices are missing: 1 of 16")
    return rest | {paths[6]: "it has no pixel data"}


def no_bytes(root: Path) -> Reasons:
    volume, instance = root / "sub-X_T1w.nii.gz", root / "IM000001"
    volume.touch()
    instance.touch()
    return {volume: "it cannot be used: the file is empty", instance: EMPTY}


def no_image(root: Path) -> Reasons:
    reason = "it cannot be used: the file is not a whole NIfTI file"
    reasons = {root / "sub-X_T1w.nii.gz": reason, root / "sub-Y_T1w.nii": reason}
    for path in reasons:
        path.write_bytes(b"%PDF-1.4\n" * 99)
    return reasons


def slice_lost(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD)
    paths.pop(7).unlink()
    return dict.fromkeys(paths, "slices are missing: 1 of 16")


def other_slice_at_one_place(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD)

    def change(header: DicomHeader) -> None:
        header.PixelData = header.PixelData[::-1]
        header.SOPInstanceUID = made_uid(1, "other")

    other = edit_file(paths[7], change, to=root / "bad" / "other")
    return dict.fromkeys([*paths, other], "different slices are at one place")


def slice_out_of_step(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD)
    place = small_brain(BAD).affine[2, 3] + 7 * 12.0 + 4.0
    edit_all([paths[7]], ImagePositionPatient=[-90, -90, place])
    sheared = "its slices are unevenly spaced"
    return dict.fromkeys(paths, sheared)


def colors_unknown(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD)
    edit_all(paths, PhotometricInterpretation="SEPIA")
    return dict.fromkeys(paths, "its colors are of an unknown kind")


def colors_without_samples(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD)
    edit_all(paths, PhotometricInterpretation="YBR_FULL")
    return dict.fromkeys(
        paths, "its colors do not fit its samples: the header contradicts itself about them"
    )


def codec_unknown(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD)
    plain, other = ExplicitVRLittleEndian.encode() + b"\0", b"1.2.840.10008.1.2.9\0"
    for path in paths:
        path.write_bytes(path.read_bytes().replace(plain, other))
    return dict.fromkeys(paths, "its compression (unknown) cannot be decoded here")


def stream_damaged(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD, compression="jpeg-ls")
    data = bytearray(paths[6].read_bytes())
    data[-120:-20] = bytes(100)
    paths[6].write_bytes(data)
    reason = "its compression (JPEG-LS) cannot be decoded here: it is damaged or of a rare kind"
    return dict.fromkeys(paths, reason)


def nobody(root: Path) -> Reasons:
    paths = write_slices(root / "bad", BAD)
    edit_all(paths, PatientID="")
    return dict.fromkeys(paths, "the header names no patient")


def volume_of(root: Path, values: np.ndarray) -> Path:
    path = root / "sub-X_T1w.nii.gz"
    nib.save(nib.Nifti1Image(values, GEOMETRY), path)
    return path


def not_a_number(root: Path) -> Reasons:
    values = small_brain(BAD).image_CDHW[0].copy()
    values[8, 8, 8] = np.nan
    reason = "it cannot be used: the image holds values that are not finite"
    return {volume_of(root, values): reason}


def one_value(root: Path) -> Reasons:
    reason = "it cannot be used: the image is constant, every voxel has one and the same value"
    return {volume_of(root, np.full((16, 16, 16), 7, np.float32)): reason}


def over_time(root: Path) -> Reasons:
    values = np.stack([small_brain(BAD).image_CDHW[0]] * 3, axis=-1)
    reason = "it cannot be used: the image has 4 axes, one volume of three is expected"
    return {volume_of(root, values): reason}


def singular(root: Path) -> Reasons:
    path = root / "sub-X_T1w.nii"
    data = bytearray(nib.Nifti1Image(small_brain(BAD).image_CDHW[0], GEOMETRY).to_bytes())
    data[252:254], data[312:328] = bytes(2), bytes(16)  # the qform's code, the third axis
    path.write_bytes(data)
    return {path: "it cannot be used: the affine is singular"}


def million_slices(root: Path) -> Reasons:
    header = nib.Nifti2Header()
    header.set_data_shape((256, 256, 10**6))
    header.set_data_dtype("int16")
    header.set_sform(GEOMETRY, 1)
    path = root / "sub-X_T1w.nii"
    path.write_bytes(header.binaryblock + bytes(4096))
    enhanced = write_enhanced(root / "enhanced", write_slices(root / "bad", BAD))
    edit_all([enhanced], NumberOfFrames="1000000")
    shutil.rmtree(root / "bad")
    absurd = "the header gives an absurd image size"
    return {
        path: f"it cannot be used: {absurd}, at most 134,217,728 voxels are read",
        enhanced: "its pixel data is cut short",
    }


def links(root: Path) -> Reasons:
    (root / "one").symlink_to(root / "other")
    (root / "other").symlink_to(root / "one")
    (root / "up").symlink_to(root.parent, target_is_directory=True)
    (root / "gone").symlink_to("nowhere")
    return {
        root / "one": CIRCLE,
        root / "other": CIRCLE,
        root / "up": LINKED_FOLDER,
        root / "gone": BROKEN_LINK,
    }


@pytest.mark.parametrize(
    "plant",
    [
        *(slice_cut_short, slice_without_pixels, no_bytes, no_image, slice_lost),
        *(other_slice_at_one_place, slice_out_of_step, colors_unknown, colors_without_samples),
        *(codec_unknown, stream_damaged, nobody, not_a_number, one_value, over_time, singular),
        *(million_slices, links),
    ],
)
def test_bad_file_is_refused_with_its_reason_and_the_rest_goes_in(
    plant: Plant, tmp_path: Path
) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    write_brains(root, range(GOOD))
    expected = plant(root)
    report = take_in(root, home)
    told = {path: left.reason for left in report.left_out for path in left.paths}
    assert told == dict(expected)
    assert report.is_partial
    assert report.items == GOOD
    assert leftovers(home) == set()
    again = take_in(root, home)
    assert (again.anew, again.digest, refused(again)) == (0, report.digest, refused(report))


def test_localizers_and_texts_make_no_intake_partial(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    write_brains(root, range(GOOD))
    localizer = write_slices(root / "scout", BAD)
    edit_all(localizer, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    report = (root / "report.dcm", root / "notes.txt", root / "Thumbs.db")
    for path in report:
        path.write_bytes(b"%PDF-1.4")
    told = take_in(root, make_home(tmp_path / "home"))
    assert told.items == GOOD
    assert not told.is_partial
    assert set_aside(told) == {LOCALIZER: 16, NOT_DICOM: 1, "a text": 1, "a file of a program": 1}


def test_exact_copy_of_a_slice_is_dropped_and_its_series_goes_in(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    paths = write_slices(root, BAD)
    clean = take_in(root, home)
    shutil.copyfile(paths[7], root / "copy")
    report = take_in(root, home)
    assert (report.items, set_aside(report)) == (1, {COPY: 1})
    assert report.digest == clean.digest


def test_two_series_in_one_folder_are_two_items(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    write_slices(root, 4)
    for path in write_slices(tmp_path / "other", 5):
        path.rename(root / f"B{path.name}")
    report = take_in(root, make_home(tmp_path / "home"))
    assert (report.items, report.patients, report.left_out) == (2, 2, ())


def test_two_series_under_one_identifier_are_told_apart(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    one, other = write_slices(root / "one", 4), write_slices(root / "other", 5)
    same = {"StudyInstanceUID": made_uid(1, "study"), "SeriesInstanceUID": made_uid(1, "series")}
    edit_all([*one, *other], **same)
    # One patient's as well: a second series that lies elsewhere in the scanner.
    again = write_dicom_series(
        small_brain(6), root / "again", identity=identity_of(5), seed=7, plane="coronal"
    )
    edit_all([*again], **same)
    report = take_in(root, make_home(tmp_path / "home"))
    assert (report.items, report.patients) == (2, 2)
    assert set_aside(report) == {ONE_A_VISIT: 16}
    assert refused(report) == {}


def test_two_volumes_of_one_file_stay_two(tmp_path: Path) -> None:
    """Both come from the same file, so its place alone does not tell them apart."""
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    one, other = write_slices(tmp_path / "one", 4), write_slices(tmp_path / "other", 5)
    root.mkdir()

    def part(index: int, frame: DicomHeader) -> None:
        echo = DicomHeader()
        echo.EffectiveEchoTime = 3.0 if index < len(one) else 4.5
        frame.MREchoSequence = [echo]

    write_enhanced(root / "both", [*one, *other], edit_frame=part)
    first = take_in(root, home)
    assert (first.anew, first.items, set_aside(first)) == (2, 1, {ONE_A_VISIT: 1})
    again = take_in(root, home)
    assert (again.anew, again.digest, set_aside(again)) == (0, first.digest, {ONE_A_VISIT: 1})
    assert first.digest == take_in(root, make_home(tmp_path / "anew")).digest


def test_one_image_under_two_names_is_taken_once(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    write_brains(root, range(GOOD))
    write_brain(root / "sub-07_T1w.nii.gz", 0)
    report = take_in(root, make_home(tmp_path / "home"))
    assert (report.items, set_aside(report)) == (GOOD, {SAME_IMAGE: 1})
    assert "same-image" in {finding.check for finding in report.findings}


NAMES = ("Frau Müller  2 new", "line\nbreak", unicodedata.normalize("NFD", "prüföäß"), "=cmd|' /C")


def test_odd_names_are_names(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    for patient, name in enumerate(NAMES):
        write_brain(root / f"{name}_T1w.nii.gz", patient)
    path = write_brain(root / "latin.nii.gz", 5)
    path.rename(os.fsdecode(os.fsencode(root) + b"/M\xfcller_T1w.nii.gz"))  # no UTF-8
    write_slices(root / "Größe\nund Maß", 6)
    folder = write_slices(root / "folder", 7)[0].parent
    folder.rename(os.fsdecode(os.fsencode(root) + b"/Gr\xf6\xdfe"))
    report = take_in(root, home)
    assert (report.items, report.patients, report.left_out) == (7, 7, ())
    subjects = {item.subject for item in manifest_of(home).items}
    assert pseudonym_of(unicodedata.normalize("NFC", NAMES[2]), key=KEY) in subjects
    assert (take_in(root, home).anew, leftovers(home)) == (0, set())


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Own a folder without root's power to read everything, where the tests have that."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        if not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
            pytest.skip("the folder for temporary files is root's alone")
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_costs_itself() -> None:
    with TemporaryDirectory() as name:  # pytest's own folder is closed to others
        root, home = Path(name) / "scans", make_home(Path(name) / "home")
        write_brains(root, range(GOOD))
        closed = write_brain(root / "sub-X_T1w.nii.gz", 5)
        hall = write_brain(root / "hall" / "sub-Y_T1w.nii.gz", 6).parent
        assert take_in(root, make_home(Path(name) / "control")).items == GOOD + 2
        closed.chmod(0)
        hall.chmod(0)
        with as_nobody(Path(name)):
            report = take_in(root, home)
            assert (reason_of(report, closed), reason_of(report, hall)) == (
                CLOSED_FILE,
                CLOSED_FOLDER,
            )
            assert (report.items, report.is_partial) == (GOOD, True)
            closed.chmod(0o600)
            hall.chmod(0o700)
            later = take_in(root, home)
        assert (later.items, later.anew) == (GOOD + 2, 2)


def test_header_that_could_not_be_opened_once_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    write_brains(root, range(GOOD))
    paths = write_slices(root / "pacs", 4)
    real = dicom_folder.is_dicom

    def stall(path: Path) -> bool:
        if path == paths[3]:
            raise OSError(5, "Input/output error")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(dicom_folder, "is_dicom", stall)
        report = take_in(root, home)
    assert reason_of(report, paths[3]) == UNREADABLE
    assert report.items == GOOD
    assert take_in(root, home).items == GOOD + 1
