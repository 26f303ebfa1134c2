"""``vitrael site``: take scans in, consent to a study, run the steward, read what left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vitrael.client.site.data_cli import cache, deidentify, ingest, withdraw
from vitrael.client.site.options import AS_JSON, HOME, private_files, refuse_nan, utc_now

if TYPE_CHECKING:
    from vitrael.client.site.journal import Kept, Line
    from vitrael.client.site.settings import SiteSettings
    from vitrael.core.messages import Consent
    from vitrael.core.study import Study

MOST_DAYS = 3650
"""Ten years: longer than any study, and far from the end of the calendar."""
MOST_ROUNDS = 100_000
LOG_BYTES = 4 << 20
"""Of ``steward.log`` and of the one older log beside it: what is refused must not fill the disk."""


@click.group()
def site() -> None:
    """Take scans in, consent to studies, run the steward, see all that leaves.

    Begin with 'vitrael site ingest PATH --dry-run'; it needs a recipe or a study, and no
    enrollment. All that a site keeps lies in its home: --home, else VITRAEL_SITE_HOME.

    Without a consent every task of a study is refused. There is no command that withdraws a
    consent yet: it ends when it expires, and nothing is answered while no steward runs.
    """


@site.command()
@HOME
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Overrules site.toml.")
@click.option("--threads", type=click.IntRange(min=1), help="Overrules site.toml.")
@private_files()
def run(home: Path, device: Literal["cpu", "cuda"] | None, threads: int | None) -> None:
    """Run the steward until SIGTERM: it has the scans and the keys, and needs no network.

    Example: vitrael site run --home /srv/vitrael/north
    """
    import signal  # noqa: PLC0415 - only this command needs what follows

    from vitrael.client.site.listener import serve  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415
    from vitrael.client.site.steward import Steward  # noqa: PLC0415

    settings = load_settings(home, device=device, threads=threads)
    _demand_enrollment(settings)
    _demand_device(settings)

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(0)  # what is unfinished runs again, what is finished is on disk

    signal.signal(signal.SIGTERM, end)

    def announce(path: Path) -> None:
        click.echo(f"steward of site {settings.name} listens at {path}", err=True)

    with _log_file(settings), closing(Steward(settings, clock=utc_now)) as steward:
        serve(settings, steward.answer, ready=announce, note=steward.note_refusal)


@site.command()
@click.argument("study", type=click.Path(path_type=Path, dir_okay=False))
@HOME
@click.option(
    "--days",
    type=click.FloatRange(min=0, max=MOST_DAYS, min_open=True),
    callback=refuse_nan,
    help="How long it holds; 90 days by default.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1, max=MOST_ROUNDS),
    help="How many rounds of a stage to answer; as many as the study has by default.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be signed; sign nothing.")
@click.option("--yes", is_flag=True, help="Sign without asking.")
@AS_JSON
@private_files()
def consent(
    study: Path,
    home: Path,
    days: float | None,
    rounds: int | None,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Sign this site's yes to STUDY with the members of roster.json in the home folder.

    Example: vitrael site consent study.toml --home /srv/vitrael/north
    """
    from vitrael.client.site.consent import (  # noqa: PLC0415
        DEFAULT_DAYS,
        count_cohort,
        draft_consent,
        keep_consent,
    )
    from vitrael.client.site.journal import Journal  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415
    from vitrael.client.site.store import Store  # noqa: PLC0415
    from vitrael.core.data.cohort import find_cohort  # noqa: PLC0415
    from vitrael.core.study import load_study  # noqa: PLC0415
    from vitrael.privacy.keys import (  # noqa: PLC0415
        KeyPair,
        fingerprint,
        load_public_keys,
        load_roster,
    )

    settings = load_settings(home)
    document, keys = load_study(study), KeyPair.load(settings.keys)
    wanted = document.protocol.data
    cohort = find_cohort(settings.cohorts, wanted, name=settings.document.cohort)
    draft = draft_consent(
        document,
        site=settings.name,
        keys=keys.public,
        members=load_roster(settings.roster),
        cohort=count_cohort(cohort),
        now=utc_now(),
        days=DEFAULT_DAYS if days is None else days,
        max_rounds=rounds,
    )
    coordinator = fingerprint(load_public_keys(settings.coordinator).signing)
    words = _describe(draft, document, coordinator=coordinator)
    document_json = json.dumps(draft.model_dump(mode="json"))
    if dry_run:
        click.echo(document_json if as_json else words)
        return
    if not as_json or not yes:
        click.echo(words, err=as_json)
    if not yes:
        click.confirm("Sign this consent?", abort=True, err=True)
    store = Store(settings.store, updates=settings.updates)
    try:
        journal = Journal(settings.journal, clock=utc_now, witness=store)
        journal.demand_whole()
        keep_consent(draft, document, store, keys=keys, journal=journal)
    finally:
        store.close()
    if as_json:  # only now: where signing fails, the error is the one document
        click.echo(document_json)
    click.echo(f"site {settings.name} has consented until {draft.expires_utc}", err=True)


