"""One DICOM file in facts: what is needed to group, order, judge and decode it, and no more.

An Instance holds no name, no identifier and no free text. Identifiers pass through a keyed hash
that the caller gives; words outside the standard's own do too. It can be written as JSON and
belongs in a site's index, which never leaves the site: date, age and sex are private all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

from vitrael.core.data.dicom.contrast import Contrast, guess_contrast, names_agent
from vitrael.core.data.dicom.elements import (
    STANDARD_UIDS,
    Elements,
    Header,
    looks_like_elements,
    parse_header,
    read_header,
)
from vitrael.core.data.dicom.frames import (
    Place,
    frame_time_s,
    places_of,
    region_spacing_mm,
    spacing_of,
)
from vitrael.core.data.dicom.stored import Stored, stored_of
from vitrael.core.data.files import open_file
from vitrael.core.errors import ScanError

Kind = Literal["MR", "CT", "PT", "US", "CR", "DX", "MG", "IO", "XA", "RF", "SC"]

VOLUME_KINDS: Final[frozenset[Kind]] = frozenset({"MR", "CT", "PT"})
"""Kinds whose images are slices of a volume."""

_STORAGE = STANDARD_UIDS + "5.1.4.1.1."
_KINDS: Final[Mapping[str, Kind]] = {
    _STORAGE + "4": "MR",
    _STORAGE + "4.1": "MR",  # enhanced
    _STORAGE + "4.4": "MR",  # legacy converted enhanced
    _STORAGE + "2": "CT",
    _STORAGE + "2.1": "CT",
    _STORAGE + "2.2": "CT",
    _STORAGE + "128": "PT",
    _STORAGE + "128.1": "PT",
    _STORAGE + "130": "PT",
    _STORAGE + "3.1": "US",  # multi-frame
    _STORAGE + "3": "US",
    _STORAGE + "6.1": "US",
    _STORAGE + "6": "US",
    _STORAGE + "1": "CR",
    _STORAGE + "1.1": "DX",
    _STORAGE + "1.1.1": "DX",
    _STORAGE + "1.2": "MG",
    _STORAGE + "1.2.1": "MG",
    _STORAGE + "1.3": "IO",
    _STORAGE + "1.3.1": "IO",
    _STORAGE + "12.1": "XA",
    _STORAGE + "12.2": "RF",
    _STORAGE + "7": "SC",
    _STORAGE + "7.2": "SC",
    _STORAGE + "7.3": "SC",
    _STORAGE + "7.4": "SC",
}
"""SOP classes of images (PS3.4, B.5). All others, known or private, are no images to us."""

_MODALITIES: Final = frozenset("MR CT PT US CR DX MG IO PX XA RF NM OT SC".split())  # noqa: SIM905
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_PER_YEAR: Final = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
_MOST_YEARS: Final = 130
_YEARS: Final = range(1850, 2200)
"""Of dates that are believed; others stand for *unknown*, such as the first day of the year 1."""


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """Who the patient of a file is, as it says. Lives in memory; never stored, never shown."""

    subject: str
    """Patient ID; empty where the file has none."""

    def __repr__(self) -> str:
        """Show nothing."""
        return "Identity(private)"


@dataclass(frozen=True, slots=True, repr=False)
class Instance:
    """The facts of one file. All codes are keyed hashes; an identifier that is missing stays ""."""

    patient: str
    dicom_study: str
    series: str
    sop: str
    """Code of the file's own identifier."""
    frame_of_reference: str
    kind: Kind
    """By the SOP class."""
    modality: str
    """By the header's own word; ``OT`` for what is not in the standard's list."""
    stored: Stored
    places: tuple[Place, ...]
    """One for each frame of a multi-frame volume; else one."""
    number: int | None
    """Instance Number."""
    thickness_mm: float | None
    plane_mm: tuple[float, float] | None
    """Between rows, between columns: of the pixels, the detector or an ultrasound's one region."""
    frame_s: float | None
    uneven: bool
    """Whether its frames are at unequal times."""
    regions: int
    """How many ultrasound regions it describes."""
    burned_in: bool | None
    """Whether it says that text stands in its pixels; None where it does not say."""
    table: bool
    """Whether its values pass through a Modality LUT."""
    taken: date | None
    age_years: float | None
    sex: Literal["F", "M"] | None
    contrast: Contrast | None
    agent: bool
    """Whether a contrast agent was given."""

    def __repr__(self) -> str:
        """Show kind and size, nothing of a patient."""
        stored = self.stored
        return f"Instance({self.kind}, {stored.frames}x{stored.rows}x{stored.columns})"


def is_dicom(path: Path) -> bool:
    """Say whether a file is DICOM by its first bytes; its name tells nothing.

    A file without the preamble counts when it begins with elements that name a standard SOP class.
    Raises OSError, without the path, when the system cannot give its bytes.
    """
    try:
        with open_file(path) as (file, _):
            data = file.read(132)
            if data[128:] == b"DICM":
                return True
            if not looks_like_elements(data):
                return False
            data += file.read((1 << 14) - len(data))
        elements = parse_header(data, file_bytes=len(data)).elements
    except ScanError:
        return False
    return elements.text("SOPClassUID").startswith(STANDARD_UIDS)


