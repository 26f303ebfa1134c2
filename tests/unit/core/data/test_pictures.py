"""A picture file gives its gray values and nothing else, or is refused in one sentence."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from vitrael.core.data.pictures import read_picture_file, write_picture
from vitrael.core.data.planar import Picture
from vitrael.core.errors import ScanError

SECRET = "Amendoeira"
ORIENTATION = 0x0112

RAMP = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read_bytes(data: bytes, folder: Path, suffix: str = ".png") -> Picture:
    path = folder / f"{SECRET}{suffix}"
    path.write_bytes(data)
    return read_picture_file(path)


def gray(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_gray_of_eight_bits_is_kept_exactly(tmp_path: Path, kind: str) -> None:
    values = (RAMP % 256).astype(np.uint8)
    picture = read_bytes(encode(gray(values), kind), tmp_path)
    assert picture.image_HW.dtype == np.float32
    assert np.array_equal(picture.image_HW, values)
    assert (picture.spacing_mm, picture.modality) == (None, "OT")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_gray_of_sixteen_bits_is_kept_exactly(tmp_path: Path, kind: str) -> None:
    values = RAMP * 80 + 7
    assert values.max() > 50_000
    assert np.array_equal(read_bytes(encode(gray(values), kind), tmp_path).image_HW, values)


def test_float_and_wide_integers_of_tiff_are_kept(tmp_path: Path) -> None:
    for values in (RAMP / np.float32(7) - 20, RAMP.astype(np.int32) * 90_000 - 5):
        data = encode(gray(values), "TIFF")
        assert np.allclose(read_bytes(data, tmp_path).image_HW, values, rtol=1e-6)
    broken = np.where(RAMP == 5, np.nan, RAMP).astype(np.float32)
    with pytest.raises(ScanError, match="not finite"):
        read_bytes(encode(gray(broken), "TIFF"), tmp_path)


def tiff(values: np.ndarray, *, photometric: int, sample_format: int = 1) -> bytes:
    """Return a plain TIFF; white is 0 where ``photometric`` is 0."""
    bits, data = 8 * values.dtype.itemsize, values.astype(values.dtype.newbyteorder("<")).tobytes()
    height, width = values.shape
    tags = [
        *((256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)),
        *((273, 4, 0), (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format)),
    ]
    place = 14 + 12 * len(tags)
    tags[5] = (273, 4, place)
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4) + data


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_in_which_white_is_zero_is_turned(tmp_path: Path, dtype: type) -> None:
    values = (RAMP % 256).astype(dtype) * (np.iinfo(dtype).max // 255)
    assert np.array_equal(read_bytes(tiff(values, photometric=1), tmp_path).image_HW, values)
    turned = read_bytes(tiff(values, photometric=0), tmp_path).image_HW
    assert np.array_equal(turned, float(np.iinfo(dtype).max) - values)


def test_tiff_whose_numbers_are_not_clear_is_refused(tmp_path: Path) -> None:
    real = RAMP.astype(np.float32)
    assert read_bytes(tiff(real, photometric=1, sample_format=3), tmp_path).image_HW.max() == 767
    with pytest.raises(ScanError, match="stored inverted"):
        read_bytes(tiff(real, photometric=0, sample_format=3), tmp_path)
    with pytest.raises(ScanError, match="signed bytes"):
        read_bytes(tiff((RAMP % 100).astype(np.int8), photometric=1, sample_format=2), tmp_path)


def test_large_numbers_without_a_sign_stay_large(tmp_path: Path) -> None:
    values = RAMP.astype(np.uint32) * 5_000_000
    assert values.max() > 1 << 31
    read = read_bytes(tiff(values, photometric=1), tmp_path).image_HW
    assert np.allclose(read, values, rtol=1e-6)
    signed = RAMP.astype(np.int32) * 2_000_000 - 700_000_000
    read = read_bytes(tiff(signed, photometric=1, sample_format=2), tmp_path).image_HW
    assert np.allclose(read, signed, rtol=1e-6)


def test_jpeg_is_close(tmp_path: Path) -> None:
    smooth = (127 + 120 * np.sin(np.arange(64) / 10))[None].repeat(48, 0).astype(np.uint8)
    picture = read_bytes(encode(gray(smooth), "JPEG", quality=95), tmp_path, ".jpg")
    assert np.abs(picture.image_HW - smooth).mean() < 2


def test_color_becomes_luma_and_equal_channels_stay_gray(tmp_path: Path) -> None:
    values = (RAMP % 256).astype(np.uint8)
    equal = encode(gray(np.stack([values] * 3, axis=-1)), "PNG")
    assert np.array_equal(read_bytes(equal, tmp_path).image_HW, values)
    red = np.zeros((16, 16, 3), dtype=np.uint8)
    red[:8, :, 0] = 200
    picture = read_bytes(encode(gray(red), "PNG"), tmp_path)
    assert picture.image_HW[0, 0] == pytest.approx(0.299 * 200, abs=1)
    assert picture.image_HW[15, 0] == 0


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_usual_mode_is_read(tmp_path: Path, mode: str) -> None:
    values = (RAMP % 256).astype(np.uint8)
    image = gray(np.stack([values] * 3, axis=-1)).convert(mode)
    picture = read_bytes(encode(image, "TIFF" if mode in {"CMYK", "YCbCr"} else "PNG"), tmp_path)
    assert picture.image_HW.shape == values.shape
    if mode != "1":
        assert np.corrcoef(picture.image_HW.ravel(), values.ravel())[0, 1] > 0.95


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    rgba = np.full((16, 16, 4), 180, dtype=np.uint8)
    rgba[..., 3] = 255
    rgba[:4, :, 3] = 0  # hidden, but still in the file
    palette = gray((RAMP % 4 * 60).astype(np.uint8)).convert("P")
    for image in (gray(rgba), gray(rgba).convert("LA")):
        picture = read_bytes(encode(image, "PNG"), tmp_path)
        assert not picture.image_HW[:4].any()
        assert (picture.image_HW[5:] == 180).all()
    data = encode(palette, "PNG", transparency=0)
    assert read_bytes(data, tmp_path).image_HW.min() == 0


def test_exif_turns_the_picture_and_is_forgotten(tmp_path: Path) -> None:
    values = (RAMP % 256).astype(np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # shown after a quarter turn to the right
    exif[0x010E] = SECRET
    data = encode(gray(values), "PNG", exif=exif)
    assert SECRET.encode() in data
    picture = read_bytes(data, tmp_path)
    assert np.array_equal(picture.image_HW, np.rot90(values, -1))
    write_picture(picture, tmp_path / "again.png")
    assert SECRET.encode() not in (tmp_path / "again.png").read_bytes()


def test_text_and_resolution_are_not_carried_on(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", SECRET)
    data = encode(gray((RAMP % 256).astype(np.uint8)), "PNG", pnginfo=text, dpi=(254, 254))
    picture = read_bytes(data, tmp_path)
    assert picture.spacing_mm is None
    write_picture(picture, tmp_path / "again.png")
    again = (tmp_path / "again.png").read_bytes()
    assert chunks(again) == {b"IHDR", b"IDAT", b"IEND"}
    assert {b"tEXt", b"pHYs"} <= chunks(data)  # control: the source has them


def chunks(data: bytes) -> set[bytes]:
    found, place = set(), 8
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        found.add(data[place + 4 : place + 8])
        place += size + 12
    return found


def test_several_pictures_in_one_file_are_refused(tmp_path: Path) -> None:
    frames = [gray((RAMP % 256 + shift).astype(np.uint8)) for shift in (0, 1)]
    for kind in ("PNG", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(ScanError, match="several pictures"):
            read_bytes(data, tmp_path)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * 4096)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("edge", [10_000, 40_000, 2_000_000])
def test_decompression_bomb_is_refused(tmp_path: Path, edge: int) -> None:
    with pytest.raises(ScanError, match="far too large"):
        read_bytes(bomb(edge, edge), tmp_path)
    with pytest.raises(ScanError, match="not a whole picture"):  # control: small, but cut short
        read_bytes(bomb(100, 100), tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_file_cut_short_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encode(gray(noise), kind)
    with pytest.raises(ScanError, match="not a whole picture"):
        read_bytes(data[: int(share * len(data))], tmp_path)


def test_empty_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="is empty"):
        read_bytes(b"", tmp_path)
    gif = encode(gray((RAMP % 256).astype(np.uint8)), "GIF")
    for data in (gif, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"no picture"):
        with pytest.raises(ScanError, match="not a whole picture"):
            read_bytes(data, tmp_path)


def test_refusal_tells_neither_path_nor_content(tmp_path: Path) -> None:
    with pytest.raises(ScanError) as caught:
        read_bytes(b"\x89PNG\r\n\x1a\n" + SECRET.encode() * 9, tmp_path)
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__}"


@pytest.mark.parametrize(("bits", "largest"), [(8, 255), (16, 65535)])
def test_written_picture_is_read_back(tmp_path: Path, bits: Any, largest: int) -> None:
    image = (RAMP / RAMP.max()).astype(np.float32)
    write_picture(Picture(image, None, "DX"), tmp_path / "one.png", window=(0, 1), bits=bits)
    write_picture(Picture(image, None, "DX"), tmp_path / "two.png", window=(0, 1), bits=bits)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    again = read_picture_file(tmp_path / "one.png").image_HW / largest
    assert np.abs(again - image).max() <= 0.51 / largest


def test_window_tells_black_and_white(tmp_path: Path) -> None:
    picture = Picture(RAMP.astype(np.float32), None, "DX")
    write_picture(picture, tmp_path / "part.png", window=(100, 200))
    part = read_picture_file(tmp_path / "part.png").image_HW.ravel()
    assert (part[:101] == 0).all()
    assert (part[200:] == 255).all()
    with pytest.raises(ScanError, match="window"):
        write_picture(picture, tmp_path / "none.png", window=(5, 5))
    with pytest.raises(ScanError, match="format is unknown"):
        write_picture(picture, tmp_path / "picture.jpg")


SMALL = gray((RAMP[:12, :16] % 256).astype(np.uint8))
WHOLE = {
    "PNG": encode(SMALL, "PNG"),
    "JPEG": encode(SMALL.convert("RGB"), "JPEG"),
    "TIFF": encode(SMALL, "TIFF", compression="tiff_lzw"),
    "TIFF 16": encode(gray(RAMP[:12, :16]), "TIFF"),
    "BMP": encode(SMALL.convert("P"), "BMP"),
}


@settings(max_examples=500, derandomize=True, deadline=None)
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    keep=st.floats(0, 1),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
)
def test_damaged_file_is_read_or_refused(
    kind: str, keep: float, edits: list[tuple[float, int]]
) -> None:
    data = bytearray(WHOLE[kind])
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    if keep > 0.3:  # else it keeps its length
        data = data[: int(keep * len(data))]
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            picture = read_picture_file(Path(file.name))
        except ScanError:
            return
        assert picture.image_HW.dtype == np.float32


def test_real_pictures_are_read(real_scans: Path) -> None:
    shared = real_scans.parent
    paths = [
        *sorted((shared / "cxr").glob("*.png"))[::30],
        *sorted((shared / "mednist").glob("*/*"))[::70],
    ]
    assert len(paths) > 8
    for path in paths:
        assert read_picture_file(path).image_HW.max() <= 255
