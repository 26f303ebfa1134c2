"""The facts of a file: enough to judge it, nothing of who it is of, and no absurd size believed."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import dcmread, uid
from pydicom.charset import convert_encodings, encode_string
from pydicom.dataset import Dataset as DicomHeader

from tests.factories.dicom import (
    IDENTITY,
    Edit,
    code,
    edit_file,
    facts_of,
    small_scan,
    write_enhanced,
    write_plane,
    write_series,
)
from vitrael.core.data.dicom.elements import read_header
from vitrael.core.data.dicom.instance import from_record, is_dicom, read_instance, to_record
from vitrael.core.errors import ScanError


def edited(folder: Path, edit: Edit) -> Path:
    return edit_file(write_series(folder)[0], edit)


def test_the_facts_of_a_slice(tmp_path: Path) -> None:
    path = write_series(tmp_path)[2]
    facts, identity = read_instance(path, code=code)
    header = dcmread(path)
    stored, (place,) = facts.stored, facts.places
    assert identity.subject == IDENTITY.patient_id
    assert (facts.patient, facts.series) == (code(header.PatientID), code(header.SeriesInstanceUID))
    assert (facts.sop, facts.dicom_study) == (
        code(header.SOPInstanceUID),
        code(header.StudyInstanceUID),
    )
    assert (facts.kind, facts.modality, facts.contrast) == ("MR", "MR", "T1w")
    assert (stored.rows, stored.columns, stored.frames, stored.signed) == (10, 12, 1, True)
    assert place.position == tuple(header.ImagePositionPatient)
    assert place.orientation == tuple(header.ImageOrientationPatient)
    assert place.spacing_mm == pytest.approx((1.1, 0.9), abs=1e-6)
    assert facts.thickness_mm == pytest.approx(2.5, abs=1e-6)
    assert (facts.number, place.echo, place.image_type) == (
        3,
        (1.0, 2.98),
        ("ORIGINAL", "PRIMARY", "M"),
    )
    assert (facts.taken, facts.age_years, facts.sex) == (date(2021, 11, 30), 64.0, "F")


def test_neither_facts_nor_their_record_hold_an_identifier(tmp_path: Path) -> None:
    def plant(header: DicomHeader) -> None:
        header.ImageType = ["ORIGINAL", "PRIMARY", "IRIS"]
        header.Modality = "AMENDOEIRA"
        header.SeriesDescription = "t1 of Iris Amendoeira"

    slices = [edited(tmp_path, plant), *write_series(tmp_path / "more")]
    slices.append(write_enhanced(tmp_path / "enhanced", slices[1:]))
    for path in slices:
        facts, identity = read_instance(path, code=code)
        text = json.dumps(to_record(facts)) + repr(facts) + repr(facts.places) + repr(identity)
        header = dcmread(path)
        uids = [header.SOPInstanceUID, header.SeriesInstanceUID, header.StudyInstanceUID]
        assert not re.search(r"VX-20417|iris|amendoeira|1957", text, re.IGNORECASE)
        assert not any(one in text for one in (*uids, header.FrameOfReferenceUID, str(path)))
        # Control: the code of an identifier does stand there.
        assert code(header.SOPInstanceUID) in text


def test_a_record_makes_the_same_facts_again(tmp_path: Path) -> None:
    slices = write_series(tmp_path)
    plane = write_plane(tmp_path / "plane", np.eye(16, dtype=np.uint16))
    for path in (slices[0], write_enhanced(tmp_path / "enhanced", slices), plane):
        (facts,) = facts_of([path])
        assert from_record(json.loads(json.dumps(to_record(facts)))) == facts
    with pytest.raises(ValueError, match="not that of an Instance"):
        from_record({"series": "x"})


@pytest.mark.parametrize(
    ("age", "born", "years"),
    [
        ("043Y", "", 43.0),
        ("018M", "", 1.5),
        ("026W", "", 0.5),
        ("300D", "", 0.82),
        ("43", "19570409", 64.64),  # no unit: the birth date decides
        ("000Y", "19570409", 64.64),
        ("000Y", "", None),
        ("", "1957.04.09", 64.64),
        ("", "19571309", None),
        ("", "20301201", None),
        ("", "00010101", None),
        ("999Y", "", None),
    ],
)
def test_the_age_is_in_years_or_unknown(
    tmp_path: Path, age: str, born: str, years: float | None
) -> None:
    def edit(header: DicomHeader) -> None:
        header.PatientAge, header.PatientBirthDate = age, born

    assert facts_of([edited(tmp_path, edit)])[0].age_years == years


@pytest.mark.parametrize(("word", "sex"), [("F", "F"), ("m ", "M"), ("O", None), ("", None)])
def test_the_sex_is_known_or_none(tmp_path: Path, word: str, sex: str | None) -> None:
    path = edited(tmp_path, lambda header: setattr(header, "PatientSex", word))
    assert facts_of([path])[0].sex == sex


def test_the_day_is_that_of_the_study_or_of_the_image(tmp_path: Path) -> None:
    def edit(header: DicomHeader) -> None:
        header.StudyDate, header.SeriesDate, header.AcquisitionDate = "", "x", "20200229"

    assert facts_of([edited(tmp_path, edit)])[0].taken == date(2020, 2, 29)


@pytest.mark.parametrize("text", ["00010101", "99991231"])
def test_a_day_that_stands_for_unknown_is_none(tmp_path: Path, text: str) -> None:
    path = edited(tmp_path, lambda header: setattr(header, "StudyDate", text))
    assert facts_of([path])[0].taken == IDENTITY.study_date  # the next element tells it


@pytest.mark.parametrize(
    ("character_set", "subject"),
    [
        ("", "VX-7"),
        ("ISO_IR 100", "Müller-7"),
        ("ISO_IR 101", "Łódź-7"),
        ("ISO_IR 126", "Δίον-7"),
        ("ISO_IR 127", "قب-7"),
        ("ISO_IR 138", "שר-7"),
        ("ISO_IR 144", "Люк-7"),
        ("ISO_IR 166", "กข-7"),
        ("ISO_IR 192", "Łódź-山田-7"),
        ("GB18030", "王小东-7"),
        ("GBK", "王小东-7"),
        ("\\ISO 2022 IR 87", "山田-7"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", "ﾔﾏ山田-7"),
        ("\\ISO 2022 IR 149", "김희중-7"),
        ("ISO 2022 IR 100\\ISO 2022 IR 144", "Müller Люк-7"),
        ("ISO-IR 100", "Müller-7"),  # misspelled
    ],
)
def test_a_subject_is_read_in_its_character_set_as_pydicom_reads_it(
    tmp_path: Path, character_set: str, subject: str
) -> None:
    path = write_series(tmp_path)[0]
    sets = character_set.split("\\")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = encode_string(subject, convert_encodings(sets))

    def plant(header: DicomHeader) -> None:
        header.SpecificCharacterSet = sets
        header.add_new("PatientID", "LO", subject)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edit_file(path, plant)
        expected = str(dcmread(path).PatientID)
    assert raw in path.read_bytes()
    assert read_instance(path, code=code)[1].subject == expected == subject


@pytest.mark.parametrize("character_set", [b"ISO_IR 192", b"undefined "])
def test_a_subject_that_does_not_fit_its_character_set_is_refused(
    tmp_path: Path, character_set: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = edited(tmp_path, lambda header: setattr(header, "PatientID", "VX-Müller"))
    data = path.read_bytes()
    spoiled = data.replace("VX-Müller".encode(), b"VX-M\xfcller ")
    assert data != spoiled
    path.write_bytes(spoiled.replace(b"ISO_IR 192", character_set))
    with caplog.at_level("DEBUG"), pytest.raises(ScanError, match="its Patient ID cannot be read"):
        read_instance(path, code=code)
    assert not caplog.records


def test_a_file_cut_within_its_header_is_no_other_kind_of_object(tmp_path: Path) -> None:
    data = write_series(tmp_path)[0].read_bytes()
    place = read_header(tmp_path / "IM00001").pixels
    assert place is not None
    path = tmp_path / "cut"
    told = Counter()
    for end in range(132, place.offset):
        path.write_bytes(data[:end])
        with pytest.raises(ScanError) as caught:
            read_instance(path, code=code)
        told[caught.value.what] += 1
    # Between two elements the bytes themselves do not tell that some are missing.
    assert told.keys() == {
        "its header is cut short",
        "its header does not tell what it is",
        "it has no pixel data",
    }
    assert told["its header is cut short"] > 0.9 * told.total()


def test_an_object_of_another_kind_is_known_by_its_meta_information() -> None:
    folder = Path(pydicom.__file__).parent / "data/test_files"
    for name in ("dicomdirtests/DICOMDIR", "rtplan_truncated.dcm", "reportsi.dcm"):
        with pytest.raises(ScanError, match="another kind of DICOM object"):
            read_instance(folder / name, code=code)


def test_a_file_is_known_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    path = write_series(tmp_path)[0]
    renamed = path.rename(tmp_path / "notes.txt")
    assert is_dicom(renamed)
    text = tmp_path / "scan.dcm"
    text.write_text("patient, age\n" * 40)
    assert not is_dicom(text)
    for nothing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError, match=r"^\[Errno \d+\] [A-Z][a-z ]+$"):
            is_dicom(nothing)
    for size in (0, 10, 131):
        text.write_bytes(renamed.read_bytes()[:size])
        assert not is_dicom(text)


def test_a_file_without_its_preamble_is_known_by_its_class(tmp_path: Path) -> None:
    path = write_series(tmp_path)[0]
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[132:])
    assert is_dicom(bare)
    assert facts_of([bare])[0].places == facts_of([path])[0].places
    header = dcmread(path)
    start = path.read_bytes().index(b"\x08\0\x05\0CS")
    bare.write_bytes(path.read_bytes()[start:])  # not even its meta information
    assert is_dicom(bare)
    assert facts_of([bare])[0].sop == code(header.SOPInstanceUID)
    # Control: the same start with another class is not known.
    other = path.read_bytes()[start:].replace(b"1.2.840.10008.5", b"1.3.840.10008.5")
    bare.write_bytes(other)
    assert not is_dicom(bare)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"Rows": 65535, "Columns": 65535}, "absurd image size"),
        ({"Rows": 512, "Columns": 512, "NumberOfFrames": 1_000_000}, "absurd image size"),
        ({"NumberOfFrames": 2}, "cut short"),
        ({"Rows": 11}, "cut short"),
        ({"Rows": 0}, "no image size"),
        ({"NumberOfFrames": 0}, "no image size"),
        ({"NumberOfFrames": 1.5}, "no image size"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "is no image"),
        ({"SOPClassUID": "1.2.3"}, "its kind of image is not known"),
        ({"SOPClassUID": "1.2.3", "PixelData": None}, "is no image"),
        ({"PatientID": ["A", "B"]}, "its Patient ID cannot be read"),
        ({"SeriesInstanceUID": ""}, "names no series"),
        ({"ConcatenationUID": "1.2.3"}, "a part of an image"),
        ({"PhotometricInterpretation": "RGB"}, "do not fit"),
        ({"SamplesPerPixel": 3}, "do not fit"),
        ({"PhotometricInterpretation": "CMYK"}, "unknown kind"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420", "SamplesPerPixel": 3}, "unknown kind"),
        ({"BitsAllocated": 12}, "bits"),
        ({"BitsStored": 17}, "bits"),
        ({"BitsStored": 12, "HighBit": 3}, "bits"),
        ({"PixelData": None}, "no pixel data"),
        ({"PixelData": b""}, "no pixel data"),
    ],
    ids=str,
)
def test_a_bad_header_is_refused_with_its_reason(
    tmp_path: Path, values: dict[str, object], told: str
) -> None:
    def edit(header: DicomHeader) -> None:
        for keyword, value in values.items():
            if keyword == "NumberOfFrames":
                header.add_new(keyword, "CS", str(value))  # what is no whole number, too
            elif value is None:
                delattr(header, keyword)
            else:
                setattr(header, keyword, value)

    path = write_series(tmp_path)[0]
    facts_of([path])
    with pytest.raises(ScanError, match=told):
        facts_of([edit_file(path, edit)])


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        (uid.DeflatedExplicitVRLittleEndian, "deflated"),
        (uid.MPEG4HP41, "MPEG-4"),
        (uid.HEVCMP51, "HEVC"),
        (uid.JPEG2000MC, "JPEG 2000 multi-component"),
        ("1.2.826.0.1.3680043.9999", "unknown"),
    ],
)
def test_a_compression_that_cannot_be_decoded_is_named(
    tmp_path: Path, syntax: str, name: str
) -> None:
    path = write_series(tmp_path)[0]
    data = path.read_bytes()
    plain = b"1.2.840.10008.1.2.1\0"
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    at = data.index(plain)
    header = data[: at - 2] + len(new).to_bytes(2, "little") + new + data[at + len(plain) :]
    path.write_bytes(header)
    with pytest.raises(ScanError, match=rf"its compression \({name}\) cannot be decoded here"):
        facts_of([path])


@pytest.mark.parametrize(("size", "told"), [(0, "is empty"), (60, "not DICOM"), (131, "not DICOM")])
def test_a_file_that_is_hardly_there_is_refused(tmp_path: Path, size: int, told: str) -> None:
    path = write_series(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ScanError, match=told):
        facts_of([path])


def test_a_missing_file_is_a_fault_of_the_system_told_without_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^\[Errno 2\] No such file or directory$"):
        facts_of([tmp_path / "missing"])


def test_an_enhanced_header_of_other_frames_is_refused(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "enhanced", write_series(tmp_path / "slices"))
    assert len(facts_of([path])[0].places) == 6
    edit_file(path, lambda header: header.PerFrameFunctionalGroupsSequence.pop())
    with pytest.raises(ScanError, match="other frames"):
        facts_of([path])


def test_what_marks_an_image_is_kept(tmp_path: Path) -> None:
    def edit(header: DicomHeader) -> None:
        header.BurnedInAnnotation, header.ContrastBolusAgent = "YES", "made-up agent"

    facts, plain = facts_of([edited(tmp_path, edit), write_series(tmp_path / "b")[0]])
    assert (facts.burned_in, facts.agent) == (True, True)
    assert (plain.burned_in, plain.agent) == (None, False)
    none = edited(tmp_path / "c", lambda header: setattr(header, "ContrastBolusAgent", "NONE"))
    assert not facts_of([none])[0].agent


def test_an_agent_is_known_by_the_sequence_of_enhanced_images(tmp_path: Path) -> None:
    def edit(header: DicomHeader) -> None:
        agent = DicomHeader()
        agent.ContrastBolusAgentNumber = 1
        header.ContrastBolusAgentSequence = [agent]

    path = write_enhanced(tmp_path / "enhanced", write_series(tmp_path))
    assert not facts_of([path])[0].agent
    assert facts_of([edit_file(path, edit)])[0].agent


def test_contrasts_follow_the_timing_of_what_was_written(tmp_path: Path) -> None:
    for modality in ("T1w", "T2w", "FLAIR"):
        scan = small_scan(modality=modality)
        assert facts_of(write_series(tmp_path / modality, scan))[0].contrast == modality


def test_the_real_files_are_what_they_are(root: Path) -> None:
    folder = root.parent / "shared/data/dicom"
    if not folder.is_dir():
        pytest.skip("the public DICOM files are not on this machine")
    names = ("CT_small.dcm", "MR_small.dcm", "us_echo_a4c_multiframe.dcm")
    ct, mr, us = facts_of(folder / name for name in names)
    assert (ct.kind, ct.stored.rows, ct.places[0].intercept, ct.agent) == ("CT", 128, -1024, True)
    assert (ct.age_years, ct.sex) == (None, None)
    assert (mr.kind, mr.stored.columns, mr.contrast, mr.sex) == ("MR", 64, "T2w", "F")
    assert (us.kind, us.stored.frames, us.regions, us.burned_in) == ("US", 30, 1, None)
    assert us.frame_s == pytest.approx(0.033333)
    # Its one region reaches beyond the image: it was scaled later, and its spacing is unknown.
    assert us.plane_mm is None
