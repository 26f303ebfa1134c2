"""Whose each image is: by a table, else BIDS names, else DICOM, else folders, else nobody's word.

The first of these that tells the patient of any image speaks for all of the real folder: an image
of which it does not tell is refused, since an audit that counts one patient twice proves too much.
Of the synthetic folder nothing is refused for it; such an image is nobody's.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from vitrael.core.data.layouts.classes import is_class
from vitrael.core.data.layouts.facts import (
    AGE_COLUMNS,
    DISAGREEMENT,
    NO_PATIENT,
    SEX_COLUMNS,
    SUBJECT_COLUMNS,
    is_said,
    word_for_sex,
)
from vitrael.core.data.layouts.names import (
    ENHANCED,
    UNCLEAR_NAME,
    contrast_word,
    read_entities,
    read_name,
)
from vitrael.core.data.tables import FORMULA, Row, read_table
from vitrael.core.errors import CohortError
from vitrael.privacy.audit_folder.found import MASK, FoundImage

Side = Literal["real", "synthetic"]
Teller = Literal["table", "bids", "dicom", "folder", "file"]

NOT_LISTED: Final = "the table of patients does not name it"
TORN: Final = "its files are of several patients"

_FILE_COLUMNS: Final = ("file", "path", "file_path", "filepath", "filename", "file_name")
_VISIT_COLUMNS: Final = ("visit", "session", "visit_id", "session_id", "ses", "timepoint")
_CONTRAST_COLUMNS: Final = ("contrast", "modality")
_SCANNER_COLUMNS: Final = ("scanner",)
_CONTRASTS: Final = frozenset({"T1w", "T2w", "FLAIR", ENHANCED})
_NAMED: Final = 4
"""Of how many files an error tells the rows."""
_LACKS: Final[Mapping[Teller, str]] = {
    "table": NOT_LISTED,
    "bids": UNCLEAR_NAME,
    "dicom": "its header names no patient, and those of others do",
    "folder": "it lies in no patient's folder, and others do",
    "file": "",
}
_SENTENCES: Final[Mapping[Teller, str]] = {
    "table": "Patients are told by the table.",
    "bids": "Patients are told by BIDS names (sub-, ses-).",
    "dicom": "Patients are told by the Patient ID of DICOM.",
    "folder": "Patients are told by the first folder below the root: one folder, one patient.",
    "file": "Nothing tells patients: each file counts as a patient of its own.",
}


@dataclass(frozen=True, slots=True, repr=False)
class Told:
    """What is known of one image; blank where nothing is. Private."""

    patient: str = ""
    """As the user calls the patient; empty for one whom nobody named."""
    visit: str = ""
    contrast: str = ""
    age_years: float | None = None
    sex: str = ""
    """``female`` or ``male``."""
    scanner: str = ""
    refused: str = ""
    """Why the image must not be used."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Told(private)"


@dataclass(frozen=True, slots=True, repr=False)
class PatientTable:
    """The rows of a table that speak of files in one folder. Private."""

    rows: Mapping[str, Told]
    """By the file's place below the folder."""
    absent: int = 0
    """How many rows name a file that is not there."""

    def __repr__(self) -> str:
        """Show counts alone."""
        return f"PatientTable({len(self.rows)} rows, {self.absent} absent)"


