"""The header of a DICOM file as raw values by tag: bounded in memory, silent, fast.

Only the elements of ``TAG`` are kept; all others, private ones among them, are stepped over. The
encoding is that of DICOM PS3.5, sections 7 (elements, sequences) and 10 (file meta information).
Values are read as the standard types them, whatever a writer claims. No message holds a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final

from pydicom.charset import convert_encodings
from pydicom.values import convert_single_string, convert_string

from vitrael.core.data.dicom.quiet import quiet
from vitrael.core.data.dicom.tags import TAG
from vitrael.core.data.files import open_file
from vitrael.core.errors import ScanError

UNDEFINED: Final = 0xFFFFFFFF
"""The length of what ends with a delimiter; of pixel data: it is encapsulated."""

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
STANDARD_UIDS: Final = "1.2.840.10008."

_WANTED: Final = frozenset(TAG.values())
_NOTHING: Final[frozenset[int]] = frozenset()
_SEQUENCES: Final = frozenset(
    tag
    for keyword, tag in TAG.items()
    if keyword.endswith(("Sequence", "Regions")) and keyword != "ScanningSequence"  # a word
)
_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})

_LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS: Final = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split()
)
_VRS: Final = _LONG_VRS | _SHORT_VRS

_ITEM: Final = 0xFFFEE000
_SEQUENCE_END: Final = 0xFFFEE0DD
_MOST_DEPTH: Final = 16
_META_GROUP: Final = 2
_HEAD_BYTES: Final = (1 << 16, 1 << 20, 1 << 25)
"""How much of a file is read in search of its pixel data, step by step."""

_PARTS: Final = {True: Struct("<HHI"), False: Struct(">HHI")}
_LONG: Final = {True: Struct("<I"), False: Struct(">I")}
_PAD: Final = " \0\t\r\n"


@dataclass(frozen=True, slots=True, repr=False)
class Elements:
    """Raw values by tag, of a file or of one item of a sequence; what is unreadable is absent."""

    values: Mapping[int, bytes | tuple[Elements, ...]]
    little: bool
    """The order of the bytes of binary numbers."""

    def text(self, keyword: str) -> str:
        """Return a text without its padding; bytes beyond ASCII are read as Latin-1."""
        return self._raw(keyword).decode("latin-1").strip(_PAD)

    def decoded(self, keyword: str) -> str | None:
        """Return a text of one value in the file's character set, exactly as pydicom decodes it.

        None when something of it would be lost, and for several values.
        """
        try:
            with quiet():
                sets = convert_string(self._raw("SpecificCharacterSet"), self.little)
                text = convert_single_string(self._raw(keyword), convert_encodings(sets)).strip()
            text.encode()
        except (LookupError, ValueError):  # of codecs
            return None
        return None if "\ufffd" in text or "\\" in text else text

    def words(self, keyword: str) -> tuple[str, ...]:
        """Return the values of a text in capitals, without empty ones at the end."""
        text = self.text(keyword).upper()
        return tuple(word.strip(_PAD) for word in text.split("\\")) if text else ()

    def decimals(self, keyword: str) -> tuple[float, ...] | None:
        """Return decimal strings as numbers; None unless every one is a finite number."""
        raw = self._raw(keyword).strip(_PAD.encode())
        try:
            numbers = tuple(map(float, raw.split(b"\\"))) if raw else ()
        except ValueError:
            return None
        return numbers if numbers and all(map(math.isfinite, numbers)) else None

    def decimal(self, keyword: str) -> float | None:
        """Return the first of some decimal strings."""
        numbers = self.decimals(keyword)
        return numbers[0] if numbers else None

    def whole(self, keyword: str) -> int | None:
        """Return an integer string as a number of at most 31 bits."""
        number = self.decimal(keyword)
        if number is None or number != int(number) or abs(number) >= 1 << 31:
            return None
        return int(number)

    def integer(self, keyword: str) -> int | None:
        """Return an unsigned binary number of 2 or 4 bytes."""
        raw = self._raw(keyword)
        if len(raw) not in (2, 4):
            return None
        return int.from_bytes(raw, "little" if self.little else "big")

    def double(self, keyword: str) -> float | None:
        """Return a binary number of 8 bytes, when it is finite."""
        raw = self._raw(keyword)
        if len(raw) != 8:  # noqa: PLR2004 - FD
            return None
        number: float = Struct("<d" if self.little else ">d").unpack(raw)[0]
        return number if math.isfinite(number) else None

    def shorts(self, keyword: str) -> tuple[int, ...]:
        """Return unsigned binary numbers of 2 bytes each."""
        raw = self._raw(keyword)
        count = len(raw) // 2
        return Struct(f"{'<' if self.little else '>'}{count}H").unpack(raw[: 2 * count])

    def size(self, keyword: str) -> int:
        """Return the length of a value in bytes; 0 when it is absent."""
        return len(self._raw(keyword))

    def items(self, keyword: str) -> tuple[Elements, ...]:
        """Return the items of a sequence."""
        value = self.values.get(TAG[keyword], ())
        return value if isinstance(value, tuple) else ()

    def _raw(self, keyword: str) -> bytes:
        value = self.values.get(TAG[keyword], b"")
        return value if isinstance(value, bytes) else b""


@dataclass(frozen=True, slots=True, repr=False)
class PixelPlace:
    """Where in a file the pixels lie."""

    offset: int
    """Of the first byte of the value."""
    length: int
    """In bytes, as the header says; or ``UNDEFINED``."""
    whole: bool
    """False for pixels that are floating point numbers."""


@dataclass(frozen=True, slots=True, repr=False)
class Header:
    """What stands in a file before its pixels."""

    elements: Elements
    sop_class: str
    """UID by the object, else by the file's meta information; or ""."""
    syntax: str
    """UID of the transfer syntax, guessed where the file does not say."""
    pixels: PixelPlace | None
    cut: bool
    """Whether the bytes ended inside an element, before any pixels."""
    file_bytes: int


