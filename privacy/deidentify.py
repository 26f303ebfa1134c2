"""DICOM headers without the patient: an allow-list, a keyed pseudonym, shifted dates, other UIDs.

``dicom_profile`` lists what may stay, ``dicom_values`` judges each value, ``pixels`` masks text
that is burned in. ``docs/privacy/deidentification.md`` says what is kept and what is not detected.

Axes: T frames, H rows, W columns, S color samples.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import numpy as np
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset as DicomHeader
from pydicom.dataset import FileDataset as DicomObject
from pydicom.dataset import FileMetaDataset as FileMeta
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.values import convert_SQ

from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.data.planar import MOST_PIXELS
from vitrael.core.errors import ScanError
from vitrael.privacy.dicom_profile import FILE_META, HEADER, Rule
from vitrael.privacy.dicom_values import (
    LEAST_KEY_BYTES,
    Element,
    Patient,
    check_key,
    clean_value,
    remap_uid,
)
from vitrael.privacy.pixels import apply_mask, demand_clean_pixels

__all__ = [
    "Deidentified",
    "count_removed",
    "date_shift_days",
    "deidentified_copy",
    "deidentify_header",
    "remap_uid",
]

MOST_SHIFT_DAYS: Final = 3650
METHOD: Final = ("DICOM PS3.15 Annex E Basic Profile by allow-list", "Vitrael profile 1")
"""(0012,0063), each part at most 64 letters."""
BASIC_PROFILE: Final = ("113100", "Basic Application Confidentiality Profile")
CLEAN_PIXELS: Final = ("113101", "Clean Pixel Data Option")
MODIFIED_DATES: Final = (
    "113107",
    "Retain Longitudinal Temporal Information Modified Dates Option",
)
PATIENT_CHARACTERISTICS: Final = ("113108", "Retain Patient Characteristics Option")

_SHIFT_DOMAIN = b"vitrael/date-shift/1\0"
_NO_KEY = b"\0" * LEAST_KEY_BYTES
_PIXEL_DATA: Final = 0x7FE00010
_PIXEL_REPRESENTATION: Final = 0x00280103
_NOT_COUNTED: Final = frozenset({_PIXEL_DATA, 0x00020001})
"""No header: the pixels, and the version of a file's preface, which is always the same."""
_DAMAGE: Final = (
    *(ValueError, TypeError, KeyError, EOFError, OSError, OverflowError, AttributeError),
    *(NotImplementedError, struct.error, RuntimeError),
)


@dataclass(frozen=True, slots=True, repr=False)
class Deidentified:
    """A header that may be looked at, and the account of what was done; it never holds a value."""

    header: DicomHeader
    """New, without pixels; its file meta too."""
    removed: Mapping[str, int]
    """Elements whose value is gone, by tag: ``(0008,0080)``, and ``(0029,xxxx) private`` for all
    of a private group. A sequence that is not listed counts once."""
    replaced: Mapping[str, int]
    """Elements that now say something else: pseudonym, other UID, shifted date, capped age."""

    def __repr__(self) -> str:
        """Show how much was done, nothing of the header."""
        gone, changed = sum(self.removed.values()), sum(self.replaced.values())
        return f"Deidentified({gone} removed, {changed} replaced)"


def date_shift_days(subject: str, *, key: bytes) -> int:
    """Return by how many days all dates of a patient move: -3650 to -1, the same in every file.

    Intervals survive, the calendar does not. Raises ConfigError for a key under 16 bytes.
    """
    check_key(key)
    code = hmac.digest(key, _SHIFT_DOMAIN + subject.encode(), hashlib.sha256)
    return -1 - int.from_bytes(code) % MOST_SHIFT_DAYS


def deidentify_header(header: DicomHeader, *, key: bytes, subject: str) -> Deidentified:
    """Return a header's listed elements, cleaned, and the account of the others.

    Pure: the same header, key and subject give the same result, and the header is not changed.
    Pixel data is neither copied nor counted. Of every element exactly one is true: it is kept as it
    was, ``replaced`` or ``removed``; group lengths are layout and take no part. Raises ConfigError
    for a key under 16 bytes, ScanError for an empty subject.
    """
    check_key(key)
    if not subject:
        raise ScanError("the header cannot be de-identified", why="no patient is named")
    shift = timedelta(days=date_shift_days(subject, key=key))
    patient = Patient(key, shift, is_signed=_is_signed(header))
    tally = _Tally()
    kept = DicomHeader(_walk(header, HEADER, patient, tally))
    _state_method(
        kept,
        pseudonym_of(subject, key=key),
        [BASIC_PROFILE, MODIFIED_DATES, PATIENT_CHARACTERISTICS],
    )
    meta = getattr(header, "file_meta", None)
    if meta is not None:
        kept.file_meta = FileMeta(_walk(meta, FILE_META, patient, tally))
    return Deidentified(kept, _by_tag(tally.removed), _by_tag(tally.replaced))


