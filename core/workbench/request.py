"""From what a person types to a whole request: one condition for each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitrael.core.errors import UsageError
from vitrael.core.workbench.covariates import (
    ASK_WITHIN,
    NULL,
    ask_for,
    parse_settings,
    read_conditions,
)
from vitrael.core.workbench.sampling import SetRequest

if TYPE_CHECKING:
    from vitrael.core.configs import SamplerName
    from vitrael.core.workbench.folder import ModelDocument


def make_request(
    document: ModelDocument,
    *,
    settings: Sequence[str] = (),
    table: Path | None = None,
    count: int | None = None,
    unconditional: bool = False,
    extrapolate: bool = False,
    sampler: SamplerName | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    seed: int = 0,
) -> SetRequest:
    """Return the request for a set.

    ``settings`` such as ``sex=F`` hold for all samples; a ``table`` has a row for each. Raises
    UsageError for what does not go together, for a covariate that is missing or outside its range,
    and where a model that has not learned to is sampled without condition or guided.
    """
    if guidance != 1 and not document.takes_nothing:
        raise _no_dropout("the model cannot be guided", "--guidance")
    if unconditional:
        asked = _ask_nothing(document, settings, table, guidance=guidance)
        condition_BK = np.full((count or 1, len(document.covariates)), NULL, dtype=np.float32)
    else:
        asked = _ask(document, settings, table, count)
        rows = [ask_for(row, document.covariates, extrapolate=extrapolate) for row in asked]
        condition_BK = np.stack(rows)
    notes = (*document.provenance.notes, *_tell_beyond(asked, document))
    part = document.system.teacher
    return SetRequest(
        model=document.digest,
        covariates=document.covariates,
        condition_BK=condition_BK,
        asked=asked,
        seed=seed,
        sampler=sampler or part.sampler,
        steps=steps or part.sampling_steps,
        guidance=guidance,
        origin=document.provenance.origin,
        notes=notes,
    )


def _tell_beyond(asked: Sequence[Mapping[str, float]], document: ModelDocument) -> tuple[str, ...]:
    """Return a note for each covariate that was asked for beyond what the model has seen."""
    return tuple(
        f"some samples were asked for a {c.name} outside the trained range ({c.low:g} to {c.high:g}"
        f" {c.unit}): the model extrapolates"
        for c in document.covariates
        if any(not c.low <= row.get(c.name, c.low) <= c.high for row in asked)
    )


def _ask(
    document: ModelDocument, settings: Sequence[str], table: Path | None, count: int | None
) -> tuple[Mapping[str, float], ...]:
    common = parse_settings(settings)
    if table is None:
        return (common,) * (count or 1)
    if count is not None:
        raise UsageError(
            "--count and --conditions do not go together",
            why="the table has a row for each sample",
            fix="leave --count out",
        )
    rows = read_conditions(table, document.covariates)
    if twice := sorted({name for row in rows for name in row} & set(common)):
        raise UsageError(
            f"{twice[0]} is set and stands in the table", fix="leave one of the two out"
        )
    return tuple({**common, **row} for row in rows)


def _ask_nothing(
    document: ModelDocument, settings: Sequence[str], table: Path | None, *, guidance: float
) -> tuple[Mapping[str, float], ...]:
    if settings or table is not None or guidance != 1:
        raise UsageError(
            "--unconditional goes with no condition",
            why="it asks the model for nothing",
            fix="leave --set, --conditions and --guidance out, or --unconditional",
        )
    if not document.takes_nothing:
        raise _no_dropout("the model cannot be sampled without a condition", "--unconditional")
    return ()


def _no_dropout(what: str, option: str) -> UsageError:
    return UsageError(
        what,
        why="it never learned an image without its condition",
        fix=f"leave {option} out, or train with model.denoiser.condition_dropout = 0.1",
    )


def known_covariates(
    document: ModelDocument, settings: Sequence[str], *, fix: str = ASK_WITHIN
) -> dict[str, float]:
    """Return what is known of a patient, in units; it may leave covariates out.

    Raises UsageError, which advises ``fix``, for what the model was not trained on.
    """
    known = parse_settings(settings)
    middle = {c.name: (c.low + c.high) / 2 for c in document.covariates}
    ask_for({**middle, **known}, document.covariates, fix=fix)
    return known
