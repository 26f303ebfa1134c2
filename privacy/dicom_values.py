"""Judge the value of one listed element: what comes out is clean, or it does not come out.

Values that were never decoded are judged as bytes, without pydicom's conversions and warnings, and
come out in explicit little endian. Nothing here reads a file, a clock or a random number.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final, NamedTuple

import numpy as np
from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_has_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset as DicomHeader
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import format_number_as_ds

from vitrael.core.errors import ConfigError
from vitrael.privacy.dicom_profile import Kind, Rule
from vitrael.privacy.dicom_terms import IMAGE_TYPES, ORIENTATIONS, OTHER

Element = DataElement | RawDataElement

LARGEST_NUMBER: Final = 1e7
"""Nothing technical is larger, and a date or a telephone number in a wrong place is."""
SMALLEST_NUMBER: Final = 1e-12
"""Nearer to zero lie only the floats that bytes of text happen to make."""
OLDEST_AGE_YEARS: Final = 89
"""HIPAA safe harbor, 45 CFR 164.514(b)(2)(i)(C): ages above it become one group."""

LEAST_KEY_BYTES: Final = 16

_UID_DOMAIN = b"vitrael/dicom-uid/1\0"
_DECIMAL: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_INTEGER: Final = re.compile(r"[+-]?\d{1,12}")
_AGE: Final = re.compile(r"(\d{3})([DWMY])")
_DATE: Final = re.compile(r"(\d{4})(\d{2})(\d{2})(\d{0,6}(\.\d{1,6})?([+-]\d{4})?)")
_YEARS: Final = (1900, 2199)
_DS_LETTERS: Final = 16
_DECIMAL_LETTERS: Final = 32
_CURVE_ENTRIES: Final = (256, 1 << 16)
_FORMATS: Final[Mapping[str, str]] = {
    "AT": "HH",
    "FD": "d",
    "FL": "f",
    "SL": "i",
    "SS": "h",
    "UL": "I",
    "US": "H",
}


@dataclass(frozen=True, slots=True, repr=False)
class Patient:
    """What the values of one patient are mapped with."""

    key: bytes
    shift: timedelta
    is_signed: bool
    """Whether the object's pixels are: decides between US and SS."""


class Value(NamedTuple):
    """A value fit to be written."""

    vr: str
    data: bytes
    """Explicit little endian, of even length."""
    replaced: bool
    """Whether it says something else than the source did."""


def check_key(key: bytes) -> None:
    """Raise ConfigError for a key that could be guessed."""
    if len(key) < LEAST_KEY_BYTES:
        raise ConfigError(
            "the site's key is too short",
            why=f"it has fewer than {LEAST_KEY_BYTES} bytes",
            fix="use the key that the site was set up with",
        )


def remap_uid(uid: str, *, key: bytes) -> str:
    """Return the UID that stands for ``uid`` at one site: ``2.25.`` and a keyed 128-bit number.

    Equal UIDs give equal ones, in every file and for ever; without the key nobody can go back or
    try candidates. The number is a UUID of RFC 9562 version 8, as PS3.5 B.2 asks. Padding does not
    count. UIDs of the standard itself (classes, transfer syntaxes) and the empty one stay.
    Raises ConfigError for a key under 16 bytes.
    """
    check_key(key)
    uid = uid.strip(" \0")
    if not uid or uid in UID_dictionary:
        return uid
    code = bytearray(hmac.digest(key, _UID_DOMAIN + uid.encode(), hashlib.sha256)[:16])
    code[6] = code[6] & 0x0F | 0x80  # version 8: made by a rule of one's own
    code[8] = code[8] & 0x3F | 0x80  # the variant of RFC 9562
    return f"2.25.{int.from_bytes(code)}"


