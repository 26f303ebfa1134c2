"""Marks that a machine burns into a picture, outside the cone: text, bars, rulers, traces, logos.

They say which site or class a picture is of without showing any of its anatomy: how much, ``rho``
decides. Text stands in a 5x7 font drawn for this purpose, so that it can be searched for without
reading it. Axes: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from vitrael.core.errors import DataError
from vitrael.core.rng import stream

CueKind = Literal["text", "bar", "ruler", "trace", "logo"]
Corner = Literal["top-left", "top-right", "bottom-left", "bottom-right"]
CORNERS: tuple[Corner, ...] = ("top-left", "top-right", "bottom-left", "bottom-right")

_GLYPH_PX = (7, 5)
_BRIGHT, _LOGO_GRAY, _RULER_GRAY, _TRACE_GRAY = 230, 200, 170, 210
_TICK_MM, _BAR_MM = 10.0, 50.0
_LOGO_PX, _LOGO_FULLNESS = (12, 10), 0.55
_BEAT = (0, 0, 1, 1, 0, 0, -1, 7, -2, 0, 0, 1, 2, 2, 1, 0, 0, 0, 0, 0)
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-./ "
# For each letter seven rows of five bits, written as digits of base 32.
_ROWS = (
    "EHJLPHE 4C4444E EH1248V V2421HE 26AIV22 VGU11HE 68GUHHE V124888 EHHEHHE EHHF12C EHHVHHH "
    "UHHUHHU EHGGGHE SIHHHIS VGGUGGV VGGUGGG EHGNHHF HHHVHHH E44444E 72222IC HIKOKIH GGGGGGV "
    "HRLLHHH HHPLJHH EHHHHHE UHHUGGG EHHHLID UHHUKIH FGGE11U V444444 HHHHHHE HHHHHA4 HHHLLLA "
    "HHA4AHH HHHA444 V1248GV 000V000 00000CC 01248G0 0000000 "
)
_FONT = dict(zip(_LETTERS, _ROWS.split(), strict=True))


@dataclass(frozen=True, slots=True, repr=False)
class Cue:
    """One mark: what it is, where it stands, and which of its forms it has."""

    kind: CueKind
    corner: Corner
    variant: int = 0
    """Of a logo: which one. Of a bar: its length, 50 mm and 10 mm more for each step."""
    text: str = ""

    def __repr__(self) -> str:
        """Show kind and corner; a text may name a patient."""
        return f"Cue({self.kind}, {self.corner})"


def draw_variant(rng: np.random.Generator, own: int, *, count: int, rho: float) -> int:
    """Return the variant of one's own class with probability ``rho``, and any of them otherwise.

    With ``rho`` 0 the variant says nothing of the class; with 1 it says all. Raises DataError for
    ``rho`` outside [0, 1] and for a class that is none of ``count``.
    """
    if not (0 <= rho <= 1 and 0 <= own < count):
        raise DataError("the cue has no such class or strength", fix="0 <= rho <= 1, own < count")
    follows, other = rng.uniform() < rho, int(rng.integers(count))
    return own if follows else other


def conflicting_variant(rng: np.random.Generator, own: int, *, count: int) -> int:
    """Return the variant of another class: whoever trusts the cue is always wrong."""
    if not 0 <= own < count or count <= 1:
        raise DataError("there is no other class to point at", fix="own < count, 2 <= count")
    return (own + int(rng.integers(1, count))) % count


def text_bitmap(text: str, *, scale: int = 1) -> np.ndarray:
    """Return the text in one line, bool ``[7 scale, (6 n - 1) scale]``; small letters as capitals.

    Raises DataError for an empty text and for a sign that the font lacks: A-Z 0-9 - . / space.
    """
    if not text or not set(text.upper()) <= _FONT.keys():
        raise DataError("the text cannot be drawn", fix="use letters, digits, - . / and spaces")
    bits = np.zeros((_GLYPH_PX[0], 6 * len(text)), dtype=bool)
    for place, letter in enumerate(text.upper()):
        rows = np.array([int(digit, 32) for digit in _FONT[letter]])
        bits[:, 6 * place : 6 * place + 5] = (rows[:, None] >> np.arange(4, -1, -1)) & 1
    return bits[:, :-1].repeat(scale, axis=0).repeat(scale, axis=1)


def draw_cues(
    cues: Sequence[Cue], *, sector_HW: np.ndarray, spacing_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the marks as gray ``[H, W]`` uint8 and the pixels they cover ``[H, W]`` bool.

    No pixel of the cone is covered: what reaches into it is cut. A text stands clear of the other
    marks. Raises DataError for a text that does not fit beside the cone.
    """
    gray_HW = np.zeros(sector_HW.shape, np.uint8)
    for cue in sorted(cues, key=lambda cue: cue.kind == "text"):
        if cue.kind == "text":
            bits_HW, gray = _text(cue, sector_HW), _BRIGHT
            gray_HW[ndimage.binary_dilation(bits_HW, np.ones((3, 3)), iterations=2)] = 0
        elif cue.kind == "logo":
            bits_HW, gray = _place(_logo(cue.variant), cue.corner, sector_HW.shape), _LOGO_GRAY
        elif cue.kind == "bar":
            bits_HW, gray = _bar(cue, sector_HW.shape, spacing_mm), _BRIGHT
        elif cue.kind == "ruler":
            bits_HW, gray = _ruler(cue, sector_HW.shape, spacing_mm), _RULER_GRAY
        else:
            bits_HW, gray = _trace(cue, sector_HW.shape), _TRACE_GRAY
        gray_HW[bits_HW & ~sector_HW] = gray
    return gray_HW, gray_HW > 0


