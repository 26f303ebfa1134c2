"""What commands that take files tell: what they would do, and what became of each file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import click

from vitrael.core.errors import EXIT_PARTIAL, VitraelError

if TYPE_CHECKING:
    from vitrael.core.workbench.folder import ModelDocument
    from vitrael.core.workbench.inputs import Refused


class Finished(Protocol):
    """What every finished file has."""

    @property
    def number(self) -> int:
        """Which of the files it is, from 1."""

    @property
    def cut_frac(self) -> float:
        """Share of the brain that lies outside the model's grid."""


F = TypeVar("F", bound=Finished)


class Account(Generic[F]):
    """What became of each file so far: it is told also when an error ends the command early."""

    def __init__(
        self, show: Callable[[Sequence[F]], None], describe: Callable[[Sequence[F]], Any]
    ) -> None:
        """Take what shows finished files to a person, and what describes them as JSON."""
        self.done: list[F] = []
        self.refused: list[Refused] = []
        self._show = show
        self._describe = describe

    @contextmanager
    def tell(self, *, as_json: bool, facts: Mapping[str, object]) -> Iterator[None]:
        """Do what is within, and tell what became of the files; ``facts`` are for JSON."""
        try:
            yield
        except (VitraelError, KeyboardInterrupt) as error:
            if not as_json:
                self._show_all()
            elif isinstance(error, VitraelError):
                error.finished = self._told(facts)
            self._tell_shortcomings(as_json=as_json)
            raise
        if as_json:
            click.echo(json.dumps(self._told(facts)))
        else:
            self._show_all()
        self._tell_shortcomings(as_json=as_json)

    @property
    def exit_code(self) -> int | None:
        """None where all is well, else the code of a part or of a failure."""
        if self.refused and not self.done:
            return VitraelError.exit_code
        return EXIT_PARTIAL if self.refused else None

    def _told(self, facts: Mapping[str, object]) -> dict[str, object]:
        skipped = [{"file": str(one.path), "reason": one.reason} for one in self.refused]
        return {**facts, "files": self._describe(self.done), "skipped": skipped}

    def _show_all(self) -> None:
        if self.done:
            self._show(self.done)
        for left in self.refused:
            click.echo(f"{left.path}: skipped, {left.reason}")

    def _tell_shortcomings(self, *, as_json: bool) -> None:
        """Say on stderr, by numbers, whose brain the model's grid cuts, and what was skipped."""
        from vitrael.core.workbench.inputs import CUT_FRAC  # noqa: PLC0415

        for one in self.done:
            if one.cut_frac > CUT_FRAC:
                share = f"{100 * one.cut_frac:.1f} % of its brain lies outside the model's grid"
                click.echo(f"file {one.number}: {share}", err=True)
        for left in self.refused if as_json else ():
            click.echo(f"file {left.number} was skipped: {left.reason}", err=True)


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
