"""``vitrael server up|status|proxy-config``: this file only translates."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import click

from vitrael.server.options import AS_JSON, DRY_RUN, HOME, YES

_FOLDER = click.Path(path_type=Path, file_okay=False)
_REDRAW_S = 1.0
_LONGEST_S = 366 * 86_400.0


@click.command(epilog="Example: 'vitrael server up --home /srv/vitrael/server'.")
@HOME
def up(home: Path) -> int:
    """Run the coordinator until SIGTERM: SuperLink, enrollment, the study that was started.

    It listens on loopback; a reverse proxy shows it to the sites (`vitrael server proxy-config`).
    Log lines are JSON on standard error. SIGTERM ends all in order with exit code 0, a second
    signal at once. Exit codes: 1 a process could not be kept up; 2 another one runs in this home;
    3 a wrong server.toml; 4 a key or certificate that cannot be used; 5 a port is in use.
    """
    from vitrael.core.logs import configure_logging  # noqa: PLC0415
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.up import Coordinator  # noqa: PLC0415

    os.umask(0o077)  # what lies in the home is its user's alone
    settings = load_server(home)
    with configure_logging():
        return Coordinator(settings).run()


@click.command(epilog="Example: 'vitrael server status --home DIR --follow'.")
@HOME
@click.option("--follow", is_flag=True, help="Show it again and again until the study has ended.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, max=_LONGEST_S, min_open=True),
    default=86_400.0,
    show_default=True,
    metavar="SECONDS",
    help="How long --follow follows at most.",
)
@AS_JSON
def status(home: Path, *, follow: bool, timeout_s: float, as_json: bool) -> int:
    """Show coordinator, sites and study: who is connected, which round, seconds, bytes, days left.

    With --json one object; with --follow one a line whenever something has changed. Exit codes
    with --follow: that of the study when it has ended, 1 when the time was up before; without: 0.
    """
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.runs import AT_WORK  # noqa: PLC0415
    from vitrael.server.settings import utc_now  # noqa: PLC0415
    from vitrael.server.status import read_status, show_status  # noqa: PLC0415

    settings = load_server(home)
    until = time.monotonic() + timeout_s
    before = ""
    while True:
        document = read_status(settings, now=utc_now())
        text = json.dumps(document) if as_json else show_status(document)
        _show(text, before, live=follow and not as_json)
        if not follow:
            return 0
        before = text
        study = document["study"]
        if study is not None and study["status"] not in AT_WORK:
            return int(study["exit_code"])
        if not time.monotonic() < until:  # also for a time that is no number
            _tell_time_is_up(timeout_s)
            return 1
        time.sleep(_REDRAW_S)


def _show(text: str, before: str, *, live: bool) -> None:
    """Print what is new; on a terminal in the place of what was there."""
    if text == before:
        return
    if live and sys.stdout.isatty():
        click.clear()
    elif live and before:
        click.echo()
    click.echo(text)


def _tell_time_is_up(seconds: float) -> None:
    click.echo(f"the study has not ended within {seconds:.0f} s; it goes on", err=True)


@click.command(
    "proxy-config",
    epilog="Examples: 'vitrael server proxy-config --home DIR', "
    "'vitrael server proxy-config --home DIR --listen 0.0.0.0:443 --output vitrael.conf'.",
)
@HOME
@click.option(
    "--listen",
    multiple=True,
    metavar="HOST:PORT",
    help="Where nginx listens; may be given again. [default: every address, the port of address]",
)
@click.option(
    "--credentials",
    type=_FOLDER,
    metavar="DIR",
    help="Where a service unit lays server.pem, server.key and superlink.crt. [default: the home]",
)
@click.option(
    "--state", type=_FOLDER, metavar="DIR", help="Where nginx writes. [default: proxy in the home]"
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the configuration goes. [default: standard output]",
)
@DRY_RUN
@YES
def proxy_config(
    home: Path,
    *,
    listen: tuple[str, ...],
    credentials: Path | None,
    state: Path | None,
    output: Path | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Write the configuration of nginx: the coordinator's only door.

    Run it with: nginx -c FILE -g 'daemon off;'. It shows the outside the nodes' path, enrollment
    and health, over TLS; Flower's control and runtime interfaces stay on loopback.
    """
    from vitrael.core.digest import write_atomically  # noqa: PLC0415
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.proxy import (  # noqa: PLC0415
        check_proxy,
        find_nginx,
        proxy_files,
        render_proxy,
    )

    settings = load_server(home)
    place = proxy_files(
        settings,
        credentials=credentials.absolute() if credentials else None,
        state=state.absolute() if state else None,
    )
    text = render_proxy(settings, place, listen=listen)
    if output is None or dry_run:
        click.echo(text, nl=False)
        return
    if output.exists() and not yes:
        click.confirm(f"Replace {output}?", abort=True, err=True)
    write_atomically(output, text.encode())
    program = find_nginx()
    files = (place.certificate, place.key, place.superlink_authority)
    missing = [str(path) for path in files if not path.exists()]
    if program is None or missing:
        lacks = f"there is no {' and no '.join(missing)} yet" if missing else "it is not installed"
        click.echo(f"{output} is written; nginx was not asked about it: {lacks}", err=True)
        own = settings.document.tls is not None
        made = files[2:] if own else files
        if credentials is None and not all(path.exists() for path in made):
            click.echo(
                "Run `vitrael server up` once before nginx: it makes what is its own.", err=True
            )
        if credentials is None:
            place.state.mkdir(parents=True, exist_ok=True)
        return
    check_proxy(program, output.absolute(), place)
    click.echo(f"nginx accepts {output}", err=True)
