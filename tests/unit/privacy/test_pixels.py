from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom import uid
from pydicom.dataset import Dataset as DicomHeader
from pydicom.encaps import encapsulate

from tests.factories.planted_dicom import decode, encode, item, made_up_header
from vitrael.core.errors import ScanError
from vitrael.privacy.deidentify import deidentified_copy
from vitrael.privacy.pixels import (
    apply_mask,
    demand_clean_pixels,
    read_site_mask,
    region_mask,
)

KEY = bytes(range(32))
TISSUE, ECG, SPECTRUM, BAR = (1, 1), (4, 10), (3, 3), (5, 14)


def region(kind: tuple[int, int], left: int, top: int, right: int, bottom: int) -> DicomHeader:
    return item(
        RegionSpatialFormat=kind[0],
        RegionDataType=kind[1],
        RegionLocationMinX0=left,
        RegionLocationMinY0=top,
        RegionLocationMaxX1=right,
        RegionLocationMaxY1=bottom,
    )


def ultrasound(*regions: DicomHeader, **values: object) -> DicomHeader:
    """Return the header of an image of 16 rows and 24 columns."""
    header = made_up_header("US")
    header.SOPClassUID = uid.UltrasoundMultiFrameImageStorage
    if regions:
        header.SequenceOfUltrasoundRegions = list(regions)
    for keyword, value in values.items():
        setattr(header, keyword, value)
    return header


def with_pixels(header: DicomHeader, frames: np.ndarray, **values: Any) -> DicomHeader:
    """Return the object whose header this is, as it is read from its file."""
    header.Rows, header.Columns = frames.shape[1:3]
    header.NumberOfFrames = len(frames)
    header.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
    header.BitsAllocated = 8 * frames.itemsize
    header.BitsStored = values.pop("bits", 8 * frames.itemsize)
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(frames.dtype.kind == "i")
    if frames.ndim == 4:
        header.PlanarConfiguration = 0
        header.PhotometricInterpretation = "RGB"
    for keyword, value in values.items():
        setattr(header, keyword, value)
    header.PixelData = frames.tobytes()
    header["PixelData"].VR = "OB" if frames.itemsize == 1 else "OW"
    return decode(encode(header))


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(5).integers(1, 100, shape).astype(dtype)


def test_region_is_kept_to_its_last_row_and_column() -> None:
    mask_HW = region_mask(ultrasound(region(TISSUE, 3, 2, 10, 8)))
    assert mask_HW.shape == (16, 24)
    assert mask_HW[2:9, 3:11].all()
    assert mask_HW.sum() == 7 * 8


@pytest.mark.parametrize("kind", [ECG, SPECTRUM, BAR, (2, 1), (1, 14)])
def test_traces_spectra_and_bars_are_hidden(kind: tuple[int, int]) -> None:
    picture = region(TISSUE, 0, 0, 23, 12)
    alone = region_mask(ultrasound(picture))
    mask_HW = region_mask(ultrasound(picture, region(kind, 0, 10, 23, 15)))
    assert not mask_HW[10:].any()
    assert alone[10:13].all()
    with pytest.raises(ScanError, match="no region of tissue"):
        region_mask(ultrasound(region(kind, 0, 0, 23, 12)))


def test_color_flow_is_a_picture() -> None:
    assert region_mask(ultrasound(region((1, 2), 1, 1, 5, 5))).sum() == 25


def test_region_one_pixel_beyond_the_image_is_cut() -> None:
    assert region_mask(ultrasound(region(TISSUE, 4, 4, 24, 16)))[4:, 4:].all()


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ((0, 0, 47, 31), "outside the image"),
        ((30, 2, 31, 8), "outside the image"),
        ((10, 2, 3, 8), "is empty"),
    ],
)
def test_region_that_says_nothing_of_the_image_is_refused(box: Any, why: str) -> None:
    with pytest.raises(ScanError, match=why):
        region_mask(ultrasound(region(TISSUE, *box)))


def test_damaged_or_missing_regions_are_refused() -> None:
    with pytest.raises(ScanError, match="damaged"):
        region_mask(ultrasound(item(RegionSpatialFormat=1)))
    with pytest.raises(ScanError, match="no region of tissue"):
        region_mask(ultrasound())
    with pytest.raises(ScanError, match="cover all tissue"):
        region_mask(ultrasound(region(TISSUE, 2, 2, 8, 8), region(ECG, 0, 0, 23, 15)))


@pytest.mark.parametrize("modality", ["US", "ES", "OT", "SC", "XC", "IVUS", "XA", ""])
def test_text_that_cannot_be_ruled_out_is_refused(modality: str) -> None:
    header = made_up_header(modality)
    with pytest.raises(ScanError, match="cannot be ruled out") as refusal:
        demand_clean_pixels(header)
    assert "--pixel-mask" in refusal.value.fix
    header.BurnedInAnnotation = "NO"  # a device may say so of an image with a name on it
    with pytest.raises(ScanError, match="cannot be ruled out"):
        demand_clean_pixels(header)
    mask_HW = np.eye(16, 24, dtype=bool)
    assert demand_clean_pixels(header, site_mask=mask_HW) is mask_HW