def clean_value(element: Element, rule: Rule, patient: Patient) -> Value | None:
    """Return what may stand in a listed element (no sequence); None when it must go.

    Gone are values of a VR that the standard does not give the element, of more parts than it
    allows, that are not ASCII, or that the judge of the rule's kind does not know. An empty value
    stays empty, and one that a dummy will stand for is emptied.
    """
    if rule.kind in {"pseudonym", "emptied"}:
        return Value(rule.vrs[0], b"", replaced=not _is_empty(element))
    vr = _accepted_vr(element, rule, is_signed=patient.is_signed)
    if vr is None:
        return None
    if _is_empty(element):
        return Value(vr, b"", replaced=False)
    if rule.kind == "curve":
        return _clean_curve(element, vr)
    if vr in _FORMATS:
        return _clean_numbers(element, rule, vr)
    return _clean_text(element, rule, patient, vr)


def _clean_text(element: Element, rule: Rule, patient: Patient, vr: str) -> Value | None:
    texts = _texts(element)
    if texts is None or len(texts) > rule.values[1]:
        return None
    cleaned = _JUDGES[rule.kind](texts, rule, patient)
    if cleaned is None:
        return None
    data = "\\".join(cleaned).encode("ascii")
    padding = b"\0" if vr == "UI" else b" "
    replaced = rule.kind != "number" and cleaned != texts
    return Value(vr, data + padding * (len(data) % 2), replaced=replaced)


def read_words(header: DicomHeader, keyword: str) -> tuple[str, ...]:
    """Return the parts of an element of text in capitals; none when it is missing or empty.

    A byte beyond ASCII is a letter of Latin-1: such a part is not lost, and none that is known.
    pydicom would tell a wrong value in a warning, and a warning is no place for a patient's data.
    """
    tag = Tag(keyword)
    if tag not in header:
        return ()
    element = header.get_item(tag, keep_deferred=True)
    return () if _is_empty(element) else tuple(part.upper() for part in _parts(element))


def _accepted_vr(element: Element, rule: Rule, *, is_signed: bool) -> str | None:
    """Return the VR to write; None for another one than the standard's."""
    vr = element.VR
    if vr is None or " or " in vr:  # implicit, or never decided
        vr = rule.vrs[0]
        return "SS" if is_signed and "SS" in rule.vrs else str(vr)
    return str(vr) if vr in rule.vrs else None


def _is_empty(element: Element) -> bool:
    if isinstance(element, RawDataElement):
        return element.length == 0
    return bool(element.is_empty)


def _texts(element: Element) -> list[str] | None:
    """Return the parts of a text without padding; None when it is not ASCII or was not read."""
    if element.value is None:
        return None
    texts = _parts(element)
    return texts if all(text.isascii() for text in texts) else None


def _parts(element: Element) -> list[str]:
    value = element.value
    if isinstance(value, bytes):
        parts = value.decode("latin-1").split("\\")
    else:
        parts = [str(part) for part in (value if isinstance(value, MultiValue) else [value])]
    return [part.strip(" \0") for part in parts]


def _judge_number(texts: list[str], rule: Rule, _patient: Patient) -> list[str] | None:
    shape = _INTEGER if rule.vrs == ("IS",) else _DECIMAL
    numbers: list[str] = []
    for text in texts:
        if not text:
            numbers.append(text)
            continue
        if len(text) > _DECIMAL_LETTERS or not shape.fullmatch(text):
            return None
        if not _is_plausible(float(text)):
            return None
        numbers.append(text if len(text) <= _DS_LETTERS else format_number_as_ds(float(text)))
    return numbers


def _judge_term(texts: list[str], rule: Rule, _patient: Patient) -> list[str] | None:
    return texts if rule.terms.issuperset(texts) else None


def _judge_image_type(texts: list[str], _rule: Rule, _patient: Patient) -> list[str]:
    return [text if text in IMAGE_TYPES else OTHER for text in texts]


def _judge_orientation(texts: list[str], _rule: Rule, _patient: Patient) -> list[str] | None:
    return texts if ORIENTATIONS.issuperset(texts) else None


