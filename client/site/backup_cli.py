"""``vitrael site backup`` and ``restore``: a home in one encrypted file, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrael.client.site.options import AS_JSON, HOME, demand_owner, private_files, utc_now
from vitrael.core.errors import UsageError

if TYPE_CHECKING:
    from vitrael.client.site.backup.contents import Manifest

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("file", type=_FILE)
@HOME
@AS_JSON
@private_files()
def backup(file: Path, home: Path, *, as_json: bool) -> None:
    """Write keys, decisions, journal and what studies left behind, encrypted, into FILE.

    Cohorts are not in it. The passphrase is asked for, or comes from the systemd credential
    vitrael-backup-passphrase or the file that VITRAEL_BACKUP_PASSPHRASE_FILE names; without it
    nobody opens the file. Shown are its number and the journal's last line in it.

    Example: vitrael site backup /mnt/safe/north-1.vitrael --home /srv/vitrael/north
    """
    from vitrael.client.site.backup.save import save_backup  # noqa: PLC0415
    from vitrael.client.site.passphrase import read_passphrase  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415

    demand_owner(home)
    settings = load_settings(home)
    if file.exists():  # before anybody thinks of a passphrase
        raise UsageError(f"{file} exists already", fix="give each backup a name of its own")
    passphrase = read_passphrase("backup", new=True)
    manifest = save_backup(settings, file, passphrase=passphrase, clock=utc_now)
    if as_json:
        click.echo(json.dumps({**_document(manifest), "bytes": file.stat().st_size}))
    else:
        click.echo(_describe(manifest))


@click.command()
@click.argument("file", type=_FILE, required=False)
@HOME
@click.option(
    "--expect-journal",
    "expected",
    metavar="N:HASH",
    help="The last line of this journal that the coordinator was told; 0 before the first reply, "
    "'none' where no reply has reached it.",
)
@click.option("--dry-run", is_flag=True, help="Read and check all of FILE; restore nothing.")
@click.option("--yes", is_flag=True, help="Restore without asking.")
@AS_JSON
@private_files()
def restore(
    file: Path | None, home: Path, *, expected: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Restore the backup FILE into a new home, or into one that has lost some of it.

    A backup that is older than what the home knows is refused, but where the damaged lines of its
    journal are in it: these alone are taken, and all else of the home stays. Decisions of the home
    are never undone. Where the home knows nothing, no
    task is answered until a new task of the coordinator quotes a line that the journal has, or
    until --expect-journal names the last one that the coordinator was told, now or later without
    FILE.

    Example: vitrael site restore /mnt/safe/north-1.vitrael --home /srv/vitrael/north-2
    """
    from vitrael.client.site.backup.heads import parse_expected  # noqa: PLC0415
    from vitrael.client.site.backup.restore import restore_backup  # noqa: PLC0415
    from vitrael.client.site.backup.restored import confirm_restore  # noqa: PLC0415
    from vitrael.client.site.passphrase import read_passphrase  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415

    demand_owner(home)
    newest = None if expected is None else parse_expected(expected)
    if file is None:
        if newest is None:
            raise UsageError("no backup is named", fix="give FILE, or --expect-journal N:HASH")
        confirm_restore(load_settings(home).home, newest)
        click.echo("the journal has that line: tasks are answered", err=True)
        return
    passphrase = read_passphrase("backup")
    if not dry_run and not yes:
        click.confirm(f"Restore {file.name} into {home}?", abort=True, err=True)
    outcome = restore_backup(
        file, home, passphrase=passphrase, expected=newest, clock=utc_now, dry_run=dry_run
    )
    if as_json:
        told = {"confirmed": outcome.confirmed, "stays": outcome.stays}
        document = {**_document(outcome.manifest), **told}
        click.echo(json.dumps({**document, "restored": not dry_run}))
    else:
        click.echo(_describe(outcome.manifest))
    if outcome.stays == "all":
        click.echo("the damaged lines of the journal alone are taken: the home is newer", err=True)
    if not dry_run and not outcome.confirmed:
        click.echo(
            "no task is answered before a new one quotes a line that this journal has, or "
            "'vitrael site restore --expect-journal N:HASH' names the last one that the "
            "coordinator was told",
            err=True,
        )


def _document(manifest: Manifest) -> dict[str, object]:
    return {
        "site": manifest.site,
        "number": manifest.number,
        "created_utc": manifest.created_utc,
        "package_version": manifest.package_version,
        "journal": f"{manifest.journal.lines}:{manifest.journal.hash}",
    }


def _describe(manifest: Manifest) -> str:
    return "\n".join(f"{name:<16} {value}" for name, value in _document(manifest).items())
