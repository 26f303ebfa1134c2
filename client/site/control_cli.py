"""``vitrael site pause|resume|stop|leave|consents|held|release|reject``: what the operator decides.

Each holds at once and without a network; a steward that runs sees it within a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from vitrael.client.site.options import AS_JSON, HOME, demand_owner, private_files, utc_now

if TYPE_CHECKING:
    from vitrael.client.site.consent_list import ConsentFacts
    from vitrael.client.site.control import Control
    from vitrael.client.site.decisions import Held
    from vitrael.client.site.settings import SiteSettings
    from vitrael.client.site.store import Store
    from vitrael.core.digest import Digest

DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
YES = click.option("--yes", is_flag=True, help="Do it without asking.")
REASON = click.option(
    "--reason",
    default="",
    metavar="TEXT",
    help="One sentence for journal and coordinator; never of a patient.",
)


@click.command()
@HOME
@click.option(
    "--reason",
    default="",
    metavar="TEXT",
    help="One sentence for this site's journal; the coordinator does not hear it.",
)
@AS_JSON
@private_files()
def pause(home: Path, reason: str, *, as_json: bool) -> None:
    """Refuse all new tasks until 'vitrael site resume'; a task that has begun goes on.

    Example: vitrael site pause --reason "maintenance of the GPU"
    """
    with _open(home, reason=reason, takes_away=True) as site:
        changed = site.control.pause(reason=reason)
    said = "is paused" if changed else "was paused already"
    _tell({"paused": True, "changed": changed}, f"site {site.settings.name} {said}", as_json)


@click.command()
@HOME
@AS_JSON
@private_files()
def resume(home: Path, *, as_json: bool) -> None:
    """Take tasks again after a pause.

    Example: vitrael site resume
    """
    with _open(home) as site:
        changed = site.control.resume()
    said = "takes tasks again" if changed else "was not paused"
    _tell({"paused": False, "changed": changed}, f"site {site.settings.name} {said}", as_json)


@click.command()
@click.argument("study")
@HOME
@REASON
@DRY_RUN
@YES
@AS_JSON
@private_files()
def stop(study: str, home: Path, reason: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Take the consent to STUDY back: nothing more leaves for it; a task in work ends.

    STUDY is a name, NAME@VERSION, a protocol's digest or a file. What has left already stays with
    the coordinator, which is told; what a training in work has learned is removed. A new consent
    may be given later.

    Example: vitrael site stop brain-demo --reason "the ethics committee asks for it"
    """
    from vitrael.client.site.checkpoints import forget_checkpoints_of  # noqa: PLC0415

    with _open(home, reason=reason, takes_away=True) as site:
        protocol = _find_protocol(site, study)
        _sure(f"Take the consent to {study} ({protocol}) back?", dry_run=dry_run, yes=yes)
        if not dry_run:
            site.control.stop(protocol, reason=reason)
            forget_checkpoints_of(site.settings, protocol)
    told = not dry_run and _send(site.settings, "withdraw", protocol=protocol, reason=reason)
    facts = {"protocol": protocol, "stopped": not dry_run, "coordinator_told": told}
    _tell(facts, f"{'would be' if dry_run else ''} stopped: {study}, {protocol}".strip(), as_json)


