from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from pydicom.tag import Tag

from tests.factories.planted_dicom import item, made_up_header, raw_element
from tests.factories.ultrasound import BAR, ECG, SPECTRUM, TISSUE, noise, region, ultrasound
from vitrael.core.errors import ScanError
from vitrael.privacy.pixels import (
    apply_mask,
    demand_clean_pixels,
    read_site_mask,
    region_mask,
)


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


@pytest.mark.parametrize("kind", [TISSUE, ECG])
def test_region_of_any_kind_with_impossible_bounds_is_refused(kind: tuple[int, int]) -> None:
    whole = region(TISSUE, 0, 0, 23, 15)
    for minimum, maximum in (("X0", "X1"), ("Y0", "Y1")):
        for low, high, told in ((-3, 10, "begins outside"), (10, 3, "is empty")):
            other = region(kind, 0, 0, 5, 5)
            for name, bound in ((f"Min{minimum}", low), (f"Max{maximum}", high)):
                other[f"RegionLocation{name}"].VR = "SL"  # as some write it
                other[f"RegionLocation{name}"].value = bound
            with pytest.raises(ScanError, match=told):
                region_mask(ultrasound(whole, other))


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


@pytest.mark.parametrize(
    "sop_class",
    [
        uid.EncapsulatedPDFStorage,
        uid.BasicTextSRStorage,
        uid.SegmentationStorage,
        uid.UltrasoundImageStorage,
        uid.VLPhotographicImageStorage,
        "1.2.840.10008.5.1.4.1.1.4\\1.2.840.10008.5.1.4.1.1.4",
        "",
    ],
)
def test_object_of_another_class_than_its_modality_is_refused(sop_class: str) -> None:
    header = made_up_header("MR")
    header.SOPClassUID, header.BurnedInAnnotation = sop_class, "NO"
    header.file_meta.MediaStorageSOPClassUID = sop_class
    with pytest.raises(ScanError, match="its class often has text"):
        demand_clean_pixels(header)
    header.file_meta.MediaStorageSOPClassUID = uid.MRImageStorage
    if not sop_class:  # a file may say it in its preface alone
        assert demand_clean_pixels(header) is None


def test_regions_are_believed_of_an_ultrasound_alone() -> None:
    picture = region(TISSUE, 3, 2, 10, 8)
    for sop_class in (uid.MRImageStorage, uid.SecondaryCaptureImageStorage):
        with pytest.raises(ScanError, match="cannot be ruled out"):
            demand_clean_pixels(ultrasound(picture, SOPClassUID=sop_class))
    with pytest.raises(ScanError, match="picture of a screen"):
        demand_clean_pixels(ultrasound(picture, ImageType=["DERIVED", "PRIMARY", "SCREEN SAVE"]))
    assert demand_clean_pixels(ultrasound(picture)) is not None


@pytest.mark.parametrize(
    ("keyword", "value", "why"),
    [
        ("BurnedInAnnotation", b"yes ", "text burned in"),
        ("BurnedInAnnotation", b"YES\xa0", "text burned in"),
        ("BurnedInAnnotation", b"MAYBE ", "text burned in"),
        ("ImageType", b"DERIVED\\SCREEN SAVE\\\xdcbersicht", "picture of a screen"),
        ("ImageType", b"DERIVED\\SECONDARY\\ScreenSave ", "picture of a screen"),
        ("ImageType", b"ORIGINAL\\DOSE_INFO", "picture of a screen"),
        ("ConversionType", b"\xfc\xfc", "picture of a screen"),
        ("Modality", b"MR\xa0 ", "cannot be ruled out"),
        ("SOPClassUID", b"\xa0\xa0", "cannot be ruled out"),
    ],
)
def test_word_that_is_not_of_the_standard_is_no_excuse(
    keyword: str, value: bytes, why: str
) -> None:
    header = made_up_header("MR")
    assert demand_clean_pixels(header) is None
    header[keyword] = raw_element(Tag(keyword), "CS", value)
    with pytest.raises(ScanError, match=why):
        demand_clean_pixels(header)


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
