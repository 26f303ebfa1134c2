"""From stored values to gray: colors to their luma, palettes and lookup tables to their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.data.dicom.elements import Elements
from vitrael.core.data.dicom.stored import PALETTE, Stored
from vitrael.core.errors import ScanError

_LUMA: Final = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601), as YBR_FULL has it (PS3.3, C.7.6.3.1.2)."""
_LUMA_65536: Final = (19595, 38470, 7471)
_COLORS: Final = ("Red", "Green", "Blue")
_MOST_ENTRIES: Final = 1 << 16


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Table:
    """A lookup table (PS3.3, C.11.1.1): entry 0 stands for ``first`` and all below it."""

    first: int
    values: np.ndarray
    """[N] float64."""

    def look_up(self, stored_values: np.ndarray) -> np.ndarray:
        """Return the values that an array of stored values stands for, float64."""
        places = np.clip(stored_values.astype(np.int64) - self.first, 0, len(self.values) - 1)
        looked_up: np.ndarray = self.values[places]
        return looked_up


def palette_of(elements: Elements, stored: Stored) -> Table | None:
    """Return the gray, 0 to 255, of a PALETTE COLOR image's colors; None for other images."""
    if stored.photometric != PALETTE:
        return None
    gray = np.zeros(1)
    first = 0
    for color, weight in zip(_COLORS, _LUMA, strict=True):
        name = f"{color}PaletteColorLookupTable"
        table = _table(elements, f"{name}Descriptor", f"{name}Data", signed=stored.signed)
        values = table.values
        gray = gray + weight * (values / 257 if values.max() > 255 else values)  # noqa: PLR2004
        first = table.first
    return Table(first, np.rint(gray))


def modality_table(elements: Elements, stored: Stored) -> Table | None:
    """Return an image's Modality LUT, or None."""
    items = elements.items("ModalityLUTSequence")
    if not items:
        return None
    return _table(items[0], "LUTDescriptor", "LUTData", signed=stored.signed)


def luma(frame: np.ndarray, colors: str) -> np.ndarray:
    """Return the gray ``[H, W]`` of a frame; ``colors`` as ``pixels`` tells them.

    One of 8 bits stays so. The Y of a YBR image is its luma; that of a partial range is spread.
    """
    if frame.ndim == 2:  # noqa: PLR2004 - H, W
        return frame
    gray: np.ndarray
    if colors == "RGB":
        if frame.dtype == np.uint8:
            total = frame.astype(np.uint32) @ np.array(_LUMA_65536, dtype=np.uint32)
            gray = np.right_shift(total + (1 << 15), 16).astype(np.uint8)
        else:
            gray = np.rint(frame @ np.array(_LUMA)).astype(frame.dtype)
    elif colors.startswith("YBR_PARTIAL"):
        spread = (frame[..., 0].astype(np.float32) - 16) * (255 / 219)
        gray = np.rint(np.clip(spread, 0, 255)).astype(np.uint8)
    elif colors.startswith("YBR"):
        gray = frame[..., 0]
    else:
        raise ScanError("its colors are of an unknown kind", fix="export it as gray or RGB")
    return gray


def to_8_bits(gray: np.ndarray, stored: Stored, *, table: Table | None) -> np.ndarray:
    """Return gray values as uint8: the upper bits of wider ones, dark for the lowest value."""
    if table is not None:
        looked_up: np.ndarray = np.clip(table.look_up(gray), 0, 255).astype(np.uint8)
        return looked_up
    if stored.signed:
        gray = gray.astype(np.int64) + (1 << (stored.bits_stored - 1))
    if stored.bits_stored > 8:  # noqa: PLR2004
        gray = gray >> (stored.bits_stored - 8)
    elif stored.bits_stored < 8:  # noqa: PLR2004
        gray = gray * (255 / ((1 << stored.bits_stored) - 1))
    gray = gray.astype(np.uint8, copy=False)
    return 255 - gray if stored.photometric == "MONOCHROME1" else gray


def with_bright_dense(gray: np.ndarray, stored: Stored, *, table: Table | None) -> np.ndarray:
    """Return values through their table, if any; MONOCHROME1, where low is bright, turned around.

    The turn keeps the range: of the table's values, else of the stored bits.
    """
    values = gray.astype(np.float64) if table is None else table.look_up(gray)
    if stored.photometric != "MONOCHROME1":
        return values
    ends: float = -1 if stored.signed else (1 << stored.bits_stored) - 1
    if table is not None:
        ends = float(table.values.min() + table.values.max())
    turned: np.ndarray = ends - values
    return turned


def _table(elements: Elements, descriptor: str, data: str, *, signed: bool) -> Table:
    """Return a table of 8-bit or 16-bit entries (PS3.3, C.7.6.3.1.5)."""
    told = elements.shorts(descriptor)
    size = elements.size(data)
    if len(told) != 3 or size == 0:  # noqa: PLR2004 - entries, first value, bits
        raise ScanError("its lookup table is missing", fix="export it as gray or RGB")
    entries, first = told[0] or _MOST_ENTRIES, told[1]
    if signed and first > 32767:  # noqa: PLR2004 - two's complement of 16 bits
        first -= _MOST_ENTRIES
    words = np.array(elements.shorts(data), dtype=np.uint16)
    values = words if size >= 2 * entries else words.astype("<u2").view(np.uint8)
    if len(values) < entries:
        raise ScanError("its lookup table is cut short", fix="export it as gray or RGB")
    return Table(first, values[:entries].astype(np.float64))
