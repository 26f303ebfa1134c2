"""How the pixels of a DICOM file are stored; judged before a pixel is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vitrael.core.data.dicom.elements import (
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    UNDEFINED,
    Elements,
    Header,
)
from vitrael.core.data.planar import MOST_PIXELS
from vitrael.core.errors import ScanError

NATIVE: Final = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG})
"""Transfer syntaxes whose pixels are not compressed."""

_JPEG = "1.2.840.10008.1.2.4."
COMPRESSIONS: Final[Mapping[str, str]] = {
    _JPEG + "50": "JPEG",
    _JPEG + "51": "JPEG extended",
    _JPEG + "57": "JPEG lossless",
    _JPEG + "70": "JPEG lossless",
    _JPEG + "80": "JPEG-LS",
    _JPEG + "81": "JPEG-LS",
    _JPEG + "90": "JPEG 2000",
    _JPEG + "91": "JPEG 2000",
    _JPEG + "201": "HTJ2K",
    _JPEG + "202": "HTJ2K",
    _JPEG + "203": "HTJ2K",
    "1.2.840.10008.1.2.5": "RLE",
}
"""Those that can be decoded."""

_UNDECODED: Final[Mapping[str, str]] = {
    _JPEG + "92": "JPEG 2000 multi-component",
    _JPEG + "93": "JPEG 2000 multi-component",
    _JPEG + "94": "JPIP",
    _JPEG + "95": "JPIP",
    _JPEG + "100": "MPEG-2",
    _JPEG + "101": "MPEG-2",
    _JPEG + "102": "MPEG-4",
    _JPEG + "103": "MPEG-4",
    _JPEG + "104": "MPEG-4",
    _JPEG + "105": "MPEG-4",
    _JPEG + "106": "MPEG-4",
    _JPEG + "107": "HEVC",
    _JPEG + "108": "HEVC",
    _JPEG + "110": "JPEG XL",
    _JPEG + "111": "JPEG XL",
    _JPEG + "112": "JPEG XL",
}

GRAY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
PALETTE: Final = "PALETTE COLOR"
_COLOR: Final = frozenset(
    {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT"}
)
_KNOWN: Final = GRAY | _COLOR | {PALETTE}
_KNOWN_NATIVE: Final = GRAY | {PALETTE, "RGB", "YBR_FULL", "YBR_FULL_422"}
_BITS: Final = (8, 16, 32)
_SLACK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the pixels of a file lie and how they are written; see PS3.3, C.7.6.3."""

    rows: int
    columns: int
    frames: int
    samples: int
    """1, or 3 for colors."""
    photometric: str
    planar: bool
    """Whether the three colors lie one plane after the other."""
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    syntax: str
    """UID of the transfer syntax."""
    offset: int
    """Of the first byte of the pixels in the file."""
    length: int
    """In bytes; of compressed pixels with all that frames them."""
    file_bytes: int

    @property
    def compressed(self) -> bool:
        """Whether a codec is needed."""
        return self.syntax not in NATIVE

    @property
    def frame_bytes(self) -> int:
        """Of one frame that is not compressed."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.bits_allocated // 8


def stored_of(header: Header) -> Stored:
    """Return how a file's pixels are stored.

    Raises ScanError when there are none, when their size is absurd or more than the file holds,
    when their colors and bits do not fit together, and when they cannot be decoded here.
    """
    elements, place = header.elements, header.pixels
    rows, columns = elements.integer("Rows"), elements.integer("Columns")
    if place is None or place.offset >= header.file_bytes or place.length == 0:
        raise ScanError("it has no pixel data", fix="export the image with its pixels")
    if not place.whole:
        raise ScanError("its pixels are not whole numbers", why="they are not read here")
    frames = elements.whole("NumberOfFrames") if elements.text("NumberOfFrames") else 1
    samples = elements.integer("SamplesPerPixel") or 1
    if not rows or not columns or frames is None or frames < 1:
        raise ScanError("the header gives no image size", fix="export the file again")
    if rows * columns * frames * samples > MOST_PIXELS:
        raise ScanError(
            "the header gives an absurd image size",
            why=f"at most {MOST_PIXELS:,} pixels are read",
            fix="check the file's header",
        )
    _check_syntax(header.syntax)
    allocated = elements.integer("BitsAllocated") or 0
    bits = elements.integer("BitsStored") or allocated
    high = elements.integer("HighBit")
    stored = Stored(
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        photometric=_photometric(elements, samples=samples),
        planar=elements.integer("PlanarConfiguration") == 1,
        bits_allocated=allocated,
        bits_stored=bits,
        high_bit=bits - 1 if high is None else high,
        signed=elements.integer("PixelRepresentation") == 1,
        syntax=header.syntax,
        offset=place.offset,
        length=min(place.length, header.file_bytes - place.offset),
        file_bytes=header.file_bytes,
    )
    _check_bits(stored)
    _check_length(stored, told=place.length)
    return stored


def _check_syntax(syntax: str) -> None:
    if syntax in NATIVE or syntax in COMPRESSIONS:
        return
    name = _UNDECODED.get(syntax, "unknown")
    raise ScanError(
        f"its compression ({name}) cannot be decoded here", fix="export it without compression"
    )


def _photometric(elements: Elements, *, samples: int) -> str:
    word = elements.text("PhotometricInterpretation").upper()
    if word not in _KNOWN:
        raise ScanError("its colors are of an unknown kind", fix="export it as gray or RGB")
    if samples != (3 if word in _COLOR else 1):
        raise ScanError(
            "its colors do not fit its samples", why="the header contradicts itself about them"
        )
    return word


def _check_bits(stored: Stored) -> None:
    fits = 1 <= stored.bits_stored <= stored.high_bit + 1 <= stored.bits_allocated
    if stored.bits_allocated not in _BITS or not fits:
        raise ScanError("its bits for a pixel are not read here", why="8, 16 and 32 are")
    if stored.photometric not in GRAY and stored.bits_allocated > 16:  # noqa: PLR2004
        raise ScanError("its bits for a color are not read here", why="8 and 16 are")


def _check_length(stored: Stored, *, told: int) -> None:
    """Refuse pixels that the file cannot hold, and compressed ones that can be no image."""
    needed = stored.frame_bytes * stored.frames
    if not stored.compressed:
        if stored.photometric not in _KNOWN_NATIVE:
            raise ScanError("its colors are of an unknown kind", fix="export it as gray or RGB")
        if told == UNDEFINED:
            raise ScanError("its pixel data is damaged", fix="export the file again")
        if stored.length < needed:
            raise ScanError("its pixel data is cut short", fix="copy the file again")
        halved = stored.photometric == "YBR_FULL_422"  # colors of two pixels are stored once
        if halved and (stored.columns % 2 or stored.length >= needed // 2 * 3):
            raise ScanError("its colors do not fit its size", fix="export it as gray or RGB")
        return
    if told != UNDEFINED:
        raise ScanError("its pixel data is damaged", why="compressed pixels come in parts")
    raw = stored.rows * stored.columns * stored.frames * stored.samples * stored.bits_allocated // 8
    if stored.length < 8 * stored.frames or stored.length > 2 * raw + _SLACK_BYTES:
        raise ScanError("its pixel data does not fit its size", fix="export the file again")
