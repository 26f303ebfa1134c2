"""Whole objects: what stands in the pixels of a copy, and what its header says of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom import uid
from pydicom.dataset import Dataset as DicomHeader
from pydicom.encaps import encapsulate

from tests.factories.planted_dicom import decode, encode, made_up_header
from tests.factories.ultrasound import TISSUE, noise, region, ultrasound, with_pixels
from vitrael.core.errors import ScanError
from vitrael.privacy.deidentify import deidentified_copy
from vitrael.privacy.pixels import read_site_mask, region_mask

KEY = bytes(range(32))


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


def test_overlay_in_the_unused_bits_of_a_palette_image_is_cleared() -> None:
    header = made_up_header()
    for color in ("Red", "Green", "Blue"):
        setattr(header, f"{color}PaletteColorLookupTableDescriptor", [16, 0, 8])
        setattr(header, f"{color}PaletteColorLookupTableData", bytes(range(16)))
    values = noise(1, 16, 24) & 0x0F
    source = with_pixels(header, values | 0x50, bits=4, PhotometricInterpretation="PALETTE COLOR")
    copy = decode(encode(deidentified_copy(source, key=KEY, subject="s")))
    assert (copy.pixel_array == values[0][..., None]).all()


@pytest.mark.filterwarnings("ignore:The pixel data is")
def test_bytes_after_the_last_frame_are_left_out() -> None:
    source = with_pixels(made_up_header(), noise(2, 16, 24, dtype=np.uint16), bits=12)
    source.PixelData += b"KRANICH^OTTO"
    source = decode(encode(source))
    assert b"KRANICH" in encode(source)
    copy = deidentified_copy(source, key=KEY, subject="s")
    assert b"KRANICH" not in encode(copy)
    assert len(copy.PixelData) == 2 * 16 * 24 * 2


def test_every_frame_of_a_compressed_clip_is_masked() -> None:
    """The frames lie plane by plane and compressed; a name stands in the last one alone."""
    frames = noise(3, 16, 24, 3)
    frames[-1, :2] = np.frombuffer(b"KRANICH^OTTO" * 12, np.uint8).reshape(2, 24, 3)
    source = with_pixels(ultrasound(region(TISSUE, 3, 2, 20, 14)), frames)
    source.compress(uid.RLELossless, generate_instance_uid=False)
    source = decode(encode(source))
    copy = decode(encode(deidentified_copy(source, key=KEY, subject="s")))
    mask_HW = region_mask(source)
    assert not copy.pixel_array[:, ~mask_HW].any()
    assert (copy.pixel_array[:, mask_HW] == frames[:, mask_HW]).all()
    assert (copy.NumberOfFrames, copy.PlanarConfiguration) == (3, 0)


@pytest.mark.parametrize("is_implicit", [False, True])
def test_file_without_a_preface_is_copied(is_implicit: bool) -> None:  # noqa: FBT001
    whole = with_pixels(made_up_header(), noise(1, 16, 24, dtype=np.uint16), bits=12)
    bare = io.BytesIO()
    DicomHeader(dict(whole.items())).save_as(bare, implicit_vr=is_implicit, little_endian=True)
    source = pydicom.dcmread(io.BytesIO(bare.getvalue()), force=True)
    assert "TransferSyntaxUID" not in source.file_meta
    copy = decode(encode(deidentified_copy(source, key=KEY, subject="s")))
    assert (copy.pixel_array == whole.pixel_array).all()
    source.file_meta.TransferSyntaxUID = "1.2.3.4"
    with pytest.raises(ScanError, match="cannot be decoded"):
        deidentified_copy(source, key=KEY, subject="s")


def test_size_that_no_memory_holds_is_refused_before_decoding() -> None:
    source = with_pixels(made_up_header(), noise(1, 16, 24, dtype=np.uint16))
    source.Rows = source.Columns = 65535
    source.NumberOfFrames = 1000
    for syntax in (uid.ExplicitVRLittleEndian, uid.JPEGBaseline8Bit):
        source.file_meta.TransferSyntaxUID = syntax
        with pytest.raises(ScanError, match="absurd image size"):
            deidentified_copy(source, key=KEY, subject="s")


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", ["", None])
def test_object_that_does_not_say_which_it_is_is_refused(keyword: str, value: str | None) -> None:
    source = with_pixels(made_up_header(), noise(1, 16, 24, dtype=np.uint16))
    setattr(source, keyword, value)
    with pytest.raises(ScanError, match="names no class of the standard, or no identifier"):
        deidentified_copy(source, key=KEY, subject="s")


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
