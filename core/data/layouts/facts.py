"""What a row of a table says of a patient: words, numbers and dates, each read with suspicion.

What cannot be understood counts as unknown, and is counted; it is never guessed. The one
exception is an ejection fraction that cannot be: its whole image is refused, since such a table
has its columns mixed up.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import get_args

from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.manifest import COVARIATE_BOUNDS, Word
from vitrael.core.data.tables import FORMULA, Row, Table, column_name

NO_PATIENT = "its row in the table names no patient"
DISAGREEMENT = "two rows of the table disagree about it"
IMPOSSIBLE_EF = "its EF in the table is not between 0 and 100 %"

SUBJECT_COLUMNS = (
    *("subject", "subject_id", "subjectid", "patient", "patient_id", "patientid"),
    *("participant", "participant_id"),
)
_SESSION_COLUMNS = ("session", "session_id", "ses", "visit", "visit_id", "timepoint", "study_id")
_DATE_COLUMNS = ("date", "taken", "study_date", "scan_date", "acq_date", "acq_time")
_SEX_COLUMNS = ("sex", "gender", "patient_sex", "patient_gender", "geschlecht")
_COVARIATE_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "age_years": ("age_years", "age", "patient_age", "alter"),
    "ef_frac": ("ef_frac", "ef", "lvef", "ejection_fraction"),
    "esv_ml": ("esv_ml", "esv", "lvesv"),
    "edv_ml": ("edv_ml", "edv", "lvedv"),
    **{name: (name,) for name in ("ventricle_ml", "brain_ml", "lesion_ml")},
}
SEX_COLUMNS = frozenset(_SEX_COLUMNS)
AGE_COLUMNS = frozenset(_COVARIATE_COLUMNS["age_years"])
LABEL_COLUMNS: Mapping[str, str] = {
    **{name: name for name in ("label", "class", "category", "diagnosis", "finding", "group")},
    **{name: name for name in ("view", "projection", "laterality", "probe")},
    "finding_labels": "finding",
    "view_position": "projection",
    "viewposition": "projection",
}
"""Columns that become a label, and its name. Others are not taken: who knows what stands there."""
FACT_COLUMNS = frozenset(
    [
        *(*SUBJECT_COLUMNS, *_SESSION_COLUMNS, *_SEX_COLUMNS, *LABEL_COLUMNS),
        *(column for columns in _COVARIATE_COLUMNS.values() for column in columns),
    ]
)

_MALE = {"m", "male", "man", "männlich", "maennlich", "mann"}
_FEMALE = {"f", "female", "woman", "w", "weiblich", "frau"}
_ZERO_ONE = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0}
_ONE_TWO = {"1": 1.0, "1.0": 1.0, "2": 0.0, "2.0": 0.0, "0": None, "9": None}
"""ISO/IEC 5218: 1 male, 2 female, 0 not known, 9 not applicable."""
_UNSAID = {"", "-", "n/a", "na", "n.a.", "#n/a", "nan", "none", "null", "?", "unknown"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
_AGE = re.compile(
    r"(\d+(?:\.\d+)?)\s*(y|yr|yrs|years?|j|jahre?|m|mo|months?|w|weeks?|d|days?)?", re.IGNORECASE
)
_IN_A_YEAR = {"m": 12.0, "w": 365.25 / 7, "d": 365.25}
_DATE = re.compile(r"(\d{4})(-?)(\d\d)\2(\d\d)(?:[T ].*)?")
_NO_LABEL = (
    "labels of the column {column}, dropped (write them with at most 64 of A-Z, a-z, 0-9, blanks "
    "and _.+-, the first a letter or a digit)"
)
_WORD = re.compile(get_args(Word)[1].pattern)


@dataclass(frozen=True, slots=True, repr=False)
class Facts:
    """What is known of one image or one visit; blank where nothing is."""

    subject: str = ""
    session: str = ""
    site: str = ""
    modality: str = ""
    taken: date | None = None
    covariates: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    """Why the image must not be used."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Facts(private)"


NOTHING = Facts()


def overlay(facts: Iterable[Facts]) -> Facts:
    """Return one after the other: a later one's word stands, a blank one erases nothing."""
    result = NOTHING
    for later in facts:
        result = Facts(
            subject=later.subject or result.subject,
            session=later.session or result.session,
            site=later.site or result.site,
            modality=later.modality or result.modality,
            taken=later.taken or result.taken,
            covariates={**result.covariates, **later.covariates},
            labels={**result.labels, **later.labels},
            refused=later.refused or result.refused,
        )
    return result


def reconcile(first: Facts, second: Facts) -> Facts:
    """Return what two rows say of one image; refused when they contradict each other."""
    pairs: list[tuple[object, object]] = [
        (first.subject, second.subject),
        (first.session, second.session),
        (first.site, second.site),
        (first.modality, second.modality),
        (first.taken, second.taken),
    ]
    for one, other in ((first.covariates, second.covariates), (first.labels, second.labels)):
        pairs += [(one[name], other[name]) for name in one.keys() & other.keys()]
    both = overlay((first, second))
    told = [pair for pair in pairs if not {"", None}.intersection(pair)]
    if any(one != other for one, other in told):
        return overlay((both, Facts(refused=DISAGREEMENT)))
    return both