def count_removed(header: DicomHeader) -> Mapping[str, int]:
    """Return ``deidentify_header(...).removed`` without a key and without making the new header.

    What has no rule is counted by its tag alone; its value is not looked at.
    """
    patient = Patient(_NO_KEY, timedelta(), is_signed=_is_signed(header))
    tally = _Tally(keeps=False)
    _walk(header, HEADER, patient, tally)
    meta = getattr(header, "file_meta", None)
    if meta is not None:
        _walk(meta, FILE_META, patient, tally)
    return _by_tag(tally.removed)


def deidentified_copy(
    source: DicomHeader, *, key: bytes, subject: str, mask_HW: np.ndarray | None = None
) -> DicomObject:
    """Return a whole object, ready for ``save_as``: cleaned header, decoded and masked pixels.

    Pixels are always decoded and written natively, in explicit little endian: a compressed stream
    can hold comments and pictures of its own. Color becomes RGB. Bits beyond the stored ones, where
    old overlays lie, are cleared. Outside the mask every sample is 0. Only where a pixel was masked
    does the header say so. Raises what ``demand_clean_pixels`` and ``deidentify_header`` raise, and
    ScanError when the pixels cannot be decoded.
    """
    mask_HW = demand_clean_pixels(source, site_mask=mask_HW)
    header = deidentify_header(source, key=key, subject=subject).header
    frames, meaning, bits = _decode(source, header)
    masked = mask_HW is not None and not mask_HW.all()
    if mask_HW is not None and masked:
        frames = apply_mask(frames, mask_HW)
        header.BurnedInAnnotation = "NO"
        header.DeidentificationMethodCodeSequence.append(_code_item(*CLEAN_PIXELS))
    header.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1  # noqa: PLR2004 - T, H, W, S
    header.PhotometricInterpretation = meaning
    if header.SamplesPerPixel > 1:
        header.PlanarConfiguration = 0
    header.BitsAllocated = 8 * frames.itemsize
    header.BitsStored = bits
    header.HighBit = bits - 1
    header.PixelRepresentation = int(frames.dtype.kind == "i")
    data = frames.astype(frames.dtype.newbyteorder("<"), copy=False).tobytes()
    vr = "OB" if frames.itemsize == 1 else "OW"
    header.add(DataElement(_PIXEL_DATA, vr, data + b"\0" * (len(data) % 2)))
    return _wrap(header)


@dataclass(slots=True)
class _Tally:
    """What became of the elements of one object, counted on the way."""

    keeps: bool = True
    """False: only count, make no element."""
    removed: Counter[int] = field(default_factory=Counter)
    replaced: Counter[int] = field(default_factory=Counter)


def _walk(
    header: DicomHeader, rules: Mapping[int, Rule], patient: Patient, tally: _Tally
) -> dict[BaseTag, Element]:
    """Return the elements that may stay, by tag; nothing when the tally keeps nothing."""
    kept: dict[BaseTag, Element] = {}
    for element in header.values():
        tag = int(element.tag)
        rule = rules.get(tag)
        if rule is not None:
            found = _treat(element, rule, patient, tally)
            if found is not None:
                kept[found.tag] = found
        elif tag & 0xFFFF and tag not in _NOT_COUNTED:
            tally.removed[tag] += 1
    return kept


def _treat(element: Element, rule: Rule, patient: Patient, tally: _Tally) -> Element | None:
    """Return what stands in place of a listed element, and count what happened to it."""
    if rule.kind == "ours":
        tally.replaced[rule.tag] += 1
        return None
    if rule.kind == "sequence":
        items = _items(element)
        if items is None:
            tally.removed[rule.tag] += 1
            return None
        cleaned = [_walk(item, rule.items, patient, tally) for item in items]
        if not tally.keeps:
            return None
        return DataElement(rule.tag, "SQ", DicomSequence([DicomHeader(item) for item in cleaned]))
    value = clean_value(element, rule, patient)
    if value is None or (value.replaced and rule.code == "Z"):
        tally.removed[rule.tag] += 1
    elif value.replaced:
        tally.replaced[rule.tag] += 1
    if value is None or not tally.keeps:
        return None
    return RawDataElement(
        BaseTag(rule.tag),
        value.vr,
        len(value.data),
        value.data,
        value_tell=0,
        is_implicit_VR=False,
        is_little_endian=True,
    )