def read_patients(path: Path, root: Path, *, places: Collection[str], side: Side) -> PatientTable:
    """Return what a table tells of the files of a folder, which lie at ``places`` below it.

    Its columns are ``file`` (or ``path``) and ``patient`` (or ``subject``), and where they are
    known ``visit`` (or ``session``), ``age``, ``sex``, ``scanner`` and ``contrast``. Files are
    named as seen from the real folder; where that finds none, as seen from the table. Those of
    the synthetic folder are named as seen from the table alone, since both folders may have files
    of one name. Raises CohortError when the table is missing or cannot be read, lacks a column,
    names no file of the real folder, or names two patients for one file.
    """
    demand_table(path)
    table = read_table(path)
    file_column = _first(_FILE_COLUMNS, table.columns)
    patient_column = _first(SUBJECT_COLUMNS, table.columns)
    for name, column in (("file", file_column), ("patient", patient_column)):
        if not column:
            raise CohortError(
                f"the table {_shown(path)} lacks the column {name}",
                why=f"it has {', '.join(table.columns)}",
                fix="name its columns file and patient",
            )
    listed = [row for row in table.rows() if row.cells.get(file_column)]
    cells = [unicodedata.normalize("NFC", row.cells[file_column]) for row in listed]
    rows = list(zip(cells, map(_read_row, listed), strict=True))
    known = {unicodedata.normalize("NFC", place): place for place in places}
    from_table = _from_table(path, root)
    placed = [(PurePosixPath(cell).as_posix(), told) for cell, told in rows]
    if side == "synthetic" or not any(place in known for place, _ in placed):
        placed = [(from_table(cell), told) for cell, told in rows]
    if side == "real" and not any(place in known for place, _ in placed):
        raise CohortError(
            f"the table {_shown(path)} names no file of the real folder",
            why=f"none of its {len(rows)} rows has a path that leads to one"
            if table.cells
            else "it has no rows",
            fix="write each path as seen from the folder, such as scans/a.png",
        )
    told_of: dict[str, Told] = {}
    named: dict[str, dict[int, str]] = {}
    for row, (place, told) in zip(listed, placed, strict=True):
        if place in known:
            own = known[place]
            told_of[own] = told if own not in told_of else _agree(told_of[own], told)
            if told.patient and told.refused != FORMULA:
                named.setdefault(own, {})[row.number] = told.patient
    _demand_one_patient(path, named)
    absent = sum(
        place not in known and not (path.absolute().parent / cell).is_file()
        for (place, _), (cell, _) in zip(placed, rows, strict=True)
        if place
    )
    return PatientTable(told_of, absent)


def demand_table(path: Path) -> None:
    """Raise CohortError unless there is a file where a table should be."""
    if not path.is_file():
        raise CohortError(
            f"the table of patients {_shown(path)} cannot be read",
            why="it is a folder" if path.is_dir() else "there is none at this path",
            fix="check the path behind --patients; only where names or folders tell the patients, "
            "leave it out",
        )


def tell_patients(
    images: Sequence[FoundImage], *, table: PatientTable | None, side: Side
) -> tuple[list[Told], Teller]:
    """Return what is known of each image, and what told the patients.

    An image of the real folder whose patient is not told, though others' are, comes refused.
    """
    by_folder = _patient_folders(images)
    asked: dict[Teller, Callable[[FoundImage], Told]] = {
        "bids": _by_name,
        "dicom": _by_header,
        "folder": lambda image: _by_folder(image, by_folder),
    }
    if table is not None:
        rows = table.rows
        asked = {"table": lambda image: _by_table(image, rows)}
    for teller, ask in asked.items():
        told = [ask(image) for image in images]
        if teller == "table" or any(one.patient for one in told):
            break
    else:
        teller, told = "file", [Told() for _ in images]
    lacks = _LACKS[teller] if side == "real" else ""
    facts = [
        replace(one, refused=one.refused or ("" if one.patient else lacks))
        if side == "real" or one.refused == MASK
        else replace(one, refused="", patient="" if one.refused else one.patient)
        for one in told
    ]
    return [_complete(one, image) for one, image in zip(facts, images, strict=True)], teller


def sentence_of(teller: Teller, *, patients: int, images: int) -> str:
    """Return in one sentence what told the patients, and how many they are."""
    counts = f"{_count(patients, 'patient')}, {_count(images, 'image')}"
    return f"{_SENTENCES[teller].removesuffix('.')} ({counts})."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _read_row(row: Row) -> Told:
    cells = {name: text for name, text in row.cells.items() if is_said(text)}

    def cell(columns: Iterable[str]) -> str:
        return next((cells[column] for column in columns if column in cells), "")

    patient = unicodedata.normalize("NFC", cell(SUBJECT_COLUMNS))
    text = cell(_CONTRAST_COLUMNS)
    contrast, mask = contrast_word(text)
    refused = FORMULA if row.has_formula else MASK if mask else "" if patient else NO_PATIENT
    return Told(
        patient=patient,
        visit=cell(_VISIT_COLUMNS),
        contrast=contrast if contrast in _CONTRASTS else text,
        age_years=_years(cell(sorted(AGE_COLUMNS))),
        sex=word_for_sex(cell(sorted(SEX_COLUMNS))),
        scanner=cell(_SCANNER_COLUMNS),
        refused=refused,
    )