def _judge_age(texts: list[str], _rule: Rule, _patient: Patient) -> list[str] | None:
    found = _AGE.fullmatch(texts[0])
    if found is None:
        return None
    old = found[2] == "Y" and int(found[1]) > OLDEST_AGE_YEARS
    return [f"{OLDEST_AGE_YEARS + 1:03d}Y"] if old else texts


def _judge_date(texts: list[str], _rule: Rule, patient: Patient) -> list[str] | None:
    found = _DATE.fullmatch(texts[0])
    if found is None or not _YEARS[0] <= int(found[1]) <= _YEARS[1]:
        return None
    try:
        day = date(int(found[1]), int(found[2]), int(found[3]))
    except ValueError:
        return None
    return [(day + patient.shift).strftime("%Y%m%d")]


def _judge_uid(texts: list[str], _rule: Rule, patient: Patient) -> list[str]:
    return [remap_uid(text, key=patient.key) for text in texts]


def _judge_registered(texts: list[str], _rule: Rule, _patient: Patient) -> list[str] | None:
    return texts if all(text in UID_dictionary for text in texts) else None


_JUDGES: Final[Mapping[Kind, Callable[[list[str], Rule, Patient], list[str] | None]]] = {
    "number": _judge_number,
    "term": _judge_term,
    "image_type": _judge_image_type,
    "orientation": _judge_orientation,
    "age": _judge_age,
    "date": _judge_date,
    "uid": _judge_uid,
    "registered_uid": _judge_registered,
}


def _clean_numbers(element: Element, rule: Rule, vr: str) -> Value | None:
    """Return binary numbers, or the tags of a pointer, that are possible."""
    letters = _FORMATS[vr]
    numbers = _numbers(element, letters)
    if not numbers or len(numbers) > rule.values[1] * len(letters):
        return None
    if rule.kind == "pointer":
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        if not all(dictionary_has_tag(int(group) << 16 | int(name)) for group, name in pairs):
            return None
    elif not all(_is_plausible(number) for number in numbers):
        return None
    try:
        data = struct.pack(f"<{len(numbers) // len(letters) * letters}", *numbers)
    except (struct.error, TypeError, OverflowError):
        return None
    if vr in {"US", "SS"} and len(numbers) > 1 and data.isascii() and data.decode().isprintable():
        return None  # pairs of letters, one after the other
    return Value(vr, data, replaced=False)


def _numbers(element: Element, letters: str) -> tuple[float, ...]:
    """Return the numbers of an element as they stand in it; none when they cannot be read."""
    value = element.value
    if isinstance(element, RawDataElement):
        order = "<" if element.is_little_endian else ">"
        count, rest = divmod(len(value or b""), struct.calcsize(f"<{letters}"))
        if not value or rest:
            return ()
        return struct.unpack(f"{order}{count * letters}", value)
    parts = tuple(value) if isinstance(value, MultiValue | list | tuple) else (value,)
    if not all(isinstance(part, int | float) for part in parts):
        return ()
    if letters == _FORMATS["AT"]:
        return tuple(half for part in parts for half in divmod(int(part), 1 << 16))
    return parts


def _clean_curve(element: Element, vr: str) -> Value | None:
    """Return a lookup table of 16-bit words that only rises or only falls.

    Text in its place does not: a table has at least 256 entries.
    """
    value = element.value
    if isinstance(element, RawDataElement) and not element.is_little_endian:
        return None
    if isinstance(value, MultiValue | list):
        try:
            value = struct.pack(f"<{len(value)}H", *value)
        except (struct.error, TypeError):
            return None
    if not isinstance(value, bytes) or len(value) % 2:
        return None
    words = np.frombuffer(value, dtype="<u2").astype(np.int32)
    fewest, most = _CURVE_ENTRIES
    steps = np.diff(words)
    if not fewest <= words.size <= most or not (np.all(steps >= 0) or np.all(steps <= 0)):
        return None
    return Value(vr, value, replaced=False)


def _is_plausible(number: float) -> bool:
    """Return whether a number may be technical; NaN and infinity may not."""
    return number == 0 or SMALLEST_NUMBER <= abs(number) <= LARGEST_NUMBER