@site.command()
@HOME
@click.option("--verify", is_flag=True, help="Say in words that the chain of hashes is whole.")
@AS_JSON
@click.pass_context
def journal(ctx: click.Context, home: Path, *, verify: bool, as_json: bool) -> None:
    """Show all that left this site: when, in which round, how many bytes, to whom, and what.

    Exits 1 and tells the fault alone when the journal was removed, cut or changed.

    Example: vitrael site journal --home /srv/vitrael/north --verify
    """
    from vitrael.client.site.journal import (  # noqa: PLC0415
        read_journal,
        tell_faults,
        verify_journal,
    )
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415

    settings = load_settings(home)
    faults = verify_journal(settings.journal, kept=_remembered_head(settings))
    lines = [] if faults else list(read_journal(settings.journal))
    total = sum(line.bytes for line in lines)
    if as_json:
        document = {
            "lines": [line.model_dump(mode="json") for line in lines],
            "bytes": total,
            "faults": [{"line": fault.line, "what": fault.what} for fault in faults],
        }
        if faults:
            document["fix"] = tell_faults(faults).fix
        click.echo(json.dumps(document))
    elif faults:
        raise tell_faults(faults)
    else:
        for line in lines:
            click.echo(_show(line))
        click.echo(f"{len(lines)} lines, {total} bytes left this site")
        if verify:
            began = settings.journal.exists()
            click.echo("the journal is whole" if began else "no journal has begun", err=True)
    if faults:
        ctx.exit(1)


def _show(line: Line) -> str:
    """Return a line of the journal for reading: rounds count from 1, as everywhere in words."""
    what = ", ".join((*line.fields, *line.attachments)) or line.reason
    stage = f"{line.stage} {line.round + 1}" if line.stage else "-"
    start = f"{line.utc}  {line.event:<8} {stage:<14} {line.bytes:>12} B"
    return f"{start}  {line.to or '-':<31}  {what}"


def _demand_enrollment(settings: SiteSettings) -> None:
    """Raise AuthError unless the roster names this site with the keys that are here."""
    from vitrael.client.site.consent import demand_membership  # noqa: PLC0415
    from vitrael.privacy.keys import KeyPair, load_roster  # noqa: PLC0415

    own = KeyPair.load(settings.keys).public
    demand_membership(load_roster(settings.roster), site=settings.name, own=own)


def _demand_device(settings: SiteSettings) -> None:
    """Raise ConfigError when this site's own settings ask for a CUDA device that is not here."""
    own = settings.document.performance
    if own is None or own.device != "cuda":
        return  # torch takes seconds to load: only who asks for its device waits for it
    from vitrael.core.training.compute import prepare_compute  # noqa: PLC0415

    prepare_compute(device=own.device, threads=own.threads, bf16=own.bf16)


def _remembered_head(settings: SiteSettings) -> Kept | None:
    """Return where the store says that the journal ended; no store is made for the question."""
    from vitrael.client.site.store import Store  # noqa: PLC0415

    if not settings.store.exists():
        return None
    with closing(Store(settings.store, updates=settings.updates)) as store:
        return store.read_head()


def _describe(consent: Consent, study: Study, *, coordinator: str) -> str:
    """Return what a person should read before signing, in words and with the digests."""
    from vitrael.client.site.consent import planned_rounds  # noqa: PLC0415
    from vitrael.privacy.gates import POLICIES  # noqa: PLC0415

    protocol, planned = study.protocol, planned_rounds(study)
    votes = f"one bit for each of {protocol.distillation.candidates:,} candidates"
    rounds = f"at most {consent.max_rounds} of a stage"
    if consent.max_rounds < planned:
        rounds += f", FEWER than the study's {planned}: it will stop"
    rows = {
        "site": consent.site,
        "study": f"{protocol.name}, version {protocol.version}",
        "purpose": consent.purpose,
        "members": ", ".join(study.roster.sites),
        "coordinator": coordinator,
        "policy": f"{protocol.policy}. {POLICIES[protocol.policy].title}",
        "license": f"{protocol.license}, if anything is released",
        "votes": votes if protocol.screening.enabled else "none: SCREENING IS OFF",
        "also leaves": "weights of codec and teacher in the clear to the coordinator, sums over "
        "patients, counts of the audit, the counts below",
        "others see": "every site sees the common teacher and its unscreened candidates",
        "summary": "counts of the cohort, none from 1 to 10, as its report.html shows them",
        "made public": "if released: your name and signature, the time of this consent, loss "
        "curves, how many candidates you kept",
        "cohort": ", ".join(
            f"{name} not told" if count is None else f"{count} {name}"
            for name, count in consent.cohort.items()
        ),
        "rounds": rounds,
        "given": consent.given_utc,
        "expires": f"{consent.expires_utc}; no command withdraws it before",
        "software": f"vitrael {consent.package_version}, and no other version",
        "protocol": consent.protocol,
        "roster": consent.roster,
    }
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())


@contextmanager
def _log_file(settings: SiteSettings) -> Iterator[None]:
    """Send log lines to ``steward.log``: events and types of errors, no data."""
    import logging.handlers  # noqa: PLC0415

    handler = logging.handlers.RotatingFileHandler(
        settings.log, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    ours = logging.getLogger("vitrael")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        handler.close()


for command in (ingest, withdraw, cache, deidentify):
    site.add_command(command)