def read_header(path: Path) -> Header:
    """Return the header of a file; its pixels are not read.

    Raises ScanError when the file is empty, is no DICOM file or is damaged, and when more than
    32 MiB stand before the pixels; OSError, without the path, when the system cannot give it.
    """
    with open_file(path) as (file, file_bytes):
        data = b""
        for limit in _HEAD_BYTES:
            data += file.read(limit - len(data))
            header = parse_header(data, file_bytes=file_bytes)
            if header.pixels is not None or len(data) >= file_bytes:
                return header
    raise ScanError("the header is absurdly long", fix="export the file again")


def parse_header(data: bytes, *, file_bytes: int) -> Header:
    """Return the header in the first bytes of a file; without ``pixels`` when they lie further on.

    Raises ScanError when the bytes are no DICOM file, or damaged.
    """
    at = 132 if data[128:132] == b"DICM" else 0
    if at == 0 and not looks_like_elements(data):
        raise ScanError("the file is not DICOM")
    meta, at, _ = _walk(data, at, len(data), form=(True, True), last_group=_META_GROUP)
    about = Elements(meta, little=True)
    syntax = about.text("TransferSyntaxUID")
    if syntax == _DEFLATED:
        raise ScanError("its compression (deflated) cannot be decoded here")
    spelled = data[at + 4 : at + 6] in _VRS
    if not syntax:
        big = data[at : at + 2] == b"\0\x08"
        syntax = (EXPLICIT_BIG if big else EXPLICIT_LITTLE) if spelled else IMPLICIT_LITTLE
    little = syntax != EXPLICIT_BIG
    values, at, pixels = _walk(data, at, len(data), form=(spelled, little))
    elements = Elements(values, little=little)
    return Header(
        elements=elements,
        sop_class=elements.text("SOPClassUID") or about.text("MediaStorageSOPClassUID"),
        syntax=syntax,
        pixels=pixels,
        cut=pixels is None and at != len(data),
        file_bytes=file_bytes,
    )


