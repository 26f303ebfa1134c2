"""``vitrael study offer|start|stop``: this file only translates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrael.server.options import AS_JSON, DRY_RUN, HOME, YES

if TYPE_CHECKING:
    from vitrael.core.study import Study

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(epilog="Example: 'vitrael study offer study.toml --home /srv/vitrael/server'.")
@click.argument("file", type=_FILE)
@HOME
@DRY_RUN
@YES
@AS_JSON
def offer(file: Path, *, home: Path, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Offer a study to the sites that its roster names; each fetches it and consents.

    Exit codes: 0 offered; 2 the present one of that name runs; 3 wrong study; 4 a site that it
    names is not enrolled.
    """
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.offers import offer_study  # noqa: PLC0415

    def confirm(study: Study) -> None:
        if not yes:
            question = f"Offer {study.protocol.name} to {', '.join(study.roster.sites)}?"
            click.confirm(question, abort=True, err=True)

    study = offer_study(load_server(home), file, confirm=confirm, dry_run=dry_run)
    name, sites = study.protocol.name, ", ".join(study.roster.sites)
    facts = {
        "study": name,
        "protocol": study.protocol.digest,
        "sites": list(study.roster.sites),
        "offered": not dry_run,
    }
    told = f"{name} {'would be' if dry_run else 'is'} offered to {sites}"
    click.echo(json.dumps(facts) if as_json else told)


@click.command(epilog="Example: 'vitrael study start brain-demo --home /srv/vitrael/server'.")
@click.argument("name", metavar="STUDY")
@HOME
@DRY_RUN
@YES
@AS_JSON
def start(name: str, *, home: Path, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Run an offered study, or go on with it; `vitrael server up` must run.

    What is finished is kept. Exit codes: 0 it runs or has finished; 1 no coordinator runs, or the
    study failed at once; 2 it is not offered, or another one runs; 3 wrong study; 4 a site that it
    names is not enrolled; 6 refused by its gates, or 7, and a site was absent; 130 it was stopped.
    """
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.offers import (  # noqa: PLC0415
        demand_enrolled,
        find_expiry,
        load_offered,
        start_study,
        wait_for_order,
    )
    from vitrael.server.settings import utc_now  # noqa: PLC0415

    settings = load_server(home)
    study = load_offered(settings, name)
    demand_enrolled(settings, study)
    if (first := find_expiry(settings, study)) is not None:
        ends = f"the enrollment of site {first[0]} ends on {first[1]:%Y-%m-%d}, the first of all"
        click.echo(f"{ends}: a study that is not over by then ends with it", err=True)
    if dry_run:
        facts = {"study": name, "protocol": study.protocol.digest, "status": "offered"}
        click.echo(json.dumps(facts) if as_json else f"{name} would be started")
        return 0
    if not yes:
        sites = ", ".join(study.roster.sites)
        click.confirm(f"Start {name} with {sites}?", abort=True, err=True)
    state = wait_for_order(settings, start_study(settings, name, now=utc_now()))
    told = f"{name}: {state.status}" + (f", {state.sentence}" if state.sentence else "")
    click.echo(state.model_dump_json() if as_json else told)
    return 0 if state.status in {"running", "finished"} else state.exit_code or 1


@click.command(epilog="Example: 'vitrael study stop brain-demo --home /srv/vitrael/server'.")
@click.argument("name", metavar="STUDY")
@HOME
@DRY_RUN
@YES
@AS_JSON
def stop(name: str, *, home: Path, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Stop a study that runs; what it has finished is kept, and start goes on from there."""
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.offers import (  # noqa: PLC0415
        demand_at_work,
        demand_running,
        stop_study,
        wait_for_order,
    )
    from vitrael.server.settings import utc_now  # noqa: PLC0415

    settings = load_server(home)
    demand_at_work(settings, name)
    if not dry_run:
        if not yes:
            click.confirm(f"Stop {name}?", abort=True, err=True)
        demand_running(settings)
        wait_for_order(settings, stop_study(settings, name, now=utc_now()))
    facts = {"study": name, "stopped": not dry_run}
    told = f"{name} {'would be' if dry_run else 'is'} stopped"
    click.echo(json.dumps(facts) if as_json else told)
