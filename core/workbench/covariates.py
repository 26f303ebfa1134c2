"""What a model of the workbench can be asked for: covariates with units and trained ranges.

``core.data.conditions`` clips what lies outside a study's ranges, since a patient is who he is.
Here a person asks: what lies outside is refused, or taken as it stands when he insists.

Axes: B rows, K covariates in the order of the condition vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from vitrael.core.configs import Section
from vitrael.core.data.layouts.facts import (
    AGE_COLUMNS,
    SEX_COLUMNS,
    FactReader,
    word_for_sex,
)
from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.tables import Row, Table, read_table
from vitrael.core.errors import DataError, UsageError

UNITS: Final[Mapping[str, str]] = {
    "age_years": "years",
    "sex": "0 female, 1 male",
    "ventricle_ml": "ml",
    "brain_ml": "ml",
}
"""Covariate -> the unit in which it is asked for."""

NULL: Final = -1.0
"""Every entry of the condition that means *none*; see ``core.sampling.denoisers``."""

ASK_WITHIN: Final = "ask for a value within, or give --extrapolate"
"""The remedy for a value outside its range, where extrapolating can be chosen."""

_ASKED: Final = "asked_"
_CALLED: Final[Mapping[str, str]] = {
    **dict.fromkeys(AGE_COLUMNS, "age_years"),
    **dict.fromkeys(SEX_COLUMNS, "sex"),
}
"""Name of a column -> its covariate, where the two differ or may."""


class Covariate(Section):
    """One number that a model is conditioned on; ``low`` and ``high`` are told to it as 0 and 1."""

    name: str
    low: float
    high: float
    unit: str


def ask_for(
    values: Mapping[str, float],
    covariates: Sequence[Covariate],
    *,
    extrapolate: bool = False,
    fix: str = ASK_WITHIN,
) -> np.ndarray:
    """Return one condition ``[K]``, float32, for values in their units.

    Raises UsageError, which names the covariate and never its value, for one that is missing,
    unknown or not finite, and for one outside the trained range unless ``extrapolate``: that one
    advises ``fix``.
    """
    names = [covariate.name for covariate in covariates]
    if unknown := sorted(set(values) - set(names)):
        raise UsageError(
            f"the model knows no covariate {unknown[0]}", fix=f"choose from {', '.join(names)}"
        )
    if missing := [name for name in names if name not in values]:
        raise UsageError(
            f"the covariate {missing[0]} is missing",
            why="the model was trained with it and draws nothing without",
            fix=f"give --set {missing[0]}=VALUE, or --unconditional where the model allows it",
        )
    for covariate in covariates:
        _demand_finite(values[covariate.name], covariate)
        if not extrapolate:
            _demand_trained(values[covariate.name], covariate, fix=fix)
    return scale_values(np.array([[values[name] for name in names]]), covariates).reshape(-1)


def _demand_finite(value: float, covariate: Covariate) -> None:
    if not np.isfinite(value):
        raise UsageError(f"the covariate {covariate.name} is not finite", fix="give a number")


def _demand_trained(value: float, covariate: Covariate, *, fix: str) -> None:
    if not covariate.low <= value <= covariate.high:
        raise UsageError(
            f"{covariate.name} lies outside the trained range",
            why=f"the model has seen {covariate.low:g} to {covariate.high:g} ({covariate.unit})",
            fix=fix,
        )


def scale_values(value_BK: np.ndarray, covariates: Sequence[Covariate]) -> np.ndarray:
    """Return float32 conditions, linear in the ranges and not clipped."""
    low_K, high_K = _ranges(covariates)
    return np.asarray((value_BK - low_K) / (high_K - low_K), dtype=np.float32)


def unscale_values(condition_BK: np.ndarray, covariates: Sequence[Covariate]) -> np.ndarray:
    """Return float64 values in their units, the inverse of ``scale_values``."""
    low_K, high_K = _ranges(covariates)
    return np.asarray(low_K + condition_BK.astype(np.float64) * (high_K - low_K))


def _ranges(covariates: Sequence[Covariate]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c.low for c in covariates]), np.array([c.high for c in covariates])


def parse_settings(settings: Sequence[str]) -> dict[str, float]:
    """Return what ``age_years=70`` and ``sex=F`` say; ``age=70`` says the first, as in a table.

    Raises UsageError for what cannot be understood; no message holds a value, which may be a
    patient's.
    """
    values: dict[str, float] = {}
    for text in settings:
        given, equals, said = (part.strip() for part in text.partition("="))
        name = _CALLED.get(given, given)
        if not equals or not name or name in values:
            raise UsageError(
                f"--set {name} cannot be understood" if equals and name else "a --set has no name",
                why="the covariate is set twice" if name in values else "it is no NAME=VALUE",
                fix="write --set age_years=70",
            )
        values[name] = _number(name, said)
    return values


def _number(name: str, said: str) -> float:
    word = word_for_sex(said) if name == "sex" else ""
    if word:
        return float(word == "male")
    try:
        return float(said)
    except ValueError:
        example = "F, M or a number from 0 to 1" if name == "sex" else "a number"
        raise UsageError(f"the value of {name} is no number", fix=f"write {example}") from None


def read_conditions(path: Path, covariates: Sequence[Covariate]) -> list[dict[str, float]]:
    """Return what each row of a table asks for, in units.

    A column is called by its covariate, also ``age`` for ``age_years``, and with ``asked_`` before
    it as in a set's own ``participants.tsv``. Raises DataError for a cell that cannot be
    understood, with row and column, and for a table without a row.
    """
    table = read_table(path)
    plain = Table(
        columns=tuple(name.removeprefix(_ASKED) for name in table.columns),
        has_decimal_comma=table.has_decimal_comma,
        cells=table.cells,
    )
    if len(set(plain.columns)) < len(plain.columns):
        raise DataError("the table of conditions has a column twice", fix="remove one of them")
    reader = FactReader(plain, Ledger())
    asked = [
        _read_row(reader, row, covariates, number) for number, row in enumerate(plain.rows(), 1)
    ]
    if not asked:
        raise DataError("the table of conditions has no row", fix="write one row for each sample")
    return asked


def _read_row(
    reader: FactReader, row: Row, covariates: Sequence[Covariate], number: int
) -> dict[str, float]:
    told = reader.read(row).covariates
    wanted = {covariate.name for covariate in covariates}
    named = {_CALLED.get(column, column) for column in row.cells}
    if vague := sorted((wanted & named) - told.keys()):
        raise DataError(
            f"row {number} of the table of conditions cannot be understood",
            why=f"{vague[0]} is no possible value",
            fix="correct the cell",
        )
    return {name: value for name, value in told.items() if name in wanted}