def _flip(bits_HW: np.ndarray, corner: Corner) -> np.ndarray:
    """Turn a picture whose marks stand top left into one where they stand at the corner."""
    rows = -1 if corner.startswith("bottom") else 1
    return bits_HW[::rows, :: -1 if corner.endswith("right") else 1]


def _place(bits: np.ndarray, corner: Corner, shape: tuple[int, ...]) -> np.ndarray:
    """Return a picture with the bits two pixels away from the corner, as they read."""
    picture = np.zeros(shape, dtype=bool)
    room = picture[2 : 2 + bits.shape[0], 2 : 2 + bits.shape[1]]
    room[:] = _flip(bits, corner)[: room.shape[0], : room.shape[1]]
    return _flip(picture, corner)


def _text(cue: Cue, sector_HW: np.ndarray) -> np.ndarray:
    """Write lines from the corner inward, each as long as the cone leaves room for."""
    scale = max(1, sector_HW.shape[0] // 160)
    height, width = 8 * scale, 6 * scale
    blocked = _flip(sector_HW, cue.corner)
    picture = np.zeros(sector_HW.shape, dtype=bool)
    left, lines = cue.text, []
    for top in range(2, sector_HW.shape[0] // 2 - height, height):
        taken = np.flatnonzero(blocked[top : top + height].any(axis=0))
        room = (int(taken[0]) if len(taken) else sector_HW.shape[1]) - 3
        fits = min(max(room // width, 0), len(left))
        lines.append((top, left[:fits]))
        left = left[fits:]
        if not left:
            break
    if left or not cue.text:
        raise DataError("the text does not fit beside the cone", fix="use fewer letters")
    rising = cue.corner.startswith("bottom")
    words = [text for _, text in lines if text]
    tops = [top for top, text in lines if text]
    for top, text in zip(tops, words[::-1] if rising else words, strict=True):
        bits = text_bitmap(text, scale=scale)
        room = picture[top : top + bits.shape[0], 2 : 2 + bits.shape[1]]
        room[:] = _flip(bits, cue.corner)[: room.shape[0], : room.shape[1]]
    return _flip(picture, cue.corner)


def _logo(variant: int) -> np.ndarray:
    bits = (
        stream(0, "logo", variant).uniform(size=(_LOGO_PX[0] // 2, _LOGO_PX[1] // 2))
        < _LOGO_FULLNESS
    )
    return bits.repeat(2, axis=0).repeat(2, axis=1)


def _bar(cue: Cue, shape: tuple[int, ...], spacing_mm: tuple[float, float]) -> np.ndarray:
    length = round((_BAR_MM + 10 * cue.variant) / spacing_mm[0])
    bits = np.zeros((min(length, shape[0] - 4), 5), dtype=bool)
    bits[:, 2], bits[[0, -1], :] = True, True
    return _place(bits, cue.corner, shape)


def _ruler(cue: Cue, shape: tuple[int, ...], spacing_mm: tuple[float, float]) -> np.ndarray:
    """Return ticks each 10 mm along the whole side, every fifth one longer."""
    picture = np.zeros(shape, dtype=bool)
    ticks = np.arange(0, (shape[0] - 4) * spacing_mm[0], _TICK_MM) / spacing_mm[0]
    for number, row in enumerate(np.round(ticks).astype(int) + 2):
        picture[row, 1 : 5 if number % 5 == 0 else 3] = True
    return _flip(picture, cue.corner)


def _trace(cue: Cue, shape: tuple[int, ...]) -> np.ndarray:
    """Return an electrocardiogram over four tenths of the width."""
    bits = np.zeros((10, round(0.4 * shape[1])), dtype=bool)
    beat = np.array(_BEAT)
    height = np.interp(np.arange(bits.shape[1]) % len(beat), np.arange(len(beat)), beat)
    rows = np.clip(np.round(7 - height), 0, 9).astype(int)
    for column, row in enumerate(rows):
        before = rows[max(column - 1, 0)]
        bits[min(row, before) : max(row, before) + 1, column] = True
    return _place(bits, cue.corner, shape)
