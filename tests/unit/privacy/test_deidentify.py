from __future__ import annotations

import io
import re
from datetime import datetime

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset as DicomHeader
from pydicom.dataset import FileMetaDataset as FileMeta
from pydicom.sr.codedict import codes
from pydicom.tag import Tag

from tests.factories.planted_dicom import (
    PLANTS,
    SYNTAXES,
    decode,
    encode,
    found_in,
    item,
    made_up_header,
    planted,
    planted_header,
    raw_element,
)
from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.errors import ConfigError, ScanError
from vitrael.privacy.deidentify import (
    METHOD,
    count_removed,
    date_shift_days,
    deidentify_header,
    remap_uid,
)
from vitrael.privacy.dicom_profile import HEADER, Rule

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
SUBJECT = "Kranich, Otto #4711"
MARK = b"ZZQXNAME"

AS_FILE = [
    (name, syntax)
    for name in PLANTS
    for syntax in SYNTAXES
    # pydicom swaps the bytes of numbers when it writes big endian: nothing is left to be found
    if (name, syntax) != ("bytes", uid.ExplicitVRBigEndian)
]


@pytest.mark.parametrize(("name", "syntax"), AS_FILE)
def test_no_identifier_is_left_in_the_saved_file(name: str, syntax: uid.UID) -> None:
    words = PLANTS[name][0].split()
    source = planted(name, syntax)
    assert [word for word in words if not found_in(source, word)] == []  # the search can find
    clean = deidentify_header(decode(source), key=KEY, subject=SUBJECT)
    saved = encode(clean.header)
    assert [word for word in [*words, SUBJECT, "Kranich"] if found_in(saved, word)] == []
    assert [word for word in words if word in f"{clean.removed} {clean.replaced} {clean}"] == []


@pytest.mark.parametrize("name", PLANTS)
def test_no_identifier_is_left_of_a_header_made_in_memory(name: str) -> None:
    clean = deidentify_header(planted_header(name), key=KEY, subject=SUBJECT)
    saved = encode(clean.header)
    assert [word for word in PLANTS[name][0].split() if found_in(saved, word)] == []


@pytest.mark.parametrize("name", PLANTS)
def test_a_header_is_not_changed(name: str) -> None:
    header = decode(planted(name))
    before = list(header.values()), list(header.file_meta.values())
    first = deidentify_header(header, key=KEY, subject=SUBJECT)
    assert all(a is b for a, b in zip(before[0], header.values(), strict=True))
    assert all(a is b for a, b in zip(before[1], header.file_meta.values(), strict=True))
    again = deidentify_header(header, key=KEY, subject=SUBJECT)
    assert encode(first.header) == encode(again.header)
    assert first.removed == again.removed


@pytest.mark.parametrize("name", PLANTS)
def test_counting_gives_the_same_report(name: str) -> None:
    header = decode(planted(name))
    assert count_removed(header) == deidentify_header(header, key=KEY, subject=SUBJECT).removed


def test_counting_looks_at_no_value_that_has_no_rule() -> None:
    header = made_up_header()
    tag = Tag("PatientAddress")
    header[tag] = raw_element(tag, "LO", MARK)._replace(value=None)  # never read from its file
    assert count_removed(header)["(0010,1040)"] == 1


def test_report_has_tags_and_counts_and_nothing_else() -> None:
    removed = deidentify_header(decode(planted("private")), key=KEY, subject=SUBJECT).removed
    shape = re.compile(r"\([0-9A-F]{4},[0-9A-F]{4}\)|\([0-9A-F]{4},xxxx\) private")
    assert all(shape.fullmatch(tag) and count > 0 for tag, count in removed.items())
    assert removed == {"(0010,0010)": 1, "(0010,0020)": 1, "(0029,xxxx) private": 4} | {
        tag: removed[tag] for tag in ("(0002,0012)", "(0002,0013)")
    }


@pytest.mark.parametrize("name", sorted(set(PLANTS) - {"nested, listed"}))
def test_every_element_is_kept_or_replaced_or_removed(name: str) -> None:
    header = decode(planted(name))
    header.file_meta = FileMeta()
    clean = deidentify_header(header, key=KEY, subject=SUBJECT)
    done = {**clean.removed, **clean.replaced}
    assert len(done) == len(clean.removed) + len(clean.replaced)
    kept = [tag for tag in list(header.keys()) if tag in clean.header and str(tag) not in done]
    assert len(kept) + sum(done.values()) == len(header)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_kept_values_are_those_of_the_source(syntax: uid.UID) -> None:
    header = made_up_header()
    header.SmallestImagePixelValue = 7
    saved = decode(encode(header, syntax))
    saved.Columns  # noqa: B018 - one value is decoded, the others are not
    check_kept(header, deidentify_header(saved, key=KEY, subject=SUBJECT).header)
    check_kept(header, decode(encode(deidentify_header(saved, key=KEY, subject=SUBJECT).header)))


