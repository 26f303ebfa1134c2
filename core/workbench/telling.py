"""What commands that take files tell: what they would do, and what became of each file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitrael.core.errors import EXIT_PARTIAL, VitraelError

if TYPE_CHECKING:
    from vitrael.core.workbench.folder import ModelDocument
    from vitrael.core.workbench.inputs import Refused
    from vitrael.core.workbench.scoring import Scored
    from vitrael.core.workbench.upsampling import Upsampled


def tell_plan(files: Sequence[Path], to: Path | None, *, as_json: bool) -> None:
    """Say which files would be read and where results would go."""
    if as_json:
        folder = None if to is None else str(to)
        told = [str(path) for path in files]
        click.echo(json.dumps({"files": told, "folder": folder, "written": False}))
    else:
        where = "nothing would be written" if to is None else f"results would be written into {to}"
        click.echo(f"{len(files)} files would be read; {where}")


def tell_origin(document: ModelDocument) -> None:
    """Say on stderr what the networks of an imported model have seen in other scans than these."""
    if document.provenance.origin != "imported":
        return
    for line in ("the model was imported; it is known of it:", *document.provenance.notes):
        click.echo(line, err=True)


def tell_cut(done: Sequence[Upsampled | Scored]) -> None:
    """Say on stderr whose brain the model's grid cuts."""
    from vitrael.core.workbench.inputs import CUT_FRAC  # noqa: PLC0415

    for one in done:
        if one.cut_frac > CUT_FRAC:
            share = f"{100 * one.cut_frac:.1f} % of its brain lies outside the model's grid"
            click.echo(f"file {one.number}: {share}", err=True)


def skipped(refused: Sequence[Refused]) -> list[dict[str, Any]]:
    """Return the files that could not be used as JSON."""
    return [{"file": str(one.path), "reason": one.reason} for one in refused]


def tell_refused(refused: Sequence[Refused], *, done: int) -> int | None:
    """Say on stderr which files could not be used and why; return the exit code."""
    for one in refused:
        click.echo(f"file {one.number} was skipped: {one.reason}", err=True)
    if refused and not done:
        return VitraelError.exit_code
    return EXIT_PARTIAL if refused else None
