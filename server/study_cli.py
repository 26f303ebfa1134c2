"""``vitrael study``: offer, start, amend, show and stop; this file only translates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrael.server.options import AS_JSON, DRY_RUN, HOME, YES

if TYPE_CHECKING:
    from vitrael.core.study import Study
    from vitrael.server.config import ServerSettings

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(epilog="Example: 'vitrael study offer study.toml --home /srv/vitrael/server'.")
@click.argument("file", type=_FILE)
@click.option(
    "--weights",
    type=_FILE,
    help="Safetensors that experts begin with, where the study names their digest.",
)
@HOME
@DRY_RUN
@YES
@AS_JSON
def offer(
    file: Path,
    *,
    weights: Path | None,
    home: Path,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
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

    study = offer_study(load_server(home), file, confirm=confirm, dry_run=dry_run, weights=weights)
    name, sites = study.protocol.name, ", ".join(study.roster.sites)
    facts = {
        "study": name,
        "protocol": study.protocol.digest,
        "sites": list(study.roster.sites),
        "offered": not dry_run,
    }
    told = f"{name} {'would be' if dry_run else 'is'} offered to {sites}"
    click.echo(json.dumps(facts) if as_json else told)


@click.command(
    "add-expert",
    epilog='Example: \'vitrael study add-expert echo-views coast --label "apical 4" A4C '
    "--home /srv/vitrael/server'.",
)
@click.argument("name", metavar="STUDY")
@click.argument("site")
@click.option(
    "--label",
    "labels",
    nargs=2,
    multiple=True,
    metavar="WORD VIEW",
    help="The site's own word for a view of the study; may be given several times.",
)
@HOME
@DRY_RUN
@YES
@AS_JSON
def add_expert(
    name: str,
    site: str,
    labels: tuple[tuple[str, str], ...],
    *,
    home: Path,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Offer STUDY again with SITE on its roster, whose expert joins the others.

    No expert is trained again: the others run the new one once, and fusion is trained anew. Every
    site fetches and consents, then `vitrael study start` goes on. Exit codes as those of offer.
    """
    from vitrael.server.amendments import add_expert as amend  # noqa: PLC0415
    from vitrael.server.config import load_server  # noqa: PLC0415

    settings = load_server(home)
    document = amend(settings, name, site, labels=dict(labels))
    _offer_amended(settings, name, document, dry_run=dry_run, yes=yes, as_json=as_json)


@click.command(
    "drop-expert",
    epilog="Example: 'vitrael study drop-expert echo-views coast --home /srv/vitrael/server'.",
)
@click.argument("name", metavar="STUDY")
@click.argument("site")
@HOME
@DRY_RUN
@YES
@AS_JSON
def drop_expert(
    name: str, site: str, *, home: Path, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Offer STUDY again without SITE: the others' experts stay, and their fusion is trained anew.

    Every site fetches and consents, then `vitrael study start` goes on. Exit codes as those of
    offer.
    """
    from vitrael.server.amendments import drop_expert as amend  # noqa: PLC0415
    from vitrael.server.config import load_server  # noqa: PLC0415

    settings = load_server(home)
    document = amend(settings, name, site)
    _offer_amended(settings, name, document, dry_run=dry_run, yes=yes, as_json=as_json)


def _offer_amended(
    settings: ServerSettings,
    name: str,
    document: bytes,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    from vitrael.server.offers import offer_document  # noqa: PLC0415

    def confirm(study: Study) -> None:
        if not yes:
            question = f"Offer {name} to {', '.join(study.roster.sites)}?"
            click.confirm(question, abort=True, err=True)

    study = offer_document(settings, document, label=name, confirm=confirm, dry_run=dry_run)
    facts = {
        "study": name,
        "protocol": study.protocol.digest,
        "sites": list(study.roster.sites),
        "predecessor": study.roster.predecessor,
        "offered": not dry_run,
    }
    told = f"{name} {'would be' if dry_run else 'is'} offered to {', '.join(study.roster.sites)}"
    click.echo(json.dumps(facts) if as_json else told)
    click.echo(
        "every one of them fetches it and consents again; no expert is trained twice. Once all "
        f"have: vitrael study start {name}",
        err=True,
    )


@click.command(epilog="Example: 'vitrael study table --home /srv/vitrael/server'.")
@HOME
@AS_JSON
def table(*, home: Path, as_json: bool) -> None:
    """Show how often experts, their fusion and its rivals are right, of the study that ran last."""
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.studies.tables import read_comparison, show_whole  # noqa: PLC0415

    comparison = read_comparison(load_server(home).home)
    click.echo(json.dumps(comparison) if as_json else "\n".join(show_whole(comparison)))


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