@pytest.mark.parametrize("modality", ["CR", "DX", "MR", "CT"])
def test_modalities_that_seldom_write_are_accepted(modality: str) -> None:
    assert demand_clean_pixels(made_up_header(modality)) is None


@pytest.mark.parametrize(
    "values",
    [
        {"SOPClassUID": uid.SecondaryCaptureImageStorage},
        {"SOPClassUID": uid.MultiFrameTrueColorSecondaryCaptureImageStorage},
        {"ConversionType": "WSD"},
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
    ],
)
def test_picture_of_a_screen_is_refused_in_every_modality(values: dict[str, Any]) -> None:
    header = made_up_header("MR")
    for keyword, value in values.items():
        setattr(header, keyword, value)
    with pytest.raises(ScanError, match="picture of a screen"):
        demand_clean_pixels(header)


def test_burned_in_text_needs_a_mask_that_hides_something() -> None:
    for header in (made_up_header("MR"), ultrasound(region(TISSUE, 0, 0, 23, 15))):
        header.BurnedInAnnotation = "YES"
        with pytest.raises(ScanError, match="text burned in"):
            demand_clean_pixels(header)
        with pytest.raises(ScanError, match="text burned in"):
            demand_clean_pixels(header, site_mask=np.ones((16, 24), dtype=bool))
        demand_clean_pixels(header, site_mask=np.eye(16, 24, dtype=bool))


def test_region_of_the_whole_image_is_taken_at_its_word() -> None:
    mask_HW = demand_clean_pixels(ultrasound(region(TISSUE, 0, 0, 23, 15)))
    assert mask_HW is not None
    assert mask_HW.all()


def test_mask_of_another_size_is_refused() -> None:
    for wrong in (np.ones((24, 16), dtype=bool), np.ones((16, 24), dtype=np.uint8)):
        with pytest.raises(ScanError, match="does not fit"):
            demand_clean_pixels(made_up_header(), site_mask=wrong)
        with pytest.raises(ScanError, match="does not fit"):
            apply_mask(noise(2, 16, 24), wrong)


@pytest.mark.parametrize("shape", [(3, 16, 24), (3, 16, 24, 3)])
def test_masked_frames_are_zero_outside_and_the_same_inside(shape: tuple[int, ...]) -> None:
    frames, mask_HW = noise(*shape), np.eye(16, 24, dtype=bool)
    before = frames.copy()
    masked = apply_mask(frames, mask_HW)
    assert (masked[:, ~mask_HW] == 0).all()
    assert (masked[:, mask_HW] == frames[:, mask_HW]).all()
    assert (frames == before).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_site_mask_keeps_what_is_not_black(tmp_path: Path, mode: str) -> None:
    gray = np.zeros((16, 24), dtype=np.uint8)
    gray[4:9, 5:20] = 255
    picture = Image.fromarray(gray)
    if mode == "I;16":
        picture = Image.fromarray(gray.astype(np.uint16) * 256)
    picture = picture.convert(mode) if mode != "I;16" else picture
    picture.save(tmp_path / "mask.png")
    assert (read_site_mask(tmp_path / "mask.png") == (gray > 0)).all()


def test_site_mask_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "Kranich.png"
    white = Image.new("L", (24, 16), 255)
    faults = {
        "cannot be read": lambda: None,
        "no PNG": lambda: white.save(path, "JPEG"),
        "hides everything": lambda: Image.new("L", (24, 16), 0).save(path),
        "transparent": lambda: Image.new("RGBA", (24, 16), (255,) * 4).save(path),
        "too large": lambda: path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0\1\0\0" * 2
        ),
    }
    for what, make in faults.items():
        make()
        with pytest.raises(ScanError, match=what) as refusal:
            read_site_mask(path)
        assert "Kranich" not in str(refusal.value)
    white.save(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ScanError, match="cannot be read"):
        read_site_mask(path)


def test_copy_is_masked_and_says_so() -> None:
    frames = noise(2, 16, 24, 3)
    frames[:, :2] = np.frombuffer(b"KRANICH^OTTO" * 12, np.uint8).reshape(2, 24, 3)
    source = with_pixels(ultrasound(region(TISSUE, 3, 2, 20, 14)), frames)
    assert b"KRANICH" in encode(source)
    saved = encode(deidentified_copy(source, key=KEY, subject="s"))
    assert b"KRANICH" not in saved
    copy = decode(saved)
    mask_HW = region_mask(source)
    assert (copy.pixel_array[:, ~mask_HW] == 0).all()
    assert (copy.pixel_array[:, mask_HW] == frames[:, mask_HW]).all()
    methods = [part.CodeValue for part in copy.DeidentificationMethodCodeSequence]
    assert (copy.BurnedInAnnotation, methods[-1]) == ("NO", "113101")