def read_instance(path: Path, *, code: Callable[[str], str]) -> tuple[Instance, Identity]:
    """Return the facts of a file, without reading its pixels, and apart from them the patient.

    ``code`` is a keyed hash; it is given each identifier. Raises ScanError with one clause when
    the file is no DICOM image, damaged, cut short, compressed in a way that cannot be decoded, or
    of absurd size; the check of the size comes before any pixel is allocated.
    """
    header = read_header(path)
    elements = header.elements
    kind = _KINDS.get(header.sop_class)
    if kind is None and header.sop_class:
        if header.pixels is not None and not header.sop_class.startswith(STANDARD_UIDS):
            raise ScanError("its kind of image is not known", fix="export it as a standard kind")
        raise ScanError("the file is no image", why="it is another kind of DICOM object")
    if header.cut:
        raise ScanError("its header is cut short", fix="copy the file again")
    if kind is None:
        raise ScanError("its header does not tell what it is", fix="export it again")
    return _facts(header, kind=kind, code=code), Identity(subject_of(elements))


def to_record(instance: Instance) -> dict[str, Any]:
    """Return an Instance as a value that JSON can hold."""
    record = {field.name: getattr(instance, field.name) for field in fields(Instance)}
    record["stored"] = {
        field.name: getattr(instance.stored, field.name) for field in fields(Stored)
    }
    record["places"] = [
        [getattr(place, field.name) for field in fields(Place)] for place in instance.places
    ]
    record["taken"] = instance.taken.isoformat() if instance.taken else None
    return record


def from_record(record: Mapping[str, Any]) -> Instance:
    """Return the Instance of ``to_record``; raises ValueError for anything else."""
    try:
        values = dict(record)
        values["stored"] = Stored(**record["stored"])
        values["places"] = tuple(Place(*map(_tuples, place)) for place in record["places"])
        values["taken"] = date.fromisoformat(record["taken"]) if record["taken"] else None
        return Instance(**{name: _tuples(value) for name, value in values.items()})
    except (KeyError, TypeError):
        msg = "the record is not that of an Instance"
        raise ValueError(msg) from None


def _facts(header: Header, *, kind: Kind, code: Callable[[str], str]) -> Instance:
    elements = header.elements

    def coded(keyword: str) -> str:
        value = elements.text(keyword)
        return code(value) if value else ""

    stored = stored_of(header)
    if not elements.text("SeriesInstanceUID"):
        raise ScanError("the file names no series", fix="export it again")
    if elements.text("ConcatenationUID"):
        raise ScanError("it is a part of an image in several files", fix="export it as one file")
    frame_s, uneven = frame_time_s(elements, frames=stored.frames)
    modality = elements.text("Modality").upper()
    taken = _taken(elements)
    return Instance(
        patient=coded("PatientID"),
        dicom_study=coded("StudyInstanceUID"),
        series=coded("SeriesInstanceUID"),
        sop=coded("SOPInstanceUID"),
        frame_of_reference=coded("FrameOfReferenceUID"),
        kind=kind,
        modality=modality if modality in _MODALITIES else "OT",
        stored=stored,
        places=places_of(elements, frames=stored.frames, slices=kind in VOLUME_KINDS, code=code),
        number=elements.whole("InstanceNumber"),
        thickness_mm=elements.decimal("SliceThickness"),
        plane_mm=_plane_mm(elements, kind=kind, stored=stored),
        frame_s=frame_s,
        uneven=uneven,
        regions=len(elements.items("SequenceOfUltrasoundRegions")),
        burned_in={"YES": True, "NO": False}.get(elements.text("BurnedInAnnotation").upper()),
        table=bool(elements.items("ModalityLUTSequence")),
        taken=taken,
        age_years=_age_years(elements, taken=taken),
        sex=_sex(elements),
        contrast=guess_contrast(elements) if kind == "MR" else None,
        agent=names_agent(elements),
    )


def subject_of(elements: Elements) -> str:
    """Return the Patient ID, or "" where there is none.

    Raises ScanError when it has several values or does not fit its character set.
    """
    subject = elements.decoded("PatientID")
    if subject is None:
        raise ScanError(
            "its Patient ID cannot be read", why="it does not fit its character set or is not one"
        )
    return subject


def _plane_mm(elements: Elements, *, kind: Kind, stored: Stored) -> tuple[float, float] | None:
    if kind == "US":
        return region_spacing_mm(elements, rows=stored.rows, columns=stored.columns)
    return spacing_of(elements, "PixelSpacing") or spacing_of(elements, "ImagerPixelSpacing")


def _taken(elements: Elements) -> date | None:
    for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        found = _date(elements.text(keyword))
        if found is not None:
            return found
    return None


def _date(text: str) -> date | None:
    digits = text.replace(".", "")  # the old form has dots
    if len(digits) != 8 or not digits.isascii() or not digits.isdigit():  # noqa: PLR2004 - YYYYMMDD
        return None
    try:
        found = date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
    return found if found.year in _YEARS else None


def _age_years(elements: Elements, *, taken: date | None) -> float | None:
    """Return Patient's Age, else the years from birth to scan; an age of zero years is unknown."""
    match = _AGE.fullmatch(elements.text("PatientAge").upper())
    if match:
        years = int(match[1]) / _PER_YEAR[match[2]]
        if 0 < years <= _MOST_YEARS:
            return round(years, 2)
    born = _date(elements.text("PatientBirthDate"))
    if born is None or taken is None:
        return None
    years = (taken - born).days / 365.25
    return round(years, 2) if 0 <= years <= _MOST_YEARS else None


def _sex(elements: Elements) -> Literal["F", "M"] | None:
    word = elements.text("PatientSex").upper()
    return "F" if word == "F" else "M" if word == "M" else None


def _tuples(value: Any) -> Any:  # noqa: ANN401 - JSON has lists where facts have tuples
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
