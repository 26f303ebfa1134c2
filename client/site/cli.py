"""``vitrael site``: take scans in, consent to a study, run the steward, read what left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vitrael.client.site.backup_cli import backup, restore
from vitrael.client.site.consent_cli import consent
from vitrael.client.site.control_cli import CONTROL
from vitrael.client.site.courier_cli import courier
from vitrael.client.site.data_cli import cache, deidentify, ingest, withdraw
from vitrael.client.site.enrollment_cli import ENROLLMENT
from vitrael.client.site.journal_cli import journal
from vitrael.client.site.options import HOME, demand_owner, private_files

if TYPE_CHECKING:
    from vitrael.client.site.settings import SiteSettings
    from vitrael.privacy.keys import PublicKeys


@click.group()
def site() -> None:
    """Take scans in, consent to studies, run the steward, see all that leaves.

    Begin with 'vitrael site ingest PATH --dry-run'; it needs a recipe or a study, and no
    enrollment. All that a site keeps lies in its home: --home, else VITRAEL_SITE_HOME.

    Without a consent every task of a study is refused. 'pause' refuses all new tasks, 'stop' takes
    a consent back, and 'leave' takes all of them back for good. With release = "manual" in
    site.toml nothing leaves before 'release' lets it go; 'held' shows what waits.
    """


@site.command()
@HOME
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Overrules site.toml.")
@click.option("--threads", type=click.IntRange(min=1), help="Overrules site.toml.")
@private_files()
def run(home: Path, device: Literal["cpu", "cuda"] | None, threads: int | None) -> None:
    """Run the steward until SIGTERM: it has the scans and the keys, and needs no network.

    The first SIGTERM lets the step in work come to its end, for at most 30 s; what is not finished
    then goes on when the steward runs again. A second one ends it at once.

    Example: vitrael site run --home /srv/vitrael/north
    """
    from vitrael.client.site.service import run_steward  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415

    demand_owner(home)
    settings = load_settings(home, device=device, threads=threads)
    keys = settings.load_keys()
    _demand_enrollment(settings, keys.public)
    _demand_device(settings)

    def announce(path: Path) -> None:
        click.echo(f"steward of site {settings.name} listens at {path}", err=True)

    run_steward(settings, ready=announce, keys=keys)


def _demand_enrollment(settings: SiteSettings, own: PublicKeys) -> None:
    """Raise AuthError unless the roster names this site with the keys that are here."""
    from vitrael.client.site.consent import demand_membership  # noqa: PLC0415
    from vitrael.privacy.keys import load_roster  # noqa: PLC0415

    demand_membership(load_roster(settings.roster), site=settings.name, own=own)


def _demand_device(settings: SiteSettings) -> None:
    """Raise ConfigError when this site's own settings ask for a CUDA device that is not here."""
    own = settings.document.performance
    if own is None or own.device != "cuda":
        return  # torch takes seconds to load: only who asks for its device waits for it
    from vitrael.core.training.compute import prepare_compute  # noqa: PLC0415

    prepare_compute(device=own.device, threads=own.threads, bf16=own.bf16, vram_frac=own.vram_frac)


for command in (
    *ENROLLMENT,
    backup,
    restore,
    consent,
    *CONTROL,
    journal,
    ingest,
    withdraw,
    cache,
    deidentify,
    courier,
):
    site.add_command(command)
