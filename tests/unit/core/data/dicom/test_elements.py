"""The walk over a header finds what pydicom finds, and never more than the bytes there are."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pydicom
import pytest
from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset as DicomHeader
from pydicom.sequence import Sequence as DicomItems

from tests.factories.dicom import edit_file, write_enhanced, write_series
from vitrael.core.data.dicom.elements import _SEQUENCES, UNDEFINED, parse_header, read_header
from vitrael.core.data.dicom.tags import TAG
from vitrael.core.errors import ScanError

SHIPPED = sorted((Path(pydicom.__file__).parent / "data/test_files").rglob("*.dcm"))
"""Files that pydicom brings along: every transfer syntax, and headers broken in old ways."""

TEXTS = (
    *("SOPClassUID", "SeriesInstanceUID", "Modality", "PatientID"),
    *("PhotometricInterpretation", "ScanningSequence", "StudyDate"),
)
SHORTS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
DECIMALS = ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "EchoTime")


def mr_file(folder: Path) -> Path:
    return write_series(folder)[0]


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def test_tags_are_those_of_the_dictionary() -> None:
    assert {keyword: tag_for_keyword(keyword) for keyword in TAG} == TAG


def test_sequences_are_those_of_the_dictionary() -> None:
    assert {tag for tag in TAG.values() if dictionary_VR(tag) == "SQ"} == _SEQUENCES


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_values_are_those_that_pydicom_reads(path: Path) -> None:
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        expected = dcmread(path, stop_before_pixels=True, force=True)
    if path.stem in ("image_dfl", "no_meta"):  # deflated; with a stray byte before all
        with pytest.raises(ScanError, match=r"deflated|not DICOM"):
            read_header(path)
        return
    header = read_header(path)
    elements = header.elements
    for keyword in TEXTS:
        assert elements.text(keyword) == str(expected.get(keyword, "")).strip()
    for keyword in SHORTS:
        assert elements.integer(keyword) == expected.get(keyword)
    for keyword in DECIMALS:
        value = expected.get(keyword)
        numbers = () if value is None or value == "" else value
        single = isinstance(numbers, float)
        assert (elements.decimals(keyword) or ()) == ((numbers,) if single else tuple(numbers))
    for keyword in ("SequenceOfUltrasoundRegions", "ModalityLUTSequence"):
        assert len(elements.items(keyword)) == len(expected.get(keyword) or ())
    has_pixels = "PixelData" in dcmread_quietly(path)
    assert (header.pixels is not None) == has_pixels


def dcmread_quietly(path: Path) -> DicomHeader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dcmread(path, force=True)


def test_pixels_lie_where_the_header_ends(tmp_path: Path) -> None:
    path = mr_file(tmp_path)
    place = read_header(path).pixels
    assert place is not None
    pixels = dcmread(path).PixelData
    assert path.read_bytes()[place.offset :] == pixels
    assert place.length == len(pixels)


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
def test_sequences_are_walked_in_and_over(tmp_path: Path, syntax: str, *, undefined: bool) -> None:
    def nest(header: DicomHeader) -> None:
        region = DicomHeader()
        region.RegionSpatialFormat, region.PhysicalDeltaX = 1, 0.25
        header.SequenceOfUltrasoundRegions = DicomItems([region, DicomHeader(region)])
        inner, middle, outer = DicomHeader(), DicomHeader(), DicomHeader()
        inner.Rows, inner.PatientID = 999, "within"
        middle.RequestedProcedureCodeSequence = DicomItems([inner])
        outer.ReferencedStudySequence = DicomItems([middle])
        header.RequestAttributesSequence = DicomItems([outer, outer])
        for tag in ("SequenceOfUltrasoundRegions", "RequestAttributesSequence"):
            header[tag].is_undefined_length = undefined
        outer["ReferencedStudySequence"].is_undefined_length = undefined
        for item in (region, middle, outer):
            item.is_undefined_length_sequence_item = undefined

    path = edit_file(mr_file(tmp_path), nest, syntax=syntax)
    elements = read_header(path).elements
    regions = elements.items("SequenceOfUltrasoundRegions")
    assert [region.integer("RegionSpatialFormat") for region in regions] == [1, 1]
    assert [region.double("PhysicalDeltaX") for region in regions] == [0.25, 0.25]
    assert elements.integer("Rows") == dcmread(path).Rows != 999
    assert elements.text("PatientID") == "VX-20417"


def test_a_long_private_element_does_not_hide_the_pixels(tmp_path: Path) -> None:
    def plant(header: DicomHeader) -> None:
        block = header.private_block(0x0029, "MADE UP", create=True)
        block.add_new(0x20, "OB", bytes(3 << 20))

    path = edit_file(mr_file(tmp_path), plant)
    place = read_header(path).pixels
    assert place is not None
    assert place.offset > 3 << 20


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "endless"
    head = bytes(128) + b"DICM" + element(0x00020010, b"UI", b"1.2.840.10008.1.2.1\0")
    with path.open("wb") as file:
        file.write(head + struct.pack("<HH2sHI", 0x0029, 0x1010, b"OB", 0, 1 << 26))
        file.truncate(1 << 27)
    with pytest.raises(ScanError, match="absurdly long"):
        read_header(path)


def without_lengths(header: DicomHeader) -> None:
    """Let every sequence and item end with a delimiter."""
    for element in header:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                without_lengths(item)


def test_a_header_read_in_parts_is_not_taken_for_damaged(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "enhanced", write_series(tmp_path))
    data = edit_file(path, without_lengths).read_bytes()
    place = parse_header(data, file_bytes=len(data)).pixels
    assert place is not None
    for end in range(140, place.offset - 12):
        assert parse_header(data[:end], file_bytes=len(data)).pixels is None
    # Control: something else than an item is damage.
    spoiled = data.replace(b"\xfe\xff\x00\xe0", b"\xfd\xff\x00\xe0")
    with pytest.raises(ScanError, match="damaged"):
        parse_header(spoiled, file_bytes=len(data))


def test_bytes_that_end_inside_an_element_are_cut() -> None:
    first = element(0x00080016, b"UI", b"1.2")
    second = struct.pack("<HH2sHI", 0x0029, 0x1010, b"OB", 0, 6) + b"made u"
    data = bytes(128) + b"DICM" + first + second
    ends = {end: parse_header(data[:end], file_bytes=end).cut for end in range(132, len(data) + 1)}
    whole = {132, 132 + len(first), len(data)}
    assert {end for end, is_cut in ends.items() if not is_cut} == whole


@pytest.mark.parametrize("depth", [3, 4000])
def test_sequences_nested_without_end_are_refused(depth: int) -> None:
    opening = struct.pack("<HH2sHI", 0x0040, 0x0275, b"SQ", 0, UNDEFINED)
    opening += struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
    data = bytes(128) + b"DICM" + element(0x00080016, b"UI", b"1.2") + opening * depth
    if depth == 3:
        assert parse_header(data, file_bytes=len(data)).pixels is None
        return
    with pytest.raises(ScanError, match="damaged"):
        parse_header(data, file_bytes=len(data))


def test_a_length_beyond_the_file_takes_no_memory() -> None:
    huge = struct.pack("<HH2sHI", 0x0010, 0x0020, b"UN", 0, 0xFFFFFFF0)
    data = bytes(128) + b"DICM" + element(0x00080016, b"UI", b"1.2") + huge + b"short"
    header = parse_header(data, file_bytes=len(data))
    assert header.elements.text("PatientID") == ""
    assert header.elements.text("SOPClassUID") == "1.2"


@pytest.mark.parametrize(
    "raw", [b"nan", b"inf\\1", b"1e999", b"one", b"", b"1\\\\2", b"0x10"], ids=repr
)
def test_what_is_no_finite_number_is_absent(raw: bytes) -> None:
    data = bytes(128) + b"DICM" + element(0x00180081, b"DS", raw)
    assert parse_header(data, file_bytes=len(data)).elements.decimals("EchoTime") is None
    # Control: a plain number is there.
    data = bytes(128) + b"DICM" + element(0x00180081, b"DS", b" 2.5 ")
    assert parse_header(data, file_bytes=len(data)).elements.decimals("EchoTime") == (2.5,)
