"""``vitrael audit``: check journals alone and against each other, and read them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import date

    from vitrael.privacy.journal_cross import Account, Comparison
    from vitrael.privacy.journal_line import Line

JOURNAL = "journal.jsonl"
"""What the journal is called in every home folder."""

_LONGEST_SHOWN = 2000

_HOME = click.option(
    "--home",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default="this folder",
    help="Home folder of the coordinator or of a site, or a journal's file.",
)
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON on standard output.")


@click.group()
def audit() -> None:
    """Check journals, one against the other, and read them.

    The coordinator and each site write a line before anything goes and for whatever came. A journal
    holds counts, names of fields and digests, and nothing of a patient: a copy may be handed to
    the other side or to an auditor.

    Begin with 'vitrael audit verify --home HOME'.
    """


@audit.command()
@_HOME
@click.option(
    "--against",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A journal of the other side, or its home; may be given several times.",
)
@_AS_JSON
@click.pass_context
def verify(ctx: click.Context, home: Path, against: tuple[Path, ...], *, as_json: bool) -> None:
    """Find every changed, dropped, moved or cut line of a journal, and what another contradicts.

    Exits 1 when anything is wrong; each fault names the side and the line.

    Example: vitrael audit verify --home /srv/vitrael/coordinator --against north-journal.jsonl
    """
    from vitrael.privacy.journal_cross import compare_journals, read_account  # noqa: PLC0415

    accounts = []
    for path in (home, *against):
        with _readable(path):
            accounts.append(read_account(_journal_of(path), in_home=path.is_dir()))
    account, *others = accounts
    comparisons = [compare_journals(account, other) for other in others]
    if as_json:
        click.echo(json.dumps(_document([account, *others], comparisons)))
    else:
        _tell([account, *others], comparisons)
    if _is_wrong([account, *others], comparisons):
        ctx.exit(1)


@audit.command()
@_HOME
@click.option("--site", help="Only lines about this site.")
@click.option("--study", "protocol", help="Only lines of the protocol whose digest begins so.")
@click.option("--since", type=click.DateTime(("%Y-%m-%d",)), help="Only from this day on, UTC.")
@_AS_JSON
def show(
    home: Path,
    site: str | None,
    protocol: str | None,
    since: date | None,
    *,
    as_json: bool,
) -> None:
    """Show the lines of a journal, oldest first: the coordinator's or a site's.

    A site's own page is 'vitrael site journal --html FILE'.

    Example: vitrael audit show --home /srv/vitrael/coordinator --site north --since 2031-05-01
    """
    from vitrael.privacy.journal import read_journal, tell_faults, verify_copy  # noqa: PLC0415
    from vitrael.privacy.journal_line import covers, describe_line  # noqa: PLC0415

    day = "" if since is None else since.strftime("%Y-%m-%d")
    with _readable(home):
        path = _journal_of(home)
        if faults := verify_copy(path):
            raise tell_faults(faults)
        lines = [
            line
            for line in read_journal(path)
            if covers(line, protocol=protocol or "", since=day)
            and (site is None or site in {line.to, line.origin})
        ]
        told = "" if site is None else _last_told(read_journal(path), site)
    if as_json:
        document = {"lines": [line.model_dump(mode="json") for line in lines]}
        click.echo(json.dumps({**document, **({"told": told} if told else {})}))
        return
    for line in lines:
        click.echo(describe_line(line))
    click.echo(f"{len(lines)} lines", err=True)
    if told:
        click.echo(f"the last line of its journal that {site} told: {told}", err=True)


def _last_told(lines: Iterable[Line], site: str) -> str:
    """Return ``N:HASH`` of what a site's last reply told of its journal; empty if none did."""
    told = ""
    for line in lines:
        if line.event == "received" and line.origin == site and line.other:
            told = f"{line.other_lines}:{line.other}"
    return told


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the journal that the system does not let this user read."""
    from vitrael.core.errors import storage_error  # noqa: PLC0415

    try:
        yield
    except OSError as error:
        raise storage_error(f"the journal at {path}", error) from error


def _journal_of(path: Path) -> Path:
    """Return the journal's file of a home; raise UsageError when there is none."""
    from vitrael.core.errors import UsageError  # noqa: PLC0415

    file = path / JOURNAL if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"there is no journal at {file}",
            why="none has begun there, or it was removed",
            fix="name the home of a coordinator or a site, or a journal's file",
        )
    return file


def _is_wrong(accounts: list[Account], comparisons: list[Comparison]) -> bool:
    return any(a.faults for a in accounts) or any(c.faults for c in comparisons)


def _document(accounts: list[Account], comparisons: list[Comparison]) -> dict[str, Any]:
    return {
        "whole": not _is_wrong(accounts, comparisons),
        "journals": [
            {
                "path": str(account.path),
                "side": account.side,
                "lines": len(account.lines),
                "faults": [{"line": fault.line, "what": fault.what} for fault in account.faults],
            }
            for account in accounts
        ],
        "comparisons": [
            {
                "site": compared.site,
                "replies": compared.replies,
                "heads": compared.heads,
                "faults": [
                    {"side": side, "line": fault.line, "what": fault.what}
                    for side, fault in compared.faults
                ],
            }
            for compared in comparisons
        ],
    }


def _tell(accounts: list[Account], comparisons: list[Comparison]) -> None:
    for account in accounts:
        state = f"{len(account.faults)} faults" if account.faults else "whole"
        whose = account.side or "nobody's yet"
        _echo(f"{account.path}: {whose}, {len(account.lines)} lines, {state}")
        for fault in account.faults:
            _echo(f"  line {fault.line}: {fault.what}")
    for compared in comparisons:
        state = f"{len(compared.faults)} contradictions" if compared.faults else "they agree"
        _echo(
            f"the coordinator and {f'site {compared.site}' if compared.site else 'a site'}: "
            f"{compared.replies} replies and {compared.heads} quoted lines compared, {state}"
        )
        for side, fault in compared.faults:
            where = f", line {fault.line}" if fault.line else ""
            _echo(f"  journal of {side}{where}: {fault.what}")
    if _is_wrong(accounts, comparisons):
        click.echo(
            "To do: restore what is named from a backup, or find out who changed it; a copy that "
            "was taken too early lacks lines at its end, so copy it again first.",
            err=True,
        )


def _echo(text: str) -> None:
    """Write a line in which names stand that the other side has chosen."""
    from vitrael.core.text import one_line  # noqa: PLC0415

    click.echo(one_line(text, _LONGEST_SHOWN))