def _demand_one_patient(path: Path, named: Mapping[str, Mapping[int, str]]) -> None:
    """Raise CohortError, which tells the rows, where those of one file name two patients.

    ``named`` holds for each file the patients by row. No file is named: it may bear a person's
    name.
    """
    torn = sorted(_first_torn(rows) for rows in named.values() if len({*rows.values()}) > 1)
    if torn:
        shown = "; ".join(f"rows {one} and {other}" for one, other in torn[:_NAMED])
        more = f"; and {len(torn) - _NAMED} more" if len(torn) > _NAMED else ""
        raise CohortError(
            f"the table of patients {_shown(path)} names two patients for one file",
            why=f"{shown}{more} (the header not counted)",
            fix="leave one row for each file, with the patient whose it is",
        )


def _first_torn(patients: Mapping[int, str]) -> tuple[int, int]:
    """Return the first row of a file and the first that names another patient."""
    first, *others = sorted(patients)
    return first, next(row for row in others if patients[row] != patients[first])


def _agree(first: Told, second: Told) -> Told:
    """Return what two rows of one file say together."""
    return first if first == second else replace(first, refused=DISAGREEMENT)


def _years(text: str) -> float | None:
    try:
        years = float(text.replace(",", "."))
    except ValueError:
        return None
    return years if 0 <= years <= 130 else None  # noqa: PLR2004 - the oldest that one believes


def _from_table(path: Path, root: Path) -> Callable[[str], str]:
    """Return how a path, as seen from the table, is seen from the folder; empty outside of it."""
    home, inside = path.absolute().parent, f"{os.path.normpath(root.absolute())}{os.sep}"

    def place_of(cell: str) -> str:
        place = os.path.normpath(home / cell)
        return PurePosixPath(place.removeprefix(inside)).as_posix() if inside in place else ""

    return place_of


def _first(wanted: Iterable[str], columns: Collection[str]) -> str:
    return next((name for name in wanted if name in columns), "")


def _shown(path: Path) -> str:
    return path.name.encode(errors="replace").decode()


def _by_table(image: FoundImage, rows: Mapping[str, Told]) -> Told:
    """Return what the rows of an image's files say; those of a series must say the same patient."""
    told = [rows.get(place, Told(refused=NOT_LISTED)) for place in image.places]
    if len({one.patient for one in told}) > 1:
        return Told(refused=TORN if all(one.patient for one in told) else NOT_LISTED)
    return next((one for one in told if one.refused), told[0])


def _by_name(image: FoundImage) -> Told:
    entities = read_entities(PurePosixPath(image.place))
    return Told(entities.subject, entities.session) if entities.is_clear else Told()


def _by_header(image: FoundImage) -> Told:
    header = image.header
    return Told(image.subject, f"{header.taken or ''} {header.dicom_study}") if header else Told()


def _first_folder(image: FoundImage) -> str:
    parts = PurePosixPath(image.place).parts
    return parts[0] if len(parts) > 1 else ""


def _by_folder(image: FoundImage, folders: Collection[str]) -> Told:
    folder = _first_folder(image)
    if folder not in folders:
        return Told()
    return Told(folder, "/".join(PurePosixPath(image.place).parts[1:-1]))


def _patient_folders(images: Sequence[FoundImage]) -> frozenset[str]:
    """Return the first folders where there are two, and they are not all named like classes."""
    folders = frozenset(folder for image in images if (folder := _first_folder(image)))
    is_told = len(folders) > 1 and not all(is_class(folder) for folder in folders)
    return folders if is_told else frozenset()


def _complete(told: Told, image: FoundImage) -> Told:
    """Return the same with what the image's name and header add."""
    header = image.header
    named = ""
    if header is not None:
        told = replace(
            told,
            age_years=told.age_years if told.age_years is not None else header.age_years,
            sex=told.sex or {"F": "female", "M": "male"}.get(header.sex or "", ""),
        )
        named = header.contrast or ("" if told.contrast else header.modality)
    elif image.kind == "volume":
        named = read_name(PurePosixPath(image.place)).contrast
    is_known = told.contrast in _CONTRASTS or named in {"", "else"}
    return replace(told, contrast=told.contrast if is_known else named)
