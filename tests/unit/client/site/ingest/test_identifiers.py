"""Nothing that says who a patient is lies below the home after an intake, in a file of any kind."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import stat
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom import dcmread
from pydicom.dataset import Dataset as DicomHeader

from tests.factories.dicom import edit_file
from tests.factories.intake import (
    BRAIN,
    KEY,
    PLANE,
    files_below,
    identity_of,
    make_home,
    small_brain,
    take_in,
    write_pictures,
    write_slices,
)
from tests.factories.planted_dicom import PLANTS, careless, encode, made_up_header, spellings
from vitrael.client.site.ingest.dicom_copies import copy_folder
from vitrael.client.site.ingest.outcome import IngestReport, tell
from vitrael.client.site.ingest.places import SPLIT_KEY, Home
from vitrael.core.data.dicom.write import write_dicom_series
from vitrael.core.errors import AuthError
from vitrael.core.rng import stream

_LEAST_LETTERS = 5
_LEAST_DIGITS = 8
"""A shorter run of digits may stand in any digest or time."""
IN_SLICES = (
    *("names in utf-8", "dates", "addresses", "institution", "physicians", "devices"),
    *("descriptions", "comments", "private", "nested, not listed", "nested, listed", "file meta"),
)


def words_of(names: Iterable[str]) -> set[str]:
    """Return what was planted, as far as it cannot be met by chance."""
    words = {word for name in names for word in PLANTS[name][0].split()}
    return {
        word
        for word in words
        if len(re.sub(r"\W", "", word)) >= (_LEAST_DIGITS if word.isdigit() else _LEAST_LETTERS)
        and not re.fullmatch(r"[0-9.+]{1,10}", word)
    }


def write_planted(root: Path) -> set[str]:
    """Write a file for each plant, under names that tell on it too; return the words."""
    words = words_of(PLANTS)
    for number, (name, (planted, plant)) in enumerate(PLANTS.items()):
        with careless():
            header = made_up_header()
            header.PatientID = f"PLANTID{number:04d}"
            header.SOPInstanceUID = f"1.2.276.0.99999.1.{number}"
            header.SeriesInstanceUID = f"1.2.276.0.99999.2.{number}"
            header.StudyInstanceUID = f"1.2.276.0.99999.3.{number}"
            header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
            plant(header)
            header.set_original_encoding(False, True, ["iso8859"])  # noqa: FBT003 - as they name it
            pixels = stream(number, "planted").integers(0, 4096, (16, 24), dtype=np.uint16)
            header.add_new("PixelData", "OW", pixels.tobytes())
            header.add_new(0xFFFCFFFC, "OB", b"padding of Zaunkoenig ")
            data = b"preamble of Steinadler".ljust(128) + encode(header)[128:]
        words.add(f"PLANTID{number:04d}" if name != "other ids" else "MRN0815XK")
        folder = root / planted.split()[0] / f"Visit of Lindwurm_Eleonora {number}"
        folder.mkdir(parents=True)
        (folder / f"PLANTID{number:04d}_20140426.dcm").write_bytes(data)
    return words | {"Visit of", "Steinadler", "Zaunkoenig"}


def everything_in(home: Home, report: IngestReport) -> dict[str, bytes]:
    """Return all bytes that an intake leaves, and what it says when not asked for paths."""
    found = files_below(home.folder)
    for name, data in list(found.items()):
        if name.endswith(".html"):
            page = data.decode()
            pictures = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
            assert pictures
            found[f"{name} text"] = html.unescape(re.sub(r"base64,[^\"']+", "", page)).encode()
            found[f"{name} pictures"] = b"".join(map(base64.b64decode, pictures))
    found["said"] = tell(report, paths=False).encode()
    found["said as JSON"] = json.dumps(report.document(paths=False), ensure_ascii=False).encode()
    return found


def told_on(words: Iterable[str], data: bytes) -> set[str]:
    small = data.lower()
    return {word for word in words if any(form.lower() in small for form in set(spellings(word)))}


def demand_in_sources(words: Iterable[str], root: Path) -> None:
    """The control: what is searched for is there to be found."""
    names = "\n".join(path.as_posix() for path in root.rglob("*")).encode()
    sources = b"\n".join([names, *files_below(root).values()])
    assert told_on(words, sources) == set(words)


def take_in_watched(root: Path, home: Home, **options: object) -> tuple[IngestReport, bytes]:
    """Return the report, and the files of the index as they were while it was written to."""
    seen: list[bytes] = []

    def watch(_what: str, _done: int, _total: int) -> None:
        folder = home.cohort("main").folder
        seen.extend(path.read_bytes() for path in folder.glob("index.sqlite*"))

    report = take_in(root, home, tell=watch, **options)  # type: ignore[arg-type]
    return report, b"".join(seen[-6:])


def test_planted_headers_leave_nothing(tmp_path: Path) -> None:
    root, home = tmp_path / "Archiv Rumpelstilz", make_home(tmp_path / "home")
    words = write_planted(root)
    demand_in_sources(words, root)
    assert len(words) > 90
    report, while_written = take_in_watched(root, home, settings=PLANE)
    assert report.items >= 15
    left = {name: told_on(words, data) for name, data in everything_in(home, report).items()}
    assert {name: found for name, found in left.items() if found} == {}
    assert len(while_written) > 4096
    assert told_on(words, while_written) == set()
    paths = json.dumps(report.document(paths=True)).encode()
    assert told_on(words, paths) != set() or not report.left_out, "asked for, they are told"


def test_copies_of_planted_headers_hold_nothing(tmp_path: Path) -> None:
    root, out = tmp_path / "Archiv Rumpelstilz", tmp_path / "copies"
    words = write_planted(root)
    demand_in_sources(words, root)
    report = copy_folder(root, out, key=KEY, mask=None, workers=0, tell=lambda *_: None)
    assert report.copies == len(PLANTS) - 1
    made = files_below(out)
    said = "\n".join([*made, *(left.reason for left in report.left_out), *report.removed])
    left = {name: told_on(words, data) for name, data in {**made, "said": said.encode()}.items()}
    assert {name: found for name, found in left.items() if found} == {}


def test_planted_series_leave_nothing(tmp_path: Path) -> None:
    root, home = tmp_path / "Archiv Rumpelstilz", make_home(tmp_path / "home")
    words = words_of(IN_SLICES)
    for patient, name in enumerate(IN_SLICES):
        paths = write_slices(root / f"{identity_of(patient).name} {patient}", patient)
        words.update(text for text in identity_of(patient).texts() if len(text) > 5)
        with careless():
            for path in (paths[0], paths[7]):
                edit_file(path, PLANTS[name][1])
        words.add(str(dcmread(paths[1]).StudyInstanceUID))
    demand_in_sources(words, root)
    report, while_written = take_in_watched(root, home, settings=BRAIN)
    assert report.items >= 10
    left = {name: told_on(words, data) for name, data in everything_in(home, report).items()}
    assert {name: found for name, found in left.items() if found} == {}
    assert told_on(words, while_written) == set()
    assert report.removed


def test_remarks_of_other_formats_leave_nothing(tmp_path: Path) -> None:
    root, home = tmp_path / "Ablage Rotdorn", make_home(tmp_path / "home")
    root.mkdir()
    remarks = PngImagePlugin.PngInfo()
    remarks.add_text("Comment", "Frau Sonnenhut, Kiefernweg 3")
    for number, path in enumerate(write_pictures(root / "Sonnenhut^Klara", range(3))):
        picture = Image.open(path)
        picture.load()
        exif = Image.Exif()
        exif[0x010E] = "Doktor Eisenkraut"
        picture.save(path.with_name(f"Klara Sonnenhut {number}.png"), pnginfo=remarks, exif=exif)
        path.unlink()
    lines = ["image_id,patient_id,name,label,age,remark"]
    lines += [
        f"Klara Sonnenhut {n}.png,MRN55667{n},Sonnenhut,tumor,40,Frau Engelwurz" for n in (0, 1, 2)
    ]
    (root / "Sonnenhut^Klara" / "liste.csv").write_text("\n".join(lines))
    words = {"Sonnenhut", "Kiefernweg", "Eisenkraut", "Engelwurz", "MRN556670", "Rotdorn"}
    demand_in_sources(words, root)
    report = take_in(root, home, PLANE)
    assert (report.items, report.patients) == (3, 3)
    for data in everything_in(home, report).values():
        assert told_on(words, data) == set()


def test_header_of_a_nifti_file_leaves_nothing(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    root.mkdir()
    scan = small_brain(1)
    image = nib.Nifti1Image(scan.image_CDHW[0], scan.affine)
    image.header["descrip"], image.header["db_name"] = b"Frau Sonnenhut 19431224", b"MRN556677"
    image.header["aux_file"] = b"C:/Sonnenhut"
    nib.save(image, root / "Sonnenhut_Klara_19431224.nii")
    words = {"Sonnenhut", "19431224", "MRN556677"}
    demand_in_sources(words, root)
    report = take_in(root, home)
    assert report.items == 1
    for data in everything_in(home, report).values():
        assert told_on(words, data) == set()


def test_index_holds_no_path_and_no_hash_that_can_be_tried_out(tmp_path: Path) -> None:
    """Without the key nobody can find out by trial whether a path or a patient is in it."""
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    paths = [*write_slices(root / "folder-of-one", 1), *write_slices(root / "folder-of-two", 2)]
    take_in(root, home)
    index = home.cohort("main").index.read_bytes()
    private = [*map(str, paths), *(path.relative_to(root).as_posix() for path in paths)]
    private += [identity.patient_id for identity in map(identity_of, (1, 2))]
    private += [str(dcmread(path).SOPInstanceUID) for path in paths]
    for text in [*private, "folder-of", root.name + "/", paths[0].name]:
        assert text.encode() not in index
        for name in ("md5", "sha1", "sha256", "blake2b"):
            assert hashlib.new(name, text.encode()).hexdigest()[:12].encode() not in index
    assert b'"contrast":"T1w"' in index, "control: its texts can be searched"


def test_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert len(home.key()) == 32
    path = home.folder / "keys" / SPLIT_KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(AuthError, match="open to other users"):
        home.key()


def test_dates_are_moved_and_the_days_between_visits_stay(tmp_path: Path) -> None:
    root, home = tmp_path / "scans", make_home(tmp_path / "home")

    def later(header: DicomHeader) -> None:
        for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
            setattr(header, keyword, "20230302")
        header.StudyInstanceUID += ".7"
        header.SeriesInstanceUID += ".7"
        header.SOPInstanceUID += ".7"

    write_slices(root / "first", 1)
    scan = small_brain(1, visit=1)
    for path in write_dicom_series(scan, root / "second", identity=identity_of(1), seed=7):
        edit_file(path, later)
    report = take_in(root, home)
    assert report.items == 2
    manifest = json.loads(home.cohort("main").manifest.read_bytes())
    days = (date(2023, 3, 2) - date(2021, 11, 30)).days
    assert [item["days"] for item in manifest["items"]] == [0, days]
    index = home.cohort("main").index.read_bytes()
    assert re.search(rb'"taken":"20[01]\d-\d\d-\d\d"', index), "control: a date stands there"
    assert b"2021-11-30" not in index
    assert b"2023-03-02" not in index


@pytest.mark.parametrize("paths", [False, True])
def test_paths_are_told_only_when_asked_for(paths: bool, tmp_path: Path) -> None:  # noqa: FBT001
    root, home = tmp_path / "scans", make_home(tmp_path / "home")
    write_slices(root / "Lindwurm", 1)[3].unlink()
    write_slices(root / "whole", 2)
    report = take_in(root, home)
    said = tell(report, paths=paths) + json.dumps(report.document(paths=paths))
    assert ("Lindwurm" in said) is paths
    assert "slices are missing" in said
