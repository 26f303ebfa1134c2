"""Picture files in and out: PNG, JPEG, TIFF and BMP to a gray Picture, a Picture to PNG.

Only gray values pass. EXIF, text, colour profiles and all else that a file says beside its pixels
are not carried on: the EXIF orientation is obeyed and forgotten, and the resolution of a picture
file, which is made for printing, is no spacing. No message holds a path or a value.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple, Self

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from vitrael.core.data.files import open_file
from vitrael.core.data.planar import Picture
from vitrael.core.digest import write_atomically
from vitrael.core.errors import ScanError

FORMATS: Final = ("PNG", "JPEG", "TIFF", "BMP")
MOST_BYTES = 1 << 30

_DEEP_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_LARGEST = {8: 255, 16: 65535}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""
_WHITE_IS_ZERO = 0
_SIGNED = 2
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What pillow raises over a damaged file, beside its own errors."""
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_picture_file(path: Path, *, modality: str = "OT") -> Picture:
    """Return the one picture of a file in gray, float32 in the file's own units, no spacing.

    Gray of 8, 16 or 32 bits and of float is kept as it is; color becomes luma (ITU-R 601) of 8
    bits; what is transparent is laid over black; where white is stored as 0, black becomes 0.
    Raises ScanError when the file is empty, none of the four formats, damaged or cut short; when
    it holds more than one picture; and when its header tells more pixels than pillow's limit
    against decompression bombs, before any is decoded. Raises OSError when the system cannot read
    the file.
    """
    with open_file(path) as (file, size_bytes):
        if size_bytes > MOST_BYTES:
            raise ScanError("the picture is far too large", fix="export it smaller")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd tags, which are not carried on
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image_HW = _read(file)
        except _BOMBS:
            raise ScanError(
                "the picture is far too large",
                why="its header tells more pixels than any picture has",
                fix="export it smaller",
            ) from None
        except _DAMAGE:
            raise ScanError(
                "the file is not a whole picture",
                why="it is damaged, cut short or of another kind",
                fix="export it again as PNG",
            ) from None
    return Picture(image_HW, None, modality)


def write_picture(
    picture: Picture,
    path: Path,
    *,
    window: tuple[float, float] | None = None,
    bits: Literal[8, 16] = 8,
) -> None:
    """Write a picture as gray PNG, atomically; equal pictures give equal bytes.

    ``window`` tells which values become black and white, by default the least and the largest.
    The file holds pixels alone. Raises ScanError for a name that does not end in ``.png`` and for
    a window that is not of two rising numbers.
    """
    if path.suffix != ".png":
        raise ScanError("the picture format is unknown", fix="write .png")
    image = picture.image_HW.astype(np.float64)
    low, high = window or (float(image.min()), float(image.max()))
    if not low < high:
        raise ScanError("the window of the picture is empty", fix="give two rising numbers")
    largest = _LARGEST[bits]
    steps = np.rint(np.clip((image - low) / (high - low), 0, 1) * largest)
    stored = steps.astype(np.uint8 if bits == 8 else np.uint16)  # noqa: PLR2004 - bits of a byte
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG")
    write_atomically(path, file.getvalue())


def _read(file: BinaryIO) -> np.ndarray:
    with Image.open(file, formats=FORMATS) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ScanError(
                "the file holds several pictures", fix="give one picture a file, or a video"
            )
        image.load()
        stored = _Stored.of(image)
        upright = ImageOps.exif_transpose(image)
        return _values(np.array(_gray(upright)), stored)


class _Stored(NamedTuple):
    """What a TIFF says of its numbers; pillow obeys it for few kinds of gray."""

    signed: bool
    inverted: bool
    """Whether white is 0, and pillow has not turned it."""
    bits: int

    @classmethod
    def of(cls, image: Image.Image) -> Self:
        """Return what holds of an image of any format."""
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        bits = int(tags.get(_BITS, (8,))[0])
        return cls(
            signed=tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED,
            inverted=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and image.mode in _DEEP_MODES,
            bits=bits,
        )


def _values(image_HW: np.ndarray, stored: _Stored) -> np.ndarray:
    """Return float32 as the file means it; refuse what cannot be told."""
    if stored.signed and image_HW.dtype == np.uint8:
        raise ScanError("the picture holds signed bytes", fix="export it again as PNG")
    if image_HW.dtype == np.int32 and stored.bits == 32 and not stored.signed:  # noqa: PLR2004
        image_HW = image_HW.view(np.uint32)
    if not stored.inverted:
        return image_HW.astype(np.float32)
    if image_HW.dtype != np.uint16:
        raise ScanError(
            "the picture is stored inverted", why="how is not clear for its kind of numbers",
            fix="export it again as PNG",
        )  # fmt: skip
    return (np.float32((1 << stored.bits) - 1) - image_HW).astype(np.float32)


def _gray(image: Image.Image) -> Image.Image:
    """Return an image of one channel; deep gray stays deep."""
    if image.mode in _DEEP_MODES or image.mode in {"L", "1"}:
        return image if image.mode != "1" else image.convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB").convert("L")
    gray = image.convert("RGBA").convert("LA")
    black = Image.new("L", image.size, 0)
    black.paste(gray.getchannel("L"), mask=gray.getchannel("A"))
    return black