def check_kept(header: DicomHeader, clean: DicomHeader) -> None:
    for keyword in ("Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "RepetitionTime"):
        assert clean[keyword].value == header[keyword].value
    assert (clean.PatientSex, clean.PatientAge, clean.DiffusionBValue) == ("F", "047Y", 1000.0)
    assert (clean.SmallestImagePixelValue, clean["SmallestImagePixelValue"].VR) == (7, "US")


def test_pseudonym_stands_for_name_and_id() -> None:
    clean = deidentify_header(made_up_header(), key=KEY, subject=SUBJECT).header
    assert clean.PatientName == clean.PatientID == pseudonym_of(SUBJECT, key=KEY)


def test_equal_uids_stay_equal_across_files() -> None:
    first, second = made_up_header(), made_up_header()
    second.SOPInstanceUID = "1.2.3.4.5.9"
    second.ReferencedImageSequence = [item(ReferencedSOPInstanceUID="1.2.3.4.5.1")]
    a, b = (deidentify_header(each, key=KEY, subject=SUBJECT).header for each in (first, second))
    assert a.StudyInstanceUID == b.StudyInstanceUID != first.StudyInstanceUID
    assert a.SOPInstanceUID != b.SOPInstanceUID
    assert b.ReferencedImageSequence[0].ReferencedSOPInstanceUID == a.SOPInstanceUID
    assert a.file_meta.MediaStorageSOPInstanceUID == a.SOPInstanceUID
    assert a.SOPClassUID == first.SOPClassUID


def test_uid_of_the_standard_and_padding() -> None:
    assert remap_uid(uid.MRImageStorage, key=KEY) == uid.MRImageStorage
    assert remap_uid("1.2.3\0", key=KEY) == remap_uid("1.2.3", key=KEY)
    assert remap_uid("", key=KEY) == ""
    assert remap_uid("1.2.840.10008.9.9.9", key=KEY).startswith("2.25.")  # only looks like one


@given(st.text("0123456789.", min_size=1, max_size=60))
def test_mapped_uid_is_a_valid_one(text: str) -> None:
    mapped = remap_uid(f"9.{text}", key=KEY)  # the standard's own, which stay, begin with 1
    assert uid.UID(mapped).is_valid
    assert int(mapped.removeprefix("2.25.")).bit_length() <= 128
    assert int(mapped.removeprefix("2.25.")) >> 76 & 0xF == 8  # a UUID of version 8


def test_another_key_gives_another_result() -> None:
    a, b = (
        deidentify_header(made_up_header(), key=key, subject=SUBJECT).header
        for key in (KEY, OTHER_KEY)
    )
    for keyword in ("PatientID", "SOPInstanceUID", "StudyDate"):
        assert a[keyword].value != b[keyword].value


def test_shift_keeps_intervals() -> None:
    dates = ["20120229", "20140425", "20140426"]
    shifted = []
    for date in dates:
        header = made_up_header()
        header.StudyDate = header.AcquisitionDateTime = date
        clean = deidentify_header(header, key=KEY, subject=SUBJECT).header
        assert clean.StudyDate == clean.AcquisitionDateTime
        shifted.append(clean.StudyDate)
    was, now = (
        np.diff([datetime.strptime(date, "%Y%m%d").toordinal() for date in days])  # noqa: DTZ007
        for days in (dates, shifted)
    )
    assert was.tolist() == now.tolist()
    assert set(dates).isdisjoint(shifted)


@given(st.text(min_size=1))
def test_shift_is_never_zero_and_at_most_ten_years(subject: str) -> None:
    assert -3650 <= date_shift_days(subject, key=KEY) <= -1


def test_shifts_of_patients_differ() -> None:
    assert len({date_shift_days(str(number), key=KEY) for number in range(200)}) > 150


def test_time_of_day_is_not_kept() -> None:
    header = made_up_header()
    header.StudyTime = header.SeriesTime = "134759.12"
    header.AcquisitionDateTime = "20140425134759.12+0100"
    clean = deidentify_header(header, key=KEY, subject=SUBJECT)
    assert clean.header.StudyTime == ""
    assert "SeriesTime" not in clean.header
    assert len(clean.header.AcquisitionDateTime) == len("20140425")
    assert {"(0008,0030)", "(0008,0031)"} <= set(clean.removed)


@pytest.mark.parametrize(
    ("age", "kept"),
    [("089Y", "089Y"), ("090Y", "090Y"), ("103Y", "090Y"), ("018M", "018M"), ("42", None)],
)
def test_ages_above_89_become_one(age: str, kept: str | None) -> None:
    header = made_up_header()
    header[Tag("PatientAge")] = raw_element(Tag("PatientAge"), "AS", age.encode())
    clean = deidentify_header(header, key=KEY, subject=SUBJECT).header
    assert clean.get("PatientAge") == kept


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("RepetitionTime", "DS", b"2000.5"),
        ("RepetitionTime", "DS", b"2e3\\-1"),
        ("DiffusionBValue", "FD", np.float64(1000).tobytes()),
        ("FrameIncrementPointer", "AT", b"\x18\0\x63\x10"),
    ],
)
def test_an_element_of_another_type_is_removed(keyword: str, vr: str, value: bytes) -> None:
    header, tag = DicomHeader(), Tag(keyword)
    for given_vr in (vr, None, "UN", "LO", "SH", "OB"):
        header[tag] = raw_element(tag, "", value)._replace(VR=given_vr)
        clean = deidentify_header(header, key=KEY, subject=SUBJECT)
        is_right = given_vr in {vr, None} and b"-" not in value  # and one value, not two
        assert (keyword in clean.header) == is_right
        assert (str(tag) in clean.removed) == (not is_right)


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("SliceThickness", "DS", b"19431224"),
        ("SliceThickness", "DS", b"nan "),
        ("SliceThickness", "DS", b"1.5mm "),
        ("InstanceNumber", "IS", b"12.5"),
        ("SeriesNumber", "IS", b"+49721555000"),
        ("DiffusionBValue", "FD", np.float64(np.nan).tobytes()),
        ("DiffusionBValue", "FD", np.float64(1.7e38).tobytes()),
        ("DiffusionBValue", "FD", b"Otto\0\0\0\0"),
        ("FrameIncrementPointer", "AT", b"Otto"),
        ("StudyDate", "DA", b"20141341"),
        ("StudyDate", "DA", b"Mai 2014"),
    ],
)
def test_a_value_that_cannot_be_is_removed(keyword: str, vr: str, value: bytes) -> None:
    header, tag = DicomHeader(), Tag(keyword)
    header[tag] = raw_element(tag, vr, value)
    assert keyword not in deidentify_header(header, key=KEY, subject=SUBJECT).header
    assert count_removed(header) == {str(tag): 1}