def looks_like_elements(data: bytes) -> bool:
    """Say whether bytes may be the first elements of a DICOM file that lacks its preamble."""
    if len(data) < 16:  # noqa: PLR2004 - not even two elements
        return False
    group, element, length = _PARTS[True].unpack_from(data)
    if data[4:6] in _VRS:
        return group in (0x0002, 0x0008, 0x0800)  # the last is 0008 of a big-endian file
    return group in (0x0002, 0x0008) and element <= 0x0100 and length <= 1 << 10  # noqa: PLR2004


_Values = dict[int, bytes | tuple[Elements, ...]]


def _walk(  # noqa: C901, PLR0912 - one loop over elements, one branch for each way to write one
    data: bytes,
    at: int,
    end: int,
    *,
    form: tuple[bool, bool],
    last_group: int = 0xFFFF,
    wanted: frozenset[int] = _WANTED,
    depth: int = 0,
) -> tuple[_Values, int, PixelPlace | None]:
    """Return the wanted values, the place after the last element, and the place of the pixels.

    ``form`` is (VRs are spelled out, little-endian). A place beyond ``end`` tells that the bytes
    ended inside an element.
    """
    spelled, little = form
    parts, long = _PARTS[little].unpack_from, _LONG[little].unpack_from
    values: _Values = {}
    while at + 8 <= end:
        group, element, length = parts(data, at)
        if group > last_group:
            break
        if group == 0xFFFE:  # noqa: PLR2004 - a delimiter
            return values, at + 8, None
        body, vr = at + 8, b""
        if spelled:
            vr = data[at + 4 : at + 6]
            if vr in _LONG_VRS:
                if body + 4 > end:
                    return values, end + 1, None
                (length,) = long(data, body)
                body += 4
            elif vr.isalpha() and vr.isupper():
                length = length >> 16 if little else length & 0xFFFF
            else:
                vr = b""  # some writers leave the VRs out in the middle of a file
        tag = group << 16 | element
        if tag in _PIXELS and depth == 0:
            return values, at, PixelPlace(body, length, whole=tag == max(_PIXELS))
        keep = tag in wanted
        if not keep and length != UNDEFINED:
            at = body + length
            continue
        # what is UN and yet a sequence is written without VRs (PS3.5, 6.2.2)
        inner = (bool(vr) and vr != b"UN", little)
        within = wanted if keep else _NOTHING
        if length == UNDEFINED:
            form_within = None if vr in (b"OB", b"OW") or tag in _PIXELS else inner
            items, at = _items(
                data, body, end, length=length, form=form_within, wanted=within, depth=depth
            )
            if keep:
                values[tag] = items
            continue
        at = body + length
        if at > end:
            break
        if tag in _SEQUENCES:
            values[tag], _ = _items(
                data, body, at, length=length, form=inner, wanted=within, depth=depth
            )
        else:
            values[tag] = data[body:at]
    return values, at, None


def _items(
    data: bytes,
    at: int,
    end: int,
    *,
    length: int,
    form: tuple[bool, bool] | None,
    wanted: frozenset[int],
    depth: int,
) -> tuple[tuple[Elements, ...], int]:
    """Return the items of a sequence and the place after it; ``form`` None steps over raw items."""
    if depth >= _MOST_DEPTH:
        raise ScanError("the header is damaged", why="its sequences are nested without end")
    little = form is None or form[1]
    parts = _PARTS[little].unpack_from
    found: list[Elements] = []
    stop = end if length == UNDEFINED else min(at + length, end)
    while at + 8 <= stop:
        group, element, size = parts(data, at)
        at += 8
        if group << 16 | element == _SEQUENCE_END:
            return tuple(found), at
        if group << 16 | element != _ITEM:
            raise ScanError(
                "the header is damaged", why="a sequence holds something else than items"
            )
        if form is None:
            at += size
            continue
        last = stop if size == UNDEFINED else min(at + size, stop)
        if wanted or size == UNDEFINED:
            values, after, _ = _walk(data, at, last, form=form, wanted=wanted, depth=depth + 1)
            if wanted:
                found.append(Elements(values, little=little))
            at = after if size == UNDEFINED else at + size
        else:
            at += size
    return tuple(found), at if length != UNDEFINED else end + 1
