"""Every codec gives the pixels that it was given, and damage is refused and never spreads."""

from __future__ import annotations

import tracemalloc
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from tests.factories.dicom import (
    IDENTITY,
    code,
    edit_file,
    small_clip,
    small_scan,
    write_enhanced,
    write_series,
)
from vitrael.core.data.dicom.instance import from_record, is_dicom, read_instance, to_record
from vitrael.core.data.dicom.read import read_clip, read_picture, read_volume
from vitrael.core.data.dicom.write import write_dicom_clip
from vitrael.core.errors import ScanError

SHIPPED = Path(pydicom.__file__).parent / "data/test_files"


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("MR_small_RLE", "RLE"),
        ("MR_small_jpeg_ls_lossless", "JPEG-LS"),
        ("MR_small_jp2klossless", "JPEG 2000"),
        ("MR_small_bigendian", "none"),
        ("MR_small_implicit", "none"),
        ("693_J2KI", "JPEG 2000"),
        ("J2K_pixelrep_mismatch", "JPEG 2000"),
        ("SC_rgb_jpeg_gdcm", "JPEG lossless"),
        ("SC_rgb_jpeg_dcmtk", "JPEG"),
        ("SC_jpeg_no_color_transform", "JPEG"),
        ("SC_rgb_jpeg_app14_dcmd", "JPEG"),
        ("SC_rgb_rle_16bit", "RLE"),
        ("GDCMJ2K_TextGBR", "JPEG 2000"),
        ("SC_ybr_full_422_uncompressed", "none"),
        ("examples_overlay", "none"),
    ],
)
def test_a_codec_gives_what_pydicom_gives(name: str, codec: str) -> None:
    path = SHIPPED / f"{name}.dcm"
    header = dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = header.pixel_array.astype(float)
    if expected.ndim == 3:
        expected = expected @ [0.299, 0.587, 0.114]
    expected = expected * float(header.get("RescaleSlope", 1)) + float(
        header.get("RescaleIntercept", 0)
    )
    image_HW = read_picture(path).image_HW
    assert image_HW.shape == expected.shape
    # The luma of YBR colors is exact; that of their clipped RGB is up to 2 off.
    assert np.abs(image_HW - expected).max() <= (0 if header.SamplesPerPixel == 1 else 2)
    assert codec == "none" or read_instance(path, code=code)[0].stored.compressed


def made(folder: Path) -> dict[str, bytes]:
    """Return small whole files of every kind that is read."""
    scan = small_scan(shape=(36, 34, 2))
    files = {
        kind: write_series(folder / kind, scan, compression=kind)[0].read_bytes()
        for kind in ("none", "rle", "jpeg-ls", "jpeg-2000")
    }
    for kind in ("none", "jpeg"):
        path = folder / f"clip-{kind}"
        write_dicom_clip(
            small_clip(frames=2),
            path,
            identity=IDENTITY,
            seed=1,
            region=(0, 0, 31, 23),
            compression=kind,  # type: ignore[arg-type]
        )
        files[path.name] = path.read_bytes()
    slices = write_series(folder / "slices", scan)
    files["enhanced"] = write_enhanced(folder / "whole", slices).read_bytes()
    lossless = (SHIPPED / "SC_rgb_jpeg_gdcm.dcm").read_bytes()
    return files | {"jpeg-lossless": lossless}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return made(tmp_path_factory.mktemp("whole"))


Damage = list[tuple[float, int]]


def damaged(data: bytes, damage: Damage, *, keep_frac: float) -> bytes:
    """Return the bytes with some of them changed, and the end cut off."""
    broken = bytearray(data)
    for at_frac, value in damage:
        broken[int(at_frac * (len(broken) - 1))] = value
    return bytes(broken[: int(keep_frac * len(broken))])


KINDS = [
    *("none", "rle", "jpeg-ls", "jpeg-2000", "enhanced"),
    *("clip-none", "clip-jpeg", "jpeg-lossless"),
]


@settings(max_examples=300)
@given(
    kind=st.sampled_from(KINDS),
    damage=st.lists(
        st.tuples(
            st.floats(0, 1) | st.floats(0, 0.2), st.sampled_from([0, 255]) | st.integers(0, 255)
        ),
        max_size=12,
    ),
    keep_frac=st.just(1.0) | st.floats(0, 1),
)
def test_damage_gives_an_image_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory,
    whole: dict[str, bytes],
    kind: str,
    damage: Damage,
    keep_frac: float,
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged(whole[kind], damage, keep_frac=keep_frac))
    is_dicom(path)
    try:
        instance, _ = read_instance(path, code=code)
    except ScanError:
        return
    assert from_record(to_record(instance)) == instance
    stored = instance.stored
    assert stored.rows * stored.columns * stored.frames <= 512 << 20
    for read in (read_picture, read_clip, lambda path, _: read_volume([path])):
        with suppress(ScanError):
            read(path, instance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_undamaged_files_are_read(tmp_path: Path, whole: dict[str, bytes], kind: str) -> None:
    path = tmp_path / "whole"
    path.write_bytes(whole[kind])
    instance, _ = read_instance(path, code=code)
    if kind.startswith("clip"):
        assert read_clip(path, instance).frames_THW.shape == (2, 24, 32)
    elif kind == "enhanced":
        assert read_volume([path]).image_CDHW.shape == (1, 36, 34, 2)
    else:
        assert min(read_picture(path, instance).image_HW.shape) >= 34


@pytest.mark.parametrize("kind", ["none", "jpeg-2000", "rle"])
def test_a_size_that_the_file_cannot_hold_takes_no_memory(
    tmp_path: Path, whole: dict[str, bytes], kind: str
) -> None:
    path = tmp_path / "absurd"
    path.write_bytes(whole[kind])
    edit_file(path, lambda header: header.update({"Rows": 16000, "Columns": 16000}))
    tracemalloc.start()
    try:
        with pytest.raises(ScanError, match=r"cut short|cannot be decoded"):
            read_picture(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20
