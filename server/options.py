"""What the commands of a coordinator share."""

from __future__ import annotations

from pathlib import Path

import click

DEFAULT_HOME = Path("vitrael-server")
HOME = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_HOME,
    show_default=True,
    help="The coordinator's home folder.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check everything; change nothing.")
YES = click.option("--yes", is_flag=True, help="Do it without asking.")
