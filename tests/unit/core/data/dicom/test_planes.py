"""Clips and pictures: colors become luma, bright is dense, times and spacing are the file's."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread, uid
from pydicom.dataset import Dataset as DicomHeader
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.sequence import Sequence as DicomItems

from tests.factories.dicom import (
    IDENTITY,
    code,
    edit_file,
    facts_of,
    small_clip,
    write_plane,
    write_series,
)
from vitrael.core.data.dicom.instance import read_instance
from vitrael.core.data.dicom.read import read_clip, read_picture
from vitrael.core.data.dicom.write import write_dicom_clip
from vitrael.core.errors import ScanError

MULTI = uid.UltrasoundMultiFrameImageStorage
LUMA = np.array([0.299, 0.587, 0.114])


def drawn(values: int = 256, *, kind: type = np.uint8, frames: int = 0) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(4))
    shape = (frames, 16, 18) if frames else (16, 18)
    return rng.integers(0, values, shape).astype(kind)


def write_us(path: Path, pixels: np.ndarray, **more: Any) -> Path:
    return write_plane(path, pixels, sop_class=MULTI, FrameTime="40", **more)


def ybr(rgb: np.ndarray) -> np.ndarray:
    """Return YBR_FULL of RGB (PS3.3, C.7.6.3.1.2)."""
    rows = [LUMA, [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    return np.clip(np.rint(rgb @ np.array(rows).T + [0, 128, 128]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("compression", ["none", "rle", "jpeg"])
@pytest.mark.parametrize("colors", ["gray", "rgb"])
def test_a_clip_reads_back(tmp_path: Path, compression: str, colors: str) -> None:
    clip = small_clip()
    path = tmp_path / "clip"
    write_dicom_clip(
        clip,
        path,
        identity=IDENTITY,
        seed=1,
        region=(0, 0, 31, 23),
        colors=colors,  # type: ignore[arg-type]
        compression=compression,  # type: ignore[arg-type]
    )
    read = read_clip(path)
    assert read.frames_THW.shape == (4, 24, 32)
    off = np.abs(read.frames_THW.astype(int) - clip.frames_THW).max()
    assert off <= (8 if compression == "jpeg" else 0)
    assert read.frame_s == pytest.approx(0.04)
    assert read.spacing_mm == pytest.approx((0.5, 0.4))
    assert read.modality == "US"


def test_a_still_is_a_clip_of_one_frame_and_a_picture(tmp_path: Path) -> None:
    clip = small_clip(frames=1)
    path = tmp_path / "still"
    write_dicom_clip(clip, path, identity=IDENTITY, seed=1, region=(0, 0, 31, 23))
    assert np.array_equal(read_clip(path).frames_THW, clip.frames_THW)
    assert read_clip(path).frame_s is None
    picture = read_picture(path)
    assert np.array_equal(picture.image_HW, clip.frames_THW[0])
    assert picture.spacing_mm == pytest.approx((0.5, 0.4))


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_becomes_its_luma(tmp_path: Path, planar: int) -> None:
    rgb = np.stack([drawn(frames=3), drawn(frames=3)[:, ::-1], drawn(frames=3)[..., ::-1]], axis=-1)
    path = write_us(tmp_path / "rgb", rgb)

    def plane_by_plane(header: DicomHeader) -> None:
        header.PlanarConfiguration = planar
        if planar:
            header.PixelData = np.moveaxis(rgb, -1, 1).tobytes()

    clip = read_clip(edit_file(path, plane_by_plane))
    assert np.abs(clip.frames_THW - rgb @ LUMA).max() <= 0.51
    # Control: the mean of the colors is something else.
    assert np.abs(clip.frames_THW - rgb.mean(axis=-1)).max() > 10


def test_the_luma_of_ybr_is_its_first_channel(tmp_path: Path) -> None:
    rgb = np.stack([drawn(frames=2), drawn(frames=2)[:, ::-1], drawn(frames=2)], axis=-1)
    path = write_us(tmp_path / "ybr", ybr(rgb), PhotometricInterpretation="YBR_FULL")
    assert np.abs(read_clip(path).frames_THW - rgb @ LUMA).max() <= 0.51


def test_halved_colors_keep_every_gray_value(tmp_path: Path) -> None:
    gray = drawn(frames=2)
    colors = np.full((2, 16, 9, 2), 128, np.uint8)
    packed = np.concatenate([gray.reshape(2, 16, 9, 2), colors], axis=-1)  # Y1 Y2 Cb Cr
    path = write_us(
        tmp_path / "halved", gray, PhotometricInterpretation="YBR_FULL_422", SamplesPerPixel=3
    )

    def pack(header: DicomHeader) -> None:
        header.PlanarConfiguration, header.PixelData = 0, packed.tobytes()

    assert np.array_equal(read_clip(edit_file(path, pack)).frames_THW, gray)
    for change in ({"Columns": 17}, {"PixelData": np.repeat(gray, 3).tobytes()}):
        broken = edit_file(path, lambda header, to=change: header.update(to), to=tmp_path / "no")
        with pytest.raises(ScanError, match="do not fit its size"):
            read_clip(broken)


@pytest.mark.parametrize(("bits", "first"), [(8, 0), (16, 0), (16, 20)])
def test_a_palette_becomes_the_luma_of_its_colors(tmp_path: Path, bits: int, first: int) -> None:
    pixels = drawn(200)
    entries = np.random.Generator(np.random.PCG64(5)).integers(0, 256, (3, 160))
    words = entries * 257 if bits == 16 else entries
    kind = "<u2" if bits == 16 else "u1"
    tables: dict[str, Any] = {}
    for color, values in zip(("Red", "Green", "Blue"), words, strict=True):
        name = f"{color}PaletteColorLookupTable"
        tables[f"{name}Descriptor"] = [160, first, bits]
        tables[f"{name}Data"] = values.astype(kind).tobytes()
    path = write_plane(
        tmp_path / "palette", pixels, PhotometricInterpretation="PALETTE COLOR", **tables
    )
    colors = apply_color_lut(pixels, dcmread(path)).astype(float) / (257 if bits == 16 else 1)
    assert np.abs(read_picture(path).image_HW - colors @ LUMA).max() <= 0.51
    assert np.abs(read_clip(path).frames_THW[0] - colors @ LUMA).max() <= 0.51
    missing = edit_file(path, lambda header: delattr(header, "RedPaletteColorLookupTableData"))
    with pytest.raises(ScanError, match="lookup table is missing"):
        read_picture(missing)


def test_low_is_dark_whatever_the_file_says(tmp_path: Path) -> None:
    pixels = drawn(4096, kind=np.uint16)
    twelve = {"BitsStored": 12, "HighBit": 11}
    normal = read_picture(write_plane(tmp_path / "a", pixels, **twelve))
    turned = read_picture(
        write_plane(tmp_path / "b", pixels, PhotometricInterpretation="MONOCHROME1", **twelve)
    )
    assert np.array_equal(normal.image_HW, pixels)
    assert np.array_equal(turned.image_HW, 4095.0 - pixels)
    clip = read_clip(tmp_path / "b")
    assert np.array_equal(clip.frames_THW[0], 255 - (pixels >> 4))


def test_signed_values_are_turned_within_their_bits(tmp_path: Path) -> None:
    pixels = drawn(4000, kind=np.int16) - np.int16(2000)
    path = write_plane(tmp_path / "a", pixels, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_picture(path).image_HW, -1.0 - pixels)


def test_a_modality_table_is_looked_up(tmp_path: Path) -> None:
    pixels = drawn(100)
    item = DicomHeader()
    item.LUTDescriptor, item.ModalityLUTType = [64, 10, 16], "US"
    item.LUTData = np.arange(64, dtype="<u2")[::-1].tobytes()
    item["LUTData"].VR = "OW"
    path = write_plane(tmp_path / "a", pixels, ModalityLUTSequence=DicomItems([item]))
    expected = apply_modality_lut(pixels, dcmread(path))
    assert np.array_equal(read_picture(path).image_HW, expected)
    assert facts_of([path])[0].table


@pytest.mark.parametrize(
    ("elements", "spacing"),
    [
        ({"PixelSpacing": ["0.2", "0.3"], "ImagerPixelSpacing": ["1", "1"]}, (0.2, 0.3)),
        ({"ImagerPixelSpacing": ["0.143", "0.143"]}, (0.143, 0.143)),
        ({"PixelSpacing": ["0", "0"]}, None),
        ({"PixelSpacing": ["1e9", "1"]}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_spacing_of_a_radiograph(
    tmp_path: Path, elements: dict[str, Any], spacing: tuple[float, float] | None
) -> None:
    assert read_picture(write_plane(tmp_path / "a", drawn(), **elements)).spacing_mm == spacing


def region(**changes: Any) -> DicomHeader:
    item = DicomHeader()
    values = {
        "RegionSpatialFormat": 1, "RegionDataType": 1, "RegionFlags": 2,
        "RegionLocationMinX0": 0, "RegionLocationMinY0": 0,
        "RegionLocationMaxX1": 17, "RegionLocationMaxY1": 15,
        "PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3,
        "PhysicalDeltaX": 0.04, "PhysicalDeltaY": 0.05,
    }  # fmt: skip
    for keyword, value in (values | changes).items():
        setattr(item, keyword, value)
    return item


@pytest.mark.parametrize(
    ("regions", "spacing"),
    [
        ([region()], (0.5, 0.4)),
        ([region(PhysicalDeltaY=-0.05)], (0.5, 0.4)),
        ([region(), region(RegionSpatialFormat=3)], (0.5, 0.4)),  # a trace beside the image
        ([region(), region(RegionDataType=2)], (0.5, 0.4)),  # flow over the tissue
        ([region(), region()], None),
        ([region(RegionSpatialFormat=2)], None),
        ([region(PhysicalUnitsXDirection=4)], None),
        ([region(RegionLocationMaxX1=600)], None),
        ([region(PhysicalDeltaX=float("nan"))], None),
        ([], None),
    ],
    ids=[
        *("one", "upward", "trace", "flow", "two", "m-mode", "seconds", "scaled", "nan", "none"),
    ],
)
def test_the_spacing_of_an_ultrasound_is_that_of_its_one_region(
    tmp_path: Path, regions: list[DicomHeader], spacing: tuple[float, float] | None
) -> None:
    path = write_us(
        tmp_path / "us", drawn(frames=2), SequenceOfUltrasoundRegions=DicomItems(regions)
    )
    read = read_clip(path).spacing_mm
    assert read == (None if spacing is None else pytest.approx(spacing))
    assert facts_of([path])[0].regions == len(regions)


BOTH_TIMES = {"FrameTime": "50", "FrameTimeVector": ["0", "20", "20"]}


@pytest.mark.parametrize(
    ("elements", "frame_s"),
    [
        ({"FrameTime": "33.3"}, 0.0333),
        ({"FrameTimeVector": ["0", "20", "20"]}, 0.02),
        ({"FrameTimeVector": ["0", "20", "20.9"]}, 0.02045),
        ({"FrameTimeVector": ["0", "20", "30"]}, "unequal"),
        (BOTH_TIMES, 0.05),
        ({**BOTH_TIMES, "FrameIncrementPointer": 0x00181065}, 0.02),
        ({"FrameTimeVector": ["0", "20"], "CineRate": "25"}, 0.04),
        ({"CineRate": "25"}, 0.04),
        ({"RecommendedDisplayFrameRate": "50"}, 0.02),
        ({"FrameTime": "0", "CineRate": "25"}, 0.04),
        ({"FrameTime": "1e12"}, "no frame time"),
        ({"CineRate": "1e-300"}, "no frame time"),
        ({}, "no frame time"),
    ],
    ids=str,
)
def test_the_time_between_frames(
    tmp_path: Path, elements: dict[str, Any], frame_s: float | str
) -> None:
    path = write_plane(tmp_path / "us", drawn(frames=3), sop_class=MULTI, **elements)
    if isinstance(frame_s, str):
        with pytest.raises(ScanError, match=frame_s):
            read_clip(path)
    else:
        assert read_clip(path).frame_s == pytest.approx(frame_s)


def test_wider_values_keep_their_upper_bits(tmp_path: Path) -> None:
    pixels = drawn(1024, kind=np.uint16, frames=2)
    path = write_us(tmp_path / "us", pixels, BitsStored=10, HighBit=9)
    assert np.array_equal(read_clip(path).frames_THW, pixels >> 2)


def test_slices_are_pictures_and_no_clips(tmp_path: Path) -> None:
    path = write_series(tmp_path)[0]
    picture = read_picture(path)
    assert np.array_equal(picture.image_HW, dcmread(path).pixel_array)
    assert picture.spacing_mm == pytest.approx((1.1, 0.9), abs=1e-6)
    with pytest.raises(ScanError, match="is no clip"):
        read_clip(path)
    with pytest.raises(ScanError, match="is no picture"):
        read_picture(write_us(tmp_path / "us", drawn(frames=2)))


def test_a_codec_is_never_shown_a_stream_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    write_dicom_clip(small_clip(), path, identity=IDENTITY, seed=1, compression="jpeg")
    data = path.read_bytes()
    at = data.index(b"\xff\xc0")
    size = (24).to_bytes(2, "big") + (32).to_bytes(2, "big")
    assert data[at + 5 : at + 9] == size
    path.write_bytes(data[: at + 5] + b"\xff\xff\xff\xff" + data[at + 9 :])
    with pytest.raises(ScanError, match=r"its compression \(JPEG\) cannot be decoded here"):
        read_clip(path)


def test_a_box_without_length_does_not_hang_the_reader(tmp_path: Path) -> None:
    paths = write_series(tmp_path, compression="rle")
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60)
    framed = b"\xfe\xff\0\xe0" + (0).to_bytes(4, "little")
    framed += b"\xfe\xff\0\xe0" + len(boxes).to_bytes(4, "little") + boxes
    framed += b"\xfe\xff\xdd\xe0" + bytes(4)

    def plant(header: DicomHeader) -> None:
        header["PixelData"].value = framed
        header.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless

    with pytest.raises(ScanError, match=r"its compression \(JPEG 2000\)"):
        read_picture(edit_file(paths[0], plant))


@pytest.mark.parametrize("compression", ["rle", "jpeg"])
def test_compressed_frames_that_are_missing_are_refused(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "clip"
    clip = small_clip()
    write_dicom_clip(clip, path, identity=IDENTITY, seed=1, compression=compression)  # type: ignore[arg-type]
    edit_file(path, lambda header: setattr(header, "NumberOfFrames", 9))
    with pytest.raises(ScanError, match=r"cut short|cannot be decoded"):
        read_clip(path)


def test_a_codec_tells_nothing_of_what_it_met(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "clip"
    write_dicom_clip(small_clip(), path, identity=IDENTITY, seed=1, compression="jpeg")
    data = path.read_bytes()
    at = data.index(b"\xff\xda") + 20
    path.write_bytes(data[:at] + bytes(30) + data[at + 30 :])
    instance = read_instance(path, code=code)[0]
    with caplog.at_level("DEBUG"), suppress(ScanError):
        read_clip(path, instance)
    assert not caplog.records
    assert not recwarn.list


def test_the_real_echo_is_read_as_its_luma(root: Path) -> None:
    path = root.parent / "shared/data/dicom/us_echo_a4c_multiframe.dcm"
    if not path.is_file():
        pytest.skip("the public DICOM files are not on this machine")
    clip = read_clip(path)
    assert clip.frames_THW.shape == (30, 240, 320)
    assert clip.frame_s == pytest.approx(0.033333)
    assert clip.spacing_mm is None  # its region was written for a larger image
    first = dcmread(path).pixel_array[0]  # RGB; what it clips makes the difference
    assert np.abs(clip.frames_THW[0] - first @ LUMA).mean() < 0.1
    # Control: the red channel is further off.
    assert np.abs(clip.frames_THW[0] - first[..., 0].astype(float)).mean() > 0.2


def test_the_real_slices_read_as_pydicom_reads_them(root: Path) -> None:
    folder = root.parent / "shared/data/dicom"
    if not folder.is_dir():
        pytest.skip("the public DICOM files are not on this machine")
    ct, mr = folder / "CT_small.dcm", folder / "MR_small.dcm"
    assert np.array_equal(read_picture(ct).image_HW, dcmread(ct).pixel_array - 1024.0)
    assert np.array_equal(read_picture(mr).image_HW, dcmread(mr).pixel_array)
    assert read_picture(ct).spacing_mm == (0.661468, 0.661468)