@click.command()
@HOME
@REASON
@DRY_RUN
@YES
@AS_JSON
@private_files()
def leave(home: Path, reason: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Leave the federation: take every consent back, for good, and tell the coordinator.

    Scans, keys and journal stay where they are; what a training in work has learned is removed.

    Example: vitrael site leave --reason "the project has ended"
    """
    from vitrael.client.site.checkpoints import forget_all_checkpoints  # noqa: PLC0415
    from vitrael.client.site.control import COME_BACK  # noqa: PLC0415 - heavy

    with _open(home, reason=reason, takes_away=True) as site:
        name = site.settings.name
        given = sum(not one.withdrawn_utc for one in site.store.list_consents())
        said = f"{given} consents are taken back, for good; scans, keys and journal stay"
        if dry_run or not yes:
            click.echo(f"{said}; {COME_BACK}", err=True)
        _sure(f"Let site {name} leave the federation for good?", dry_run=dry_run, yes=yes)
        if not dry_run:
            site.control.leave(reason=reason)
            forget_all_checkpoints(site.settings.records)
    told = not dry_run and _send(site.settings, "leave", reason=reason)
    facts = {"left": not dry_run, "coordinator_told": told}
    _tell(facts, f"site {name} {'would leave' if dry_run else 'has left'} the federation", as_json)


@click.command()
@HOME
@AS_JSON
@private_files()
def consents(home: Path, *, as_json: bool) -> None:
    """List this site's consents: state, days left, rounds answered, bytes that have left.

    Example: vitrael site consents --json
    """
    from vitrael.client.site.consent_list import list_consents  # noqa: PLC0415

    with _reading(home) as (settings, store):
        own = settings.load_keys().public
        listed = list_consents(settings, store, own=own, now=utc_now())
        standing = store.decisions.standing()
        unusable = len(store.list_consents()) - len(listed)
    most = settings.document.limits.study_bytes
    if as_json:
        document = {
            "site": settings.name,
            **asdict(standing),
            "study_bytes": most,
            "unusable": unusable,
            "consents": [asdict(facts) for facts in listed],
        }
        click.echo(json.dumps(document))
        return
    if standing.left_utc or standing.paused_utc:
        since = f"has left, at {standing.left_utc}" if standing.left_utc else ""
        click.echo(f"site {settings.name} {since or f'is paused since {standing.paused_utc}'}")
    for facts in listed:
        click.echo(_show(facts, most=most))
    if unusable:
        click.echo(f"{unusable} more, of an earlier key or version, cannot be used any more")
    if not listed and not unusable:
        click.echo("no consent was given")


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also what was released or rejected.")
@HOME
@AS_JSON
@private_files()
def held(home: Path, *, everything: bool, as_json: bool) -> None:
    """List what waits for a release: stage, round, fields, bytes, since when and until when.

    Results are held when site.toml says release = "manual". The coordinator waits until the time
    shown; what is released later leaves when it asks again, also what was rejected before.

    Example: vitrael site held
    """
    with _reading(home) as (_, store):
        every = store.decisions.list_held()
    waiting = [each for each in every if each.state == "held"]
    listed = every if everything else waiting
    if as_json:
        click.echo(json.dumps([asdict(each) for each in listed]))
        return
    for each in listed:
        became = f"waited for until {each.until_utc}"
        if each.state != "held":
            became = ": ".join(filter(None, (each.state, each.reason)))
        click.echo(
            f"{each.id:>4}  {each.stage} {each.round + 1}  {each.bytes} B  since {each.held_utc}, "
            f"{became}  {each.fields}"
        )
    click.echo(f"{len(waiting)} held for release", err=True)


@click.command()
@click.argument("number", type=int, required=False, metavar="[ID]")
@click.option("--all", "everything", is_flag=True, help="All that is held.")
@HOME
@DRY_RUN
@YES
@AS_JSON
@private_files()
def release(
    number: int | None,
    home: Path,
    *,
    everything: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Let a held result leave: the one with that ID of 'vitrael site held', or all.

    Example: vitrael site release 3
    """
    if (number is None) is not everything:
        raise click.UsageError("Name one ID, or --all.")
    with _open(home) as site:
        chosen = _choose(site.store.decisions.list_held(), number)
        named = ", ".join(str(each.id) for each in chosen) or "nothing"
        _sure(f"Let {named} leave this site?", dry_run=dry_run or not chosen, yes=yes)
        for each in () if dry_run else chosen:
            site.control.release(each)
    facts = {"released": [] if dry_run else [each.id for each in chosen]}
    _tell(facts, f"{'would be ' if dry_run else ''}released: {named}", as_json)


@click.command()
@click.argument("number", type=int, metavar="ID")
@HOME
@click.option(
    "--reason",
    required=True,
    metavar="TEXT",
    help="One sentence for journal and coordinator; never of a patient.",
)
@DRY_RUN
@YES
@AS_JSON
@private_files()
def reject(
    number: int, home: Path, reason: str, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Never let a held result leave; the coordinator is told so when it asks for it.

    Example: vitrael site reject 3 --reason "too few patients this month"
    """
    with _open(home, reason=reason, takes_away=True) as site:
        (chosen,) = _choose(site.store.decisions.list_held(), number)
        _sure(f"Reject {chosen.stage} {chosen.round + 1}?", dry_run=dry_run, yes=yes)
        if not dry_run:
            site.control.reject(chosen, reason=reason)
    facts = {"rejected": [] if dry_run else [number]}
    _tell(facts, f"{'would be ' if dry_run else ''}rejected: {number}", as_json)


CONTROL: Final = (pause, resume, stop, leave, consents, held, release, reject)


@dataclass(frozen=True, slots=True)
class _Site:
    settings: SiteSettings
    store: Store
    control: Control


@contextmanager
def _open(home: Path, *, reason: str = "", takes_away: bool = False) -> Iterator[_Site]:
    """Open store and journal; say what a killed command left to be written down.

    An act that only takes away is done whatever the journal's state, which is said.
    """
    from vitrael.client.site.control import Control  # noqa: PLC0415 - heavy
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415
    from vitrael.client.site.store import Store  # noqa: PLC0415
    from vitrael.core.errors import StorageError  # noqa: PLC0415
    from vitrael.privacy.enrollment import MOST_REASON  # noqa: PLC0415
    from vitrael.privacy.journal import Journal  # noqa: PLC0415

    if len(reason) > MOST_REASON:
        raise click.UsageError(f"--reason may have {MOST_REASON} letters at most.")
    demand_owner(home)
    settings = load_settings(home)
    with closing(Store(settings.store, updates=settings.updates)) as store:
        journal = Journal(settings.journal, clock=utc_now, witness=store)
        control = Control(store, journal, clock=utc_now)
        try:
            journal.demand_whole()
            for owed in control.settle():
                click.echo(f"written down after the fact: {owed}", err=True)
        except StorageError as error:
            if not takes_away:
                raise
            click.echo(error.sentence(), err=True)
        yield _Site(settings, store, control)
        if control.unwritten is not None:
            why = control.unwritten.sentence()
            click.echo(f"It holds, but the journal lacks its line so far: {why}", err=True)


@contextmanager
def _reading(home: Path) -> Iterator[tuple[SiteSettings, Store]]:
    """Open the store and change nothing."""
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415 - heavy
    from vitrael.client.site.store import Store  # noqa: PLC0415

    demand_owner(home)
    settings = load_settings(home)
    with closing(Store(settings.store, updates=settings.updates, read_only=True)) as store:
        yield settings, store


def _find_protocol(site: _Site, study: str) -> Digest:
    """Return the protocol of a study that this site has consented to; UsageError without one."""
    from vitrael.client.site.consent_list import find_protocol  # noqa: PLC0415
    from vitrael.core.study import load_study  # noqa: PLC0415

    path = Path(study)
    return find_protocol(site.store, load_study(path).protocol.digest if path.is_file() else study)


def _choose(listed: Sequence[Held], number: int | None) -> list[Held]:
    """Return all that is held, or what bears a number; UsageError when nothing does."""
    if number is None:
        return [each for each in listed if each.state == "held"]
    found = [each for each in listed if each.id == number]
    if not found:
        raise click.UsageError(f"Nothing is held under {number}; see 'vitrael site held'.")
    return found


def _sure(question: str, *, dry_run: bool, yes: bool) -> None:
    if not dry_run and not yes:
        click.confirm(question, abort=True, err=True)


def _send(
    settings: SiteSettings,
    kind: Literal["withdraw", "leave"],
    *,
    protocol: Digest | None = None,
    reason: str,
) -> bool:
    """Return whether the coordinator heard it; what was decided holds either way."""
    from vitrael.client.site.enrollment.words import send_word  # noqa: PLC0415 - needs the network
    from vitrael.core.errors import VitraelError  # noqa: PLC0415

    try:
        send_word(
            settings,
            kind,
            protocol=protocol,
            reason=reason,
            tell=lambda words: click.echo(words, err=True),
        )
    except VitraelError as error:
        click.echo(
            f"It holds here, but the coordinator was not told: {error.sentence()} It hears it when "
            "it asks again; run the same command again to tell it now.",
            err=True,
        )
        return False
    return True


def _tell(facts: Mapping[str, object], words: str, as_json: bool) -> None:  # noqa: FBT001 - private
    click.echo(json.dumps(facts) if as_json else words)


def _show(facts: ConsentFacts, *, most: int | None) -> str:
    """Return a consent for reading."""
    rounds = ", ".join(f"{stage} {n}" for stage, n in facts.rounds_answered.items()) or "none"
    allowed = "" if most is None else f" of {most} allowed"
    days = f"{facts.days_left:.1f} days left" if facts.state == "given" else facts.why
    return (
        f"{facts.study}@{facts.version}  {facts.state}  {days}\n"
        f"    rounds answered: {rounds}; at most {facts.max_rounds} of a stage\n"
        f"    {facts.sent_bytes} bytes have left{allowed}; given {facts.given_utc}, "
        f"until {facts.expires_utc}\n"
        f"    protocol {facts.protocol}\n    roster   {facts.roster}"
    )
