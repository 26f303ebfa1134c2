"""``vitrael demo``, ``study`` and ``release``: this file only translates."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Literal

import click

from vitrael.core.errors import VitraelError
from vitrael.server.lineage_cli import affected, recall
from vitrael.server.study_cli import add_expert, drop_expert, offer, start, stop, table

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_STUDY = click.Path(path_type=Path, dir_okay=False)
_HOW_LONG = "This takes about fifteen minutes on two processors that do nothing else."


@click.command(
    epilog="Examples: 'vitrael demo', 'vitrael demo --scans DIR --policy public', "
    "'vitrael demo --resume'."
)
@click.option(
    "--study", "study_file", type=_STUDY, help="A study to run. [default: the brain demo]"
)
@click.option(
    "--scans",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Take NIfTI files of real brains, parted by patient, instead of phantoms.",
)
@click.option("--policy", type=click.Choice(["rehearsal", "public"]), help="Overrules the study.")
@click.option(
    "--patients", type=click.IntRange(min=12), help="Phantom patients a site. [default: 160]"
)
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where it all lies. [default: demo-home/N, N counted up; with --resume the last one]",
)
@click.option("--port", type=click.IntRange(1024, 65_000), help="First port. [default: free ones]")
@click.option("--resume", is_flag=True, help="Go on with the last run where it stopped.")
@click.option("--require-proxy", is_flag=True, help="Fail without nginx to stand in front.")
@_JSON
def demo(
    *,
    study_file: Path | None,
    scans: Path | None,
    policy: Literal["rehearsal", "public"] | None,
    patients: int | None,
    home: Path | None,
    port: int | None,
    resume: bool,
    require_proxy: bool,
    as_json: bool,
) -> int:
    """Run a whole study on this machine: three sites, one signed release.

    Exit codes: 0 released, or a rehearsal with too few patients to screen; 1 failed; 2 wrong call;
    3 wrong study; 5 a port is in use; 6 refused by a gate; 7 as 0, but some scans could not be
    read; 130 interrupted.
    """
    began = time.monotonic()
    from vitrael.server.demo import (  # noqa: PLC0415
        DemoPlan,
        choose_home,
        demand_prepared,
        demo_layout,
        prepare_demo,
    )
    from vitrael.server.demo_run import program, run_demo  # noqa: PLC0415
    from vitrael.server.proxy import demand_nginx, find_nginx  # noqa: PLC0415

    nginx = demand_nginx() if require_proxy else find_nginx()
    place = home.absolute() if home else choose_home(Path("demo-home"), resume=resume)
    if resume:
        demand_prepared(place)
    click.echo(f"home: {place}", err=True)
    if not resume and study_file is None and scans is None:
        click.echo(_HOW_LONG, err=True)
    plan = DemoPlan(place, study_file, scans, policy, patients, port=port, nginx=nginx)
    study = prepare_demo(plan, tell=lambda text: _tell_since(began, text))
    again = shlex.join([program(), "demo", "--resume", "--home", str(place)])
    try:
        layout = demo_layout(place, study, port=port, nginx=nginx)
        outcome, code = run_demo(layout, study, began=began)
    except KeyboardInterrupt:
        click.echo(f"\nTo go on where it stopped: {again}", err=True)
        raise
    except VitraelError as error:
        if error.exit_code == VitraelError.exit_code:  # the others ask for another document or call
            _name_resume(error, again, study=study.protocol.name)
        raise
    click.echo(json.dumps(outcome.document) if as_json else outcome.text)
    return code


def _tell_since(began: float, text: str) -> None:
    """Say on standard error what is done now, with minutes and seconds since ``began``."""
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    click.echo(f"{minutes:2}:{seconds:02} {text}", err=True)


def _name_resume(error: VitraelError, again: str, *, study: str) -> None:
    """Let the error end with the command that goes on with a demo, in place of a coordinator's."""
    what, _, fix = error.sentence().partition(" To do: ")
    start = f"run `vitrael study start {study}`"
    go_on = f"run `{again}`: what was finished is kept"
    error.what, error.why = what, ""
    if start in fix:
        error.fix = f"{go_on}. A site that did not answer in time was slow: do less else meanwhile"
    else:
        error.fix = f"{fix.rstrip('.')}; then {go_on}" if fix else go_on


@click.group()
def study() -> None:
    """Check, offer, start, amend and stop studies."""


for command in (offer, start, stop, add_expert, drop_expert, table, affected):
    study.add_command(command)


@study.command(epilog="Example: 'vitrael study check deploy/studies/brain-demo.toml'.")
@click.argument("file", type=_STUDY)
@_JSON
def check(file: Path, *, as_json: bool) -> None:
    """Explain a study, or say what is wrong with file, key and remedy."""
    from vitrael.core.study import load_study  # noqa: PLC0415
    from vitrael.server.explaining import explain_study, find_shortfalls  # noqa: PLC0415

    loaded = load_study(file)
    if as_json:
        names = {"study": loaded.digest, "protocol": loaded.protocol.digest}
        facts = {**names, "too_small": find_shortfalls(loaded)}
        click.echo(json.dumps({**facts, "document": loaded.model_dump(mode="json")}))
    else:
        click.echo(explain_study(loaded))


@click.group()
def release() -> None:
    """Recall what should no longer be used."""


release.add_command(recall)