def test_copy_without_a_hidden_pixel_claims_nothing() -> None:
    for header in (made_up_header("MR"), ultrasound(region(TISSUE, 0, 0, 23, 15))):
        source = with_pixels(header, noise(1, 16, 24))
        copy = decode(encode(deidentified_copy(source, key=KEY, subject="s")))
        methods = [part.CodeValue for part in copy.DeidentificationMethodCodeSequence]
        assert "BurnedInAnnotation" not in copy
        assert "113101" not in methods
        assert (copy.pixel_array == source.pixel_array).all()


def test_copy_of_unmasked_ultrasound_is_refused() -> None:
    with pytest.raises(ScanError, match="cannot be ruled out"):
        deidentified_copy(with_pixels(ultrasound(), noise(1, 16, 24)), key=KEY, subject="s")


def test_compressed_stream_is_never_kept() -> None:
    picture, stream = Image.fromarray(noise(64, 64, 3)), io.BytesIO()
    picture.save(stream, "JPEG", quality=95, comment=b"KRANICH^OTTO")
    header = with_pixels(ultrasound(region(TISSUE, 8, 8, 55, 55)), noise(1, 64, 64, 3))
    header.PhotometricInterpretation = "YBR_FULL_422"
    header.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    header.PixelData = encapsulate([stream.getvalue()])
    header["PixelData"].is_undefined_length = True
    source = decode(encode(header))
    assert b"KRANICH" in encode(source)
    saved = encode(deidentified_copy(source, key=KEY, subject="s"))
    assert b"KRANICH" not in saved
    assert b"JFIF" not in saved
    copy = decode(saved)
    assert copy.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    assert copy.PhotometricInterpretation == "RGB"
    assert (copy.pixel_array[:8] == 0).all()  # black, not the green that 0 is in YBR
    seen = pydicom.pixels.pixel_array(source)[8:56, 8:56]
    assert (copy.pixel_array[8:56, 8:56] == seen).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_overlay_in_the_unused_bits_is_cleared(dtype: type) -> None:
    values = noise(1, 16, 24, dtype=dtype) - dtype(50) * (dtype is np.int16)
    hidden = (values & 0x0FFF | 0x5000).astype(dtype)
    source = with_pixels(made_up_header(), hidden, bits=12)
    copy = decode(encode(deidentified_copy(source, key=KEY, subject="s")))
    stored = np.frombuffer(copy.PixelData, dtype=dtype).reshape(values.shape)
    assert (stored == values).all()
    assert not (hidden == values).any()


def test_values_at_the_high_end_of_their_bits_are_moved_down() -> None:
    values = noise(1, 16, 24, dtype=np.uint16)
    source = with_pixels(made_up_header(), values << 4 | 0xA, bits=12, HighBit=15)
    copy = decode(encode(deidentified_copy(source, key=KEY, subject="s")))
    assert (copy.pixel_array == values[0]).all()
    assert copy.HighBit == 11
    source.HighBit = 9
    with pytest.raises(ScanError, match="cannot be decoded"):
        deidentified_copy(source, key=KEY, subject="s")


def test_palette_becomes_rgb() -> None:
    header = made_up_header()
    for color in ("Red", "Green", "Blue"):
        setattr(header, f"{color}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(header, f"{color}PaletteColorLookupTableData", bytes(range(255, -1, -1)))
    frames = noise(1, 16, 24)
    source = with_pixels(header, frames, PhotometricInterpretation="PALETTE COLOR")
    copy = decode(encode(deidentified_copy(source, key=KEY, subject="s")))
    assert (copy.pixel_array == 255 - frames[0][..., None]).all()
    assert "RedPaletteColorLookupTableData" not in copy


def test_damaged_pixels_are_refused_in_one_sentence() -> None:
    source = with_pixels(made_up_header(), noise(1, 16, 24))
    source.PixelData = source.PixelData[:40]
    with pytest.raises(ScanError, match="cannot be decoded"):
        deidentified_copy(source, key=KEY, subject="s")
    del source.PixelData
    with pytest.raises(ScanError, match="cannot be decoded"):
        deidentified_copy(source, key=KEY, subject="s")


def test_real_echo_was_resized_after_its_regions_and_needs_a_mask(
    root: Path, tmp_path: Path
) -> None:
    path = root.parent / "shared/data/dicom/us_echo_a4c_multiframe.dcm"
    if not path.is_file():
        pytest.skip("the public echo (us_echo_a4c_multiframe) is not on this machine")
    source = pydicom.dcmread(path)
    with pytest.raises(ScanError, match="outside the image"):
        deidentified_copy(source, key=KEY, subject="s")
    picture = Image.new("L", (320, 240), 0)
    ImageDraw.Draw(picture).rectangle((42, 15, 297, 207), fill=255)
    picture.save(tmp_path / "mask.png")
    mask_HW = read_site_mask(tmp_path / "mask.png")
    copy = decode(encode(deidentified_copy(source, key=KEY, subject="s", mask_HW=mask_HW)))
    before, after = pydicom.pixels.pixel_array(source), copy.pixel_array
    assert before[:, :12, :40].max() > 100  # the patient's name stands here
    assert before[:, 225:].max() > 50  # and the device's buttons here
    assert after[:, ~mask_HW].max() == 0
    assert (after[:, mask_HW] == before[:, mask_HW]).all()
