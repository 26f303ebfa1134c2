"""``vitrael site journal``: read what left, on the terminal, as JSON or as a page."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrael.client.site.options import AS_JSON, HOME, private_files, utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from vitrael.client.site.settings import SiteSettings
    from vitrael.privacy.journal import Fault, Kept, Line


@click.command()
@HOME
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page for reading and printing; it needs no network.",
)
@click.option("--study", help="Only this study: its name, or the digest of its protocol.")
@click.option("--since", type=click.DateTime(("%Y-%m-%d",)), help="Only from this day on, UTC.")
@AS_JSON
@click.pass_context
@private_files()
def journal(
    ctx: click.Context,
    home: Path,
    html: Path | None,
    study: str | None,
    since: datetime | None,
    *,
    as_json: bool,
) -> None:
    """Show all that left this site: when, in which round, how many bytes, to whom, and what.

    Exits 1 and tells the fault alone when the journal was removed, cut or changed.

    Example: vitrael site journal --home /srv/vitrael/north --html journal.html
    """
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415
    from vitrael.privacy.journal import read_journal, verify_journal  # noqa: PLC0415
    from vitrael.privacy.journal_line import DEPARTURES, covers  # noqa: PLC0415

    settings = load_settings(home)
    kept, studies = _remembered(settings)
    faults = verify_journal(settings.journal, kept=kept)
    every = [] if faults else list(read_journal(settings.journal))
    day = "" if since is None else since.strftime("%Y-%m-%d")
    protocols = _protocols_of(study, studies)
    lines = [line for line in every if any(covers(line, protocol=p, since=day) for p in protocols)]
    if html is not None:
        limits = [f"lines of the study {study}"] if study else []
        limits += [f"what was written since {day}"] if day else []
        _write_page(html, settings, every, lines, faults, studies=studies, limits=tuple(limits))
    total = sum(line.bytes for line in lines if line.event in DEPARTURES)
    if as_json:
        click.echo(json.dumps(_document(lines, faults, total=total)))
    elif faults:
        from vitrael.privacy.journal import tell_faults  # noqa: PLC0415

        raise tell_faults(faults)
    else:
        _tell(lines, total=total, to_page=html is not None)
        began = settings.journal.exists()
        click.echo("the journal is whole" if began else "no journal has begun", err=True)
    if faults:
        ctx.exit(1)


def _document(lines: Sequence[Line], faults: Sequence[Fault], *, total: int) -> dict[str, object]:
    from vitrael.privacy.journal import tell_faults  # noqa: PLC0415

    document: dict[str, object] = {
        "lines": [line.model_dump(mode="json") for line in lines],
        "bytes": total,
        "faults": [{"line": fault.line, "what": fault.what} for fault in faults],
    }
    if faults:
        document["fix"] = tell_faults(faults).fix
    return document


def _tell(lines: Sequence[Line], *, total: int, to_page: bool) -> None:
    from vitrael.privacy.journal_line import describe_line  # noqa: PLC0415

    for line in () if to_page else lines:
        click.echo(describe_line(line))
    click.echo(f"{len(lines)} lines, {total} bytes left this site", err=to_page)


def _write_page(
    path: Path,
    settings: SiteSettings,
    every: Sequence[Line],
    lines: Sequence[Line],
    faults: Sequence[Fault],
    *,
    studies: dict[str, str],
    limits: tuple[str, ...],
) -> None:
    from vitrael.client.site.journal_page import JournalPage, render_page  # noqa: PLC0415
    from vitrael.core.digest import write_atomically  # noqa: PLC0415
    from vitrael.core.errors import storage_error  # noqa: PLC0415

    page = JournalPage(
        site=settings.name,
        created_utc=utc_now(),
        lines=lines,
        whole=len(every),
        last_hash=every[-1].hash if every else "",
        faults=faults,
        limits=limits,
        consents=[line for line in every if line.event == "consent"],
        studies=studies,
    )
    try:
        write_atomically(path, render_page(page).encode())
    except OSError as error:
        raise storage_error("the page", error) from error
    click.echo(f"written to {path}", err=True)


def _protocols_of(study: str | None, studies: dict[str, str]) -> tuple[str, ...]:
    """Return the protocols that are asked for; the empty one stands for all."""
    if study is None:
        return ("",)
    return tuple(digest for digest, name in studies.items() if name == study) or (study,)


def _remembered(settings: SiteSettings) -> tuple[Kept | None, dict[str, str]]:
    """Return where the store says that the journal ended, and the names of consented studies.

    No store is made for the question.
    """
    from vitrael.client.site.store import Store  # noqa: PLC0415
    from vitrael.core.digest import digest_json  # noqa: PLC0415

    if not settings.store.exists():
        return None, {}
    with closing(Store(settings.store, updates=settings.updates, read_only=True)) as store:
        protocols = [consent.study.get("protocol") for consent in store.list_consents()]
        named = {str(digest_json(p)): str(p.get("name")) for p in protocols if isinstance(p, dict)}
        return store.read_head(), named
