"""Copies of DICOM files hold nothing of the patient, lie apart, and show what the files show."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, uid
from pydicom.dataset import Dataset as DicomHeader

from tests.factories.dicom import edit_file
from tests.factories.intake import (
    ECHO,
    KEY,
    files_below,
    identity_of,
    make_home,
    small_clip,
    take_in,
    write_dicom_echo,
    write_slices,
)
from tests.factories.planted_dicom import PLANTS, careless, spellings
from vitrael.client.site.ingest.dicom_copies import (
    NOT_DICOM,
    SAME_FILE,
    SAME_IDENTIFIER,
    CopyReport,
    copy_folder,
)
from vitrael.client.site.ingest.dicom_folder import (
    EMPTY,
    NO_IMAGE,
    NO_PATIENT,
    HeaderJob,
    read_headers,
)
from vitrael.core.data.dicom.read import read_volume
from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.data.walk import BROKEN_LINK
from vitrael.core.errors import CohortError, ConfigError, DataError, StorageError, UsageError

REGION = (0, 8, 31, 31)


def copy(root: Path, out: Path, *, workers: int = 0, mask: Path | None = None) -> CopyReport:
    return copy_folder(
        root, out, key=KEY, mask=mask, workers=workers, tell=lambda _what, _done, _total: None
    )


def reasons(report: CopyReport) -> dict[str, str]:
    return {path.name: left.reason for left in report.left_out for path in left.paths}


def partial(report: CopyReport) -> set[str]:
    return {path.name for left in report.left_out if not left.expected for path in left.paths}


def test_copies_hold_nothing_of_the_patient(tmp_path: Path) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    for patient, name in enumerate(("names in utf-8", "private", "nested, listed", "addresses")):
        paths = write_slices(root / identity_of(patient).name, patient)
        with careless():
            edit_file(paths[5], PLANTS[name][1])
    write_dicom_echo(root / "echo", 5, region=REGION, burned_in="Amendoeira")
    report = copy(root, out)
    assert (report.files, report.copies, report.left_out) == (65, 65, [])
    assert report.removed["(0010,1040)"] >= 64, "addresses"
    words = {
        text for patient in (0, 1, 2, 3, 5) for text in identity_of(patient).texts() if text[5:]
    }
    words |= {"Zwölfenstein", "Quastenflosser", "Silberfisch", "Kastanienallee"}
    words |= {str(dcmread(path).SOPInstanceUID) for path in root.rglob("IM0000*")}
    copies = b"".join(files_below(out).values()).lower()
    names = "\n".join(files_below(out)).encode().lower()
    sources = b"".join(files_below(root).values()).lower()
    for word in words:
        forms = {form.lower() for form in spellings(word)}
        assert not any(form in copies or form in names for form in forms)
        assert any(form in sources for form in forms), "control"


def test_copies_make_the_same_image_under_a_pseudonym(tmp_path: Path) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    paths = write_slices(root, 1)
    copy(root, out)
    (folder,) = out.iterdir()
    assert folder.name == pseudonym_of(identity_of(1).patient_id, key=KEY)
    copies = sorted(folder.iterdir())
    headers = [dcmread(path) for path in copies]
    assert [f"{header.SOPInstanceUID}.dcm" for header in headers] == [p.name for p in copies]
    assert {str(header.PatientID) for header in headers} == {folder.name}
    assert {header.PatientIdentityRemoved for header in headers} == {"YES"}
    original, made = read_volume(paths), read_volume(copies)
    np.testing.assert_array_equal(made.image_CDHW, original.image_CDHW)
    np.testing.assert_allclose(made.affine, original.affine)
    assert len({str(header.SeriesInstanceUID) for header in headers}) == 1
    assert str(headers[0].SeriesInstanceUID) != str(dcmread(paths[0]).SeriesInstanceUID)


def test_number_of_processes_changes_no_copy(tmp_path: Path) -> None:
    write_slices(tmp_path / "scans", 1)
    copy(tmp_path / "scans", tmp_path / "one")
    copy(tmp_path / "scans", tmp_path / "other", workers=1)
    assert files_below(tmp_path / "one") == files_below(tmp_path / "other")


def test_ultrasound_is_cut_to_its_region(tmp_path: Path) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    path = write_dicom_echo(root / "echo", 1, region=REGION, burned_in="IRIS")
    write_dicom_echo(root / "bare", 2)
    report = copy(root, out)
    assert report.copies == 1
    assert partial(report) == {"bare"}
    assert reasons(report)["bare"].startswith("burned-in text cannot be ruled out")
    (made,) = out.rglob("*.dcm")
    frames, before = dcmread(made).pixel_array, dcmread(path).pixel_array
    assert not frames[:, :8].any()
    assert before[:, :8].any(), "control: a name stood there"
    np.testing.assert_array_equal(frames[:, 8:], before[:, 8:])


def test_mask_of_the_site_is_applied_to_copies_and_to_items(tmp_path: Path) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    write_dicom_echo(root / "bare", 2)
    visible = np.zeros((32, 32), np.uint8)
    visible[10:, 4:28] = 255
    mask = tmp_path / "cone.png"
    Image.fromarray(visible).save(mask)
    assert copy(root, out, mask=mask).copies == 1
    (made,) = out.rglob("*.dcm")
    frames = dcmread(made).pixel_array
    assert not frames[:, visible == 0].any()
    np.testing.assert_array_equal(frames[:, visible > 0], small_clip(2).frames_THW[:, visible > 0])
    home = make_home(tmp_path / "home")
    assert take_in(root, home, ECHO, pixel_mask=mask).items == 1


def test_what_cannot_be_copied_is_told(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    paths = write_slices(root, 1)
    (root / "notes.txt").write_text("nothing")
    (root / "empty").touch()
    (root / "gone").symlink_to("nowhere")
    (root / ".hidden").touch()
    edit_file(paths[3], lambda header: setattr(header, "PatientID", ""))
    paths[4].write_bytes(paths[4].read_bytes()[:-100])
    report = copy(root, tmp_path / "copies")
    assert (report.files, report.copies) == (20, 14)
    told = reasons(report)
    assert told.pop(paths[4].name).startswith("the pixels cannot be decoded")
    assert told == {
        "notes.txt": NOT_DICOM,
        "empty": EMPTY,
        "gone": BROKEN_LINK,
        ".hidden": "hidden",
        paths[3].name: "the header names no patient",
    }
    assert partial(report) == {"empty", "gone", paths[3].name, paths[4].name}
    assert list((tmp_path / "copies").rglob(".partial-*")) == []


def test_objects_without_pixels_are_told_and_nothing_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    paths = write_slices(root, 1)

    def without_pixels(sop_class: str) -> Callable[[DicomHeader], None]:
        def edit(header: DicomHeader) -> None:
            del header.PixelData, header.Rows, header.Columns
            header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = sop_class
            header.TextValue = "Frau Amendoeira"

        return edit

    classes = {"index": uid.MediaStorageDirectoryStorage, "report": uid.BasicTextSRStorage}
    for name, sop_class in classes.items():
        edit_file(paths[0], without_pixels(sop_class), to=root / name)
    edit_file(paths[0], lambda header: delattr(header, "PixelData"), to=root / "bare")
    whole = paths[1].read_bytes()
    (root / "cut").write_bytes(whole[: whole.index(b"VX-") + 1])
    report = copy(root, tmp_path / "copies")
    assert report.copies == 16
    told = reasons(report)
    assert told.pop("bare").startswith("the pixels cannot be decoded")
    assert told == {"index": NO_IMAGE, "report": NO_IMAGE, "cut": "its header is cut short"}
    assert partial(report) == {"bare", "cut"}


PATIENT_IDS = [
    # character set, bytes of the Patient ID, the text that they are
    ("ISO_IR 100", b"Zw\xf6lf", "Zw\xf6lf"),
    ("ISO_IR 192", b"Zw\xc3\xb6lf", "Zw\xf6lf"),
    ("ISO_IR 144", "Иванов".encode("iso8859-5"), "Иванов"),
    ("ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde\x1b$B;3ED\x1b(J1", "ﾔﾏﾀﾞ山田1"),
    ("\\ISO 2022 IR 149", b"\x1b$)C\xb1\xe8 1", "김 1"),
    ("GB18030", "王小东".encode("gb18030"), "王小东"),
    ("", b"  MRN 0815  ", "MRN 0815"),
    ("", b"MRN 0815\0\0", "MRN 0815"),
    ("", b"MRN 0815\t\r\n", "MRN 0815"),
    ("", b"mrn 0815", "mrn 0815"),
]


@pytest.mark.parametrize(("charset", "data", "subject"), PATIENT_IDS)
def test_copies_and_items_have_one_pseudonym(
    charset: str, data: bytes, subject: str, tmp_path: Path
) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    root.mkdir()
    (made,) = write_slices(tmp_path / "made", 1)[:1]
    data += b" " * (len(data) % 2)
    stand_in = "#" * len(data)

    def mark(header: DicomHeader) -> None:
        header.SpecificCharacterSet = charset.split("\\")
        header.PatientID = stand_in

    edit_file(made, mark)
    assert made.read_bytes().count(stand_in.encode()) == 1
    path = root / "one"
    path.write_bytes(made.read_bytes().replace(stand_in.encode(), data))
    ((_, kept),) = read_headers(HeaderJob((("file", path),), KEY))
    assert copy(root, out).copies == 1
    (folder,) = out.iterdir()
    (copied,) = folder.iterdir()
    assert kept["subject"] == folder.name == dcmread(copied).PatientID
    assert folder.name == pseudonym_of(subject, key=KEY)


def test_patient_id_that_cannot_be_read_is_not_guessed(tmp_path: Path) -> None:
    root = tmp_path / "scans"
    first, second = write_slices(root, 1)[:2]
    edit_file(first, lambda header: setattr(header, "PatientID", ["A", "B"]))
    edit_file(second, lambda header: setattr(header, "PatientID", "  "))
    report = copy(root, tmp_path / "copies")
    ((_, kept),) = read_headers(HeaderJob((("file", first),), KEY))
    assert kept["fault"].startswith("its Patient ID cannot be read")
    assert reasons(report) == {
        first.name: kept["fault"],
        second.name: NO_PATIENT,
    }


def test_nothing_of_a_file_is_told_on_the_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    paths = write_slices(root, 1)
    edit_file(paths[0], lambda header: setattr(header, "PixelData", header.PixelData + b"KRANICH "))
    with caplog.at_level(logging.DEBUG):
        assert copy(root, out).copies == 16
    assert caplog.records == []
    with pytest.warns(UserWarning, match="excess padding"):
        dcmread(paths[0]).pixel_array  # noqa: B018 - control: pydicom would tell
    assert caplog.records != []


def test_copy_says_nothing_of_when_its_file_was_written(tmp_path: Path) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    for path in write_slices(root, 1):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert copy(root, out).copies == 16
    written = {path.stat().st_mtime for path in out.rglob("*.dcm")}
    assert 1_000_000_000 not in written


def test_short_key_is_refused_before_a_file_is_read(tmp_path: Path) -> None:
    write_slices(tmp_path / "scans", 1)
    with pytest.raises(ConfigError, match="too short"):
        copy_folder(
            *(tmp_path / "scans", tmp_path / "copies"),
            key=KEY[:8],
            mask=None,
            workers=0,
            tell=lambda _what, _done, _total: None,
        )
    assert not (tmp_path / "copies").exists()


def test_no_copy_takes_the_place_of_another(tmp_path: Path) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    paths = write_slices(root, 1)
    shutil.copyfile(paths[0], root / "same")
    before = dcmread(paths[7]).PixelData

    def change(header: DicomHeader) -> None:
        header.PixelData = before[::-1]

    edit_file(paths[7], change, to=root / "zother")
    report = copy(root, out)
    assert (report.files, report.copies, len(files_below(out))) == (18, 16, 16)
    assert reasons(report) == {"same": SAME_FILE, "zother": SAME_IDENTIFIER}
    assert partial(report) == {"zother"}
    kept = {dcmread(path).PixelData for path in out.rglob("*.dcm")}
    assert before in kept
    assert before[::-1] not in kept


def test_copies_lie_in_a_new_folder(tmp_path: Path) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    write_slices(root, 1)
    before = files_below(root)
    for taken in (root, tmp_path / "scans" / "IM00001"):
        with pytest.raises(UsageError, match="is not empty"):
            copy(root, taken)
    assert files_below(root) == before
    out.mkdir()
    assert copy(root, out).copies == 16
    assert {path.stat().st_mode & 0o077 for path in out.rglob("*")} == {0}


def test_folder_without_dicom_and_mask_that_is_none_are_told_first(tmp_path: Path) -> None:
    root, out = tmp_path / "scans", tmp_path / "copies"
    root.mkdir()
    (root / "notes.txt").write_text("nothing")
    with pytest.raises(CohortError, match="no DICOM image"):
        copy(root, out)
    write_slices(root, 1)
    with pytest.raises(DataError, match="pixel mask"):
        copy(root, out, mask=tmp_path / "missing.png")
    assert not out.exists()


def test_full_disk_ends_the_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slices(tmp_path / "scans", 1)

    def refuse(*_: object) -> None:
        raise StorageError("a prepared item cannot be written", why="there is no disk space left")

    monkeypatch.setattr("vitrael.client.site.ingest.dicom_copies.write_private", refuse)
    with pytest.raises(StorageError):
        copy(tmp_path / "scans", tmp_path / "copies")
