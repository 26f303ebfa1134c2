"""The stored pixels of a DICOM file as arrays: native ones at the speed of a read, others by codec.

Codecs are pydicom's decoders, told which library to use, kept silent, and never shown a code
stream whose own size differs from the header's. Axes: T frames, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder

from vitrael.core.data.dicom.elements import EXPLICIT_BIG
from vitrael.core.data.dicom.quiet import quiet
from vitrael.core.data.dicom.stored import COMPRESSIONS, Stored
from vitrael.core.data.files import without_path
from vitrael.core.errors import ScanError

_LIBRARIES: Final = {
    "JPEG": "pillow",
    "JPEG extended": "pillow",
    "JPEG lossless": "gdcm",
    "JPEG-LS": "pyjpegls",
    "JPEG 2000": "pylibjpeg",
    "HTJ2K": "pylibjpeg",
    "RLE": "pydicom",
}
"""Which library decodes what, where it is installed; else any that pydicom finds."""

_DAMAGE: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
_START_OF_FRAME: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_START_OF_SCAN: Final = 0xDA
_ADOBE: Final = 0xEE
_SEGMENTS: Final = _START_OF_FRAME | {0xC4, 0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0), 0xDA}
"""Of a JPEG or JPEG-LS stream, before its first scan."""
_RLE_MOST_RATIO: Final = 64
"""Two bytes stand for 128 at most (PS3.5, G.3.1)."""
_FRAMING: Final = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
"""An empty table of offsets (PS3.5, A.4)."""
_BLOCK_BYTES: Final = 1 << 20


@contextmanager
def opened(path: Path, stored: Stored) -> Iterator[FileIO]:
    """Give a file that is still as it was when its header was read; unbuffered.

    Raises ScanError when it is not; OSError, without the path, when the system cannot give it.
    """
    try:
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != stored.file_bytes:
                raise ScanError("the file has changed since its header was read", fix="try again")
            yield file
    except OSError as error:
        raise without_path(error) from None


def digest_pixels(path: Path, stored: Stored) -> str:
    """Return a digest of the pixels as they are stored: equal for exact copies of an image."""
    state = hashlib.sha256(repr((stored.rows, stored.columns, stored.syntax)).encode())
    with opened(path, stored) as file:
        file.seek(stored.offset)
        left = stored.length
        while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
            state.update(block)
            left -= len(block)
    return state.hexdigest()


def dtype_of(stored: Stored) -> np.dtype[Any]:
    """Return the type of the stored numbers."""
    order = ">" if stored.syntax == EXPLICIT_BIG else "<"
    return np.dtype(f"{order}{'i' if stored.signed else 'u'}{stored.bits_allocated // 8}")


def read_gray_frames(path: Path, stored: Stored, *, out_THW: np.ndarray) -> None:
    """Fill ``out_THW`` with the stored values of an image of one sample a pixel.

    The array has the type of ``dtype_of``, or one that holds it. Raises ScanError when the
    pixels are cut short, damaged or cannot be decoded.
    """
    if stored.compressed:
        for frame, (pixels, _) in enumerate(_decoded(path, stored)):
            out_THW[frame] = pixels
        return
    kind = dtype_of(stored)
    direct = out_THW.dtype == kind and out_THW.flags.c_contiguous
    target = out_THW if direct else np.empty(out_THW.shape, kind)
    with opened(path, stored) as file:
        file.seek(stored.offset)
        _fill(file, target)
    without_unused_bits(target, stored)
    if not direct:
        out_THW[...] = target


def read_color_frames(path: Path, stored: Stored) -> Iterator[tuple[np.ndarray, str]]:
    """Yield frames ``[H, W]`` or ``[H, W, 3]`` with their colors: RGB, YBR_FULL, or as stored.

    Of native YBR_FULL_422, which stores two colors for each two pixels, the gray alone is given.
    """
    if stored.compressed:
        yield from _decoded(path, stored)
        return
    size = stored.rows, stored.columns
    with opened(path, stored) as file:
        file.seek(stored.offset)
        for _ in range(stored.frames):
            flat = np.empty(stored.frame_bytes * 8 // stored.bits_allocated, dtype_of(stored))
            _fill(file, flat)
            without_unused_bits(flat, stored)
            if stored.photometric == "YBR_FULL_422":
                pairs = flat.reshape(-1, 4)[:, :2]  # Y1 Y2 Cb Cr, PS3.3, C.7.6.3.1.2
                yield pairs.reshape(size), "GRAY"
            elif stored.samples == 1:
                yield flat.reshape(size), stored.photometric
            elif stored.planar:
                yield np.moveaxis(flat.reshape(3, *size), 0, -1), stored.photometric
            else:
                yield flat.reshape(*size, 3), stored.photometric


def without_unused_bits(values: np.ndarray, stored: Stored) -> None:
    """Clear in place the bits around the stored ones; the sign of signed numbers is kept."""
    if stored.bits_stored == stored.bits_allocated:
        return
    above = stored.bits_allocated - 1 - stored.high_bit
    below = stored.high_bit + 1 - stored.bits_stored
    if not stored.signed and below == 0:
        values &= values.dtype.type((1 << stored.bits_stored) - 1)
        return
    np.left_shift(values, above, out=values)
    np.right_shift(values, above + below, out=values)


def _fill(file: FileIO, target: np.ndarray) -> None:
    view = target.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise ScanError("its pixel data is cut short", fix="copy the file again")
        done += count


def _decoded(path: Path, stored: Stored) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the decoded frames and their colors; raises ScanError when there are too few."""
    name = COMPRESSIONS[stored.syntax]
    with opened(path, stored) as file:
        file.seek(stored.offset)
        data = file.read(stored.length)
    with _codec(name):
        decoder = get_decoder(stored.syntax)
        plugins = decoder.available_plugins
        frames = generate_frames(data, number_of_frames=stored.frames)
    library = _LIBRARIES[name] if _LIBRARIES[name] in plugins else ""
    for _ in range(stored.frames):
        with _codec(name):
            stream = next(frames, None)
            if stream is None:
                raise ScanError("its pixel data is cut short", fix="copy the file again")
            adobe = _check_stream(stream, stored, name=name)
            framed = _FRAMING + struct.pack("<HHI", 0xFFFE, 0xE000, len(stream)) + stream
            decoded = decoder.iter_array(
                framed,
                raw=True,
                decoding_plugin=library,
                rows=stored.rows,
                columns=stored.columns,
                number_of_frames=1,
                samples_per_pixel=stored.samples,
                photometric_interpretation=stored.photometric,
                planar_configuration=int(stored.planar),
                bits_allocated=stored.bits_allocated,
                bits_stored=stored.bits_stored,
                pixel_representation=int(stored.signed),
                pixel_keyword="PixelData",
            )
            pixels, told = next(decoded)
        yield pixels, "RGB" if adobe else str(told["photometric_interpretation"])