def is_said(text: str) -> bool:
    """Return whether a cell says anything: neither blank nor a word for *unknown*."""
    return text.strip().lower() not in _UNSAID


def is_age(text: str) -> bool:
    """Return whether a text is an age, with or without its unit."""
    return _AGE.fullmatch(text) is not None


def word_for_sex(text: str) -> str:
    """Return ``male`` or ``female`` for a word that says so; empty for any other."""
    word = text.strip().lower()
    return "male" if word in _MALE else "female" if word in _FEMALE else ""


class FactReader:
    """Reads the rows of one table; how sex is coded is decided over the whole column."""

    def __init__(self, table: Table, ledger: Ledger) -> None:
        self._ledger = ledger
        self._has_decimal_comma = table.has_decimal_comma
        coded = {text.removesuffix(".0") for name in _SEX_COLUMNS for text in table.values(name)}
        self._sex_codes = _ONE_TWO if "2" in coded else _ZERO_ONE
        self.has_subjects = any(name in table.columns for name in SUBJECT_COLUMNS)

    def read(self, row: Row) -> Facts:
        """Return what a row says; refused for a formula, a missing patient, an impossible EF."""
        if row.has_formula:
            return Facts(refused=FORMULA)
        cells = {**_notes(row.cells.get("notes", "")), **row.cells}
        said = {name: text for name, text in cells.items() if is_said(text)}
        subject = unicodedata.normalize("NFC", _first(said, SUBJECT_COLUMNS))
        covariates = {
            name: value
            for name, columns in _COVARIATE_COLUMNS.items()
            if (text := _first(said, columns))
            and (value := self._covariate(name, text)) is not None
        }
        if (sex := self._sex(_first(said, _SEX_COLUMNS))) is not None:
            covariates["sex"] = sex
        refused = NO_PATIENT if self.has_subjects and not subject else ""
        low, high = COVARIATE_BOUNDS["ef_frac"]
        if not low <= covariates.get("ef_frac", low) <= high:
            del covariates["ef_frac"]
            refused = IMPOSSIBLE_EF
        return Facts(
            subject=subject,
            session=_first(said, _SESSION_COLUMNS),
            site=said.get("site", ""),
            modality=said.get("modality", ""),
            taken=self._date(_first(said, _DATE_COLUMNS)),
            covariates=covariates,
            labels=self._labels(said),
            refused=refused,
        )

    def _covariate(self, name: str, text: str) -> float | None:
        if not text:
            return None
        value = self._age(text) if name == "age_years" else self._number(text)
        if name == "ef_frac" and value is not None:
            return value / 100 if value > 1 or text.endswith("%") else value
        low, high = COVARIATE_BOUNDS[name]
        if value is None or not low <= value <= high:
            self._ledger.count(f"values of {name} that cannot be, taken as unknown")
            return None
        return value

    def _number(self, text: str) -> float | None:
        text = self._with_point(text.removesuffix("%").strip())
        return float(text) if _NUMBER.fullmatch(text.lower()) else None

    def _age(self, text: str) -> float | None:
        match = _AGE.fullmatch(self._with_point(text))
        if match is None:
            return None
        return float(match[1]) / _IN_A_YEAR.get((match[2] or "y")[0].lower(), 1.0)

    def _with_point(self, text: str) -> str:
        return text.replace(",", ".") if self._has_decimal_comma else text

    def _sex(self, text: str) -> float | None:
        word = text.lower()
        if word in _MALE | _FEMALE:
            return float(word in _MALE)
        value = self._sex_codes.get(word)
        if value is None and text and word not in self._sex_codes:
            self._ledger.count("words for sex that are not understood, taken as unknown")
        return value

    def _date(self, text: str) -> date | None:
        match = _DATE.fullmatch(text)
        try:
            if match is not None:
                return date(int(match[1]), int(match[3]), int(match[4]))
        except ValueError:
            pass
        if text:
            self._ledger.count("dates that are not written 2020-12-31, taken as unknown")
        return None

    def _labels(self, said: Mapping[str, str]) -> dict[str, str]:
        labels: dict[str, str] = {}
        for column, name in LABEL_COLUMNS.items():
            text = said.get(column, "")
            if _WORD.fullmatch(text):
                labels.setdefault(name, text)
            elif text:
                self._ledger.count(_NO_LABEL.format(column=column))
        return labels


def is_label(text: str) -> bool:
    """Return whether a text may stand as a label in a manifest."""
    return _WORD.fullmatch(text) is not None


def _notes(text: str) -> dict[str, str]:
    """Return what ``age=39;sex=m`` says of covariates and labels; who it is stands in columns."""
    pairs = (part.split("=", 1) for part in text.split(";") if "=" in part)
    notes = {column_name(name): value.strip() for name, value in pairs}
    kept = FACT_COLUMNS - {*SUBJECT_COLUMNS, *_SESSION_COLUMNS}
    return {name: value for name, value in notes.items() if name in kept and value}


def _first(said: Mapping[str, str], columns: Iterable[str]) -> str:
    return next((said[name] for name in columns if name in said), "")