def test_unknown_word_of_an_image_type_leaves_the_others_in_place() -> None:
    header = made_up_header()
    header.ImageType = ["ORIGINAL", "PRIMARY", "HERRWIEDEHOPF", "FFE"]
    clean = deidentify_header(header, key=KEY, subject=SUBJECT).header
    assert list(clean.ImageType) == ["ORIGINAL", "PRIMARY", "OTHER", "FFE"]


def test_header_says_what_was_done_in_the_standards_codes() -> None:
    clean = deidentify_header(made_up_header(), key=KEY, subject=SUBJECT).header
    said = [(i.CodeValue, i.CodeMeaning) for i in clean.DeidentificationMethodCodeSequence]
    known = [
        codes.DCM.BasicApplicationConfidentialityProfile,
        codes.DCM.RetainLongitudinalTemporalInformationModifiedDatesOption,
        codes.DCM.RetainPatientCharacteristicsOption,
    ]
    assert said == [(code.value, code.meaning) for code in known]
    assert {i.CodingSchemeDesignator for i in clean.DeidentificationMethodCodeSequence} == {"DCM"}
    assert clean.PatientIdentityRemoved == "YES"
    assert clean.LongitudinalTemporalInformationModified == "MODIFIED"
    assert list(clean.DeidentificationMethod) == list(METHOD)
    assert "BurnedInAnnotation" not in clean


def test_a_second_pass_removes_nothing_but_the_pseudonym() -> None:
    once = deidentify_header(decode(planted("institution")), key=KEY, subject=SUBJECT)
    saved = decode(encode(once.header))
    twice = deidentify_header(saved, key=KEY, subject=SUBJECT)
    assert set(twice.removed) - {"(0002,0012)", "(0002,0013)"} == {"(0010,0010)", "(0010,0020)"}
    assert set(once.header.keys()) == set(twice.header.keys())