@contextmanager
def _codec(name: str) -> Iterator[None]:
    """Run a codec in silence; what it raises becomes a ScanError."""
    try:
        with quiet():
            yield
    except _DAMAGE:
        raise ScanError(
            f"its compression ({name}) cannot be decoded here",
            why="it is damaged or of a rare kind",
            fix="export it without compression",
        ) from None


def _check_stream(stream: bytes, stored: Stored, *, name: str) -> bool:
    """Raise ValueError unless a code stream has the size that the header tells and is well formed.

    Codecs may hang, abort or take memory without end when it is not. Returns whether it is a JPEG
    with Adobe's marker, which the decoder turns into RGB itself.
    """
    if name == "RLE":
        planes = stored.samples * stored.bits_allocated // 8
        raw = stored.rows * stored.columns * planes
        if stream[:4] != planes.to_bytes(4, "little") or raw > _RLE_MOST_RATIO * len(stream):
            raise ValueError
        return False
    if name in ("JPEG 2000", "HTJ2K"):
        size, bits, adobe = _size_of_j2k(stream), stored.bits_allocated, False
    else:
        size, bits, adobe = _size_of_jpeg(stream)
    if size != (stored.rows, stored.columns, stored.samples) or bits > stored.bits_allocated:
        raise ValueError
    return adobe and name == "JPEG"


def _size_of_jpeg(stream: bytes) -> tuple[tuple[int, int, int], int, bool]:
    """Return rows, columns and components of a JPEG or JPEG-LS stream, its bits, and Adobe's mark.

    Every segment up to the first scan must be one of the standard's, one after the other, and the
    stream must have its end (ITU-T T.81, B.1 and B.2).
    """
    size, bits, adobe, at = None, 0, False, 2
    if stream[:2] != b"\xff\xd8" or not stream.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ValueError
    while True:
        mark, kind, length = struct.unpack_from(">BBH", stream, at)
        if mark != 0xFF or kind not in _SEGMENTS or length < 2:  # noqa: PLR2004 - counts itself
            raise ValueError
        if kind in _START_OF_FRAME:
            if size is not None:
                raise ValueError
            bits, rows, columns, components = struct.unpack_from(">BHHB", stream, at + 4)
            size = (rows, columns, components)
        elif kind == _ADOBE and length >= 14 and stream[at + 4 : at + 9] == b"Adobe":  # noqa: PLR2004
            adobe = True
            if stream[at + 15] > 2:  # noqa: PLR2004 - no transform, YCbCr, YCCK
                raise ValueError
        elif kind == _START_OF_SCAN:
            if size is None:
                raise ValueError
            return size, bits, adobe
        at += 2 + length


def _size_of_j2k(stream: bytes) -> tuple[int, int, int]:
    """Return rows, columns and components of a JPEG 2000 stream (ITU-T T.800, A.5.1)."""
    at = 0
    if stream[4:8] == b"jP  ":  # boxes around the stream; one of no length would never end
        while stream[at + 4 : at + 8] != b"jp2c":
            (length,) = struct.unpack_from(">I", stream, at)
            if length < 8:  # noqa: PLR2004 - the length counts itself and the name
                raise ValueError
            at += length
        at += 8
    start, size, _, _, right, bottom, left, top = struct.unpack_from(">HHHHIIII", stream, at)
    if (start, size) != (0xFF4F, 0xFF51):
        raise ValueError
    (components,) = struct.unpack_from(">H", stream, at + 40)
    return bottom - top, right - left, components