def _items(element: Element) -> Iterable[DicomHeader] | None:
    if element.VR not in {"SQ", None}:
        return None
    if not isinstance(element, RawDataElement):
        return element.value if isinstance(element.value, DicomSequence) else None
    if element.value is None:
        return () if element.length == 0 else None
    try:
        return convert_SQ(element.value, element.is_implicit_VR, element.is_little_endian)
    except _DAMAGE:
        return None


def _state_method(header: DicomHeader, pseudonym: str, methods: Iterable[tuple[str, str]]) -> None:
    """Write who the patient is now, and what was done, into a header."""
    header.PatientName = pseudonym
    header.PatientID = pseudonym
    header.PatientIdentityRemoved = "YES"
    header.DeidentificationMethod = list(METHOD)
    header.LongitudinalTemporalInformationModified = "MODIFIED"
    header.DeidentificationMethodCodeSequence = [_code_item(*method) for method in methods]


def _code_item(value: str, meaning: str) -> DicomHeader:
    item = DicomHeader()
    item.CodeValue = value
    item.CodingSchemeDesignator = "DCM"
    item.CodeMeaning = meaning
    return item


def _is_signed(header: DicomHeader) -> bool:
    """Return whether the header calls its pixels signed, without decoding it in place."""
    element = header.get_item(_PIXEL_REPRESENTATION, keep_deferred=True)
    value = getattr(element, "value", None)
    return value in (1, b"\1\0", b"\0\1")


def _by_tag(counts: Mapping[int, int]) -> dict[str, int]:
    """Return counts by readable tag, those of a private group as one."""
    named: Counter[str] = Counter()
    for tag, count in sorted(counts.items()):
        group, number = tag >> 16, tag & 0xFFFF
        named[f"({group:04X},xxxx) private" if group % 2 else f"({group:04X},{number:04X})"] += (
            count
        )
    return dict(named)


def _decode(source: DicomHeader, header: DicomHeader) -> tuple[np.ndarray, str, int]:
    """Return pixels [T, H, W] or, in RGB, [T, H, W, S], their interpretation and bits stored.

    What the cleaned header says is enough to decode them, except for a palette.
    """
    pixels = DicomHeader(dict(header.items()))
    try:
        _demand_possible_size(header)
        pixels.add(source[_PIXEL_DATA])
        decoder = get_decoder(_syntax_of(source, header))
        frames, facts = decoder.as_array(
            pixels,
            raw=False,
            correct_unused_bits=False,  # type: ignore[arg-type] # it types all options as one
        )
        stored, high = int(header.BitsStored), int(header.HighBit)
        meaning = str(facts["photometric_interpretation"])
        width = 8 * frames.itemsize
        if not 0 < stored <= high + 1 <= width:
            raise ValueError(stored)
        frames = (frames << (width - 1 - high)) >> (width - stored)
        if meaning == "PALETTE COLOR":
            frames, meaning = apply_color_lut(frames, source)[..., :3], "RGB"
            stored = 8 * frames.itemsize
        color = (3,) if meaning == "RGB" else ()
        return frames.reshape(-1, header.Rows, header.Columns, *color), meaning, stored
    except _DAMAGE:
        raise ScanError(
            "the pixels cannot be decoded",
            why="the object is damaged or of a kind that is not supported",
            fix="export it again, uncompressed",
        ) from None


def _demand_possible_size(header: DicomHeader) -> None:
    """Raise ScanError for an image that no memory holds; decoders ask for it all at once."""
    samples = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel)
    if samples * int(header.get("NumberOfFrames") or 1) > MOST_PIXELS:
        raise ScanError("the header gives an absurd image size", fix="export it again")


def _syntax_of(source: DicomHeader, header: DicomHeader) -> UID:
    """Return the transfer syntax; of a file without a preface the one that it was read with."""
    if "TransferSyntaxUID" in source.file_meta:
        return UID(header.file_meta.TransferSyntaxUID)
    is_implicit, is_little = source.original_encoding
    if not is_little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian


def _wrap(header: DicomHeader) -> DicomObject:
    """Return an object with the preface of an uncompressed file; the preamble is zero."""
    meta = header.file_meta
    if not header.get("SOPClassUID") or not header.get("SOPInstanceUID"):
        raise ScanError("the object names no class of the standard, or no identifier of its own")
    meta.MediaStorageSOPClassUID = header.SOPClassUID
    meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    return DicomObject(
        "",
        header,
        preamble=b"\0" * 128,
        file_meta=meta,
        is_implicit_VR=False,
        is_little_endian=True,
    )