def every_rule(rules: dict[int, Rule], path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    found = []
    for tag, rule in rules.items():
        found.append((*path, tag))
        found += every_rule(dict(rule.items), (*path, tag))
    return found


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_frames_of_an_enhanced_image_keep_their_geometry(syntax: uid.UID) -> None:
    header = made_up_header()
    shared = item(PixelSpacing=[0.5, 0.6], SliceThickness=1.2)
    header.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[shared])]
    header.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[1, 2, z])],
            FrameContentSequence=[item(TemporalPositionIndex=z + 1, DimensionIndexValues=[1, z])],
        )
        for z in range(3)
    ]
    saved = decode(encode(header, syntax))
    clean = decode(encode(deidentify_header(saved, key=KEY, subject=SUBJECT).header))
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        assert clean[keyword].value == header[keyword].value


def test_lookup_table_that_rises_is_kept_and_text_is_not() -> None:
    rising = np.linspace(0, 4095, 1024).astype("<u2").tobytes()
    text = (MARK * 256)[:2048]
    for table, kept in ((rising, True), (rising[::-1], False), (text, False), (MARK, False)):
        header = made_up_header()
        header.VOILUTSequence = [item(LUTDescriptor=[1024, 0, 12])]
        header.VOILUTSequence[0].add_new("LUTData", "OW", table)
        saved = decode(encode(header, uid.ImplicitVRLittleEndian))
        clean = decode(encode(deidentify_header(saved, key=KEY, subject=SUBJECT).header))
        assert ("LUTData" in clean.VOILUTSequence[0]) == kept


@settings(max_examples=300)
@given(
    tag=st.sampled_from(sorted(HEADER)),
    data=st.binary(max_size=40),
    has_vr=st.booleans(),
    little=st.booleans(),
)
def test_any_bytes_are_judged_without_an_error(
    *, tag: int, data: bytes, has_vr: bool, little: bool
) -> None:
    header = DicomHeader()
    vr = HEADER[tag].vrs[0] if has_vr else None
    header[Tag(tag)] = raw_element(Tag(tag), "UN", data)._replace(VR=vr, is_little_endian=little)
    clean = deidentify_header(header, key=KEY, subject=SUBJECT)
    assert count_removed(header) == clean.removed
    assert saved_without_preface(clean.header)


def test_letters_survive_in_no_listed_element() -> None:
    for path in every_rule(dict(HEADER)):
        tag, rules = path[-1], HEADER
        for step in path[:-1]:
            rules = rules[step].items
        for vr in (*rules[tag].vrs, "UN", "LO", None):
            value = MARK if vr not in {"FD", "SQ"} else MARK * 2
            header = DicomHeader()
            header[Tag(tag)] = raw_element(Tag(tag), vr, value)
            for step in reversed(path[:-1]):
                outer = DicomHeader()
                outer.add_new(step, "SQ", [header])
                header = outer
            clean = deidentify_header(header, key=KEY, subject=SUBJECT).header
            assert MARK not in saved_without_preface(clean), (path, vr)


def saved_without_preface(header: DicomHeader) -> bytes:
    target = io.BytesIO()
    header.save_as(target, implicit_vr=False, little_endian=True)
    return target.getvalue()


TEXTS = ("LO", "SH", "ST", "LT", "UT", "UC", "UR", "PN", "AE", "OB", "UN")


@settings(max_examples=150)
@given(tag=st.integers(0x00080000, 0xFFFEFFFF), vr=st.sampled_from(TEXTS), nested=st.booleans())
def test_an_element_that_is_not_listed_never_survives(tag: int, vr: str, *, nested: bool) -> None:
    rules = HEADER[Tag("SequenceOfUltrasoundRegions")].items if nested else HEADER
    assume(tag not in rules and tag & 0xFFFF and tag != Tag("PixelData"))
    header = made_up_header()
    place = item(RegionSpatialFormat=1) if nested else header
    place[Tag(tag)] = raw_element(Tag(tag), vr, MARK)
    if nested:
        header.SequenceOfUltrasoundRegions = [place]
    assert MARK in b"".join(e.value or b"" for e in place.values() if isinstance(e, tuple))
    clean = deidentify_header(header, key=KEY, subject=SUBJECT)
    assert MARK not in encode(clean.header)
    assert sum(clean.removed.values()) == 3


def test_a_short_key_and_a_patient_without_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="too short"):
        deidentify_header(made_up_header(), key=b"short", subject=SUBJECT)
    with pytest.raises(ConfigError, match="too short"):
        remap_uid("1.2.3", key=b"short")
    with pytest.raises(ScanError, match="no patient"):
        deidentify_header(made_up_header(), key=KEY, subject="")
