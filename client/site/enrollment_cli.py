"""``vitrael site join``, ``fetch``, ``rotate`` and ``keys``: how a site enrolls."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrael.client.site.options import AS_JSON, HOME, demand_owner, private_files, utc_now
from vitrael.core.errors import EXIT_OK, EXIT_PARTIAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vitrael.client.site.enrollment.fetch import Fetched
    from vitrael.client.site.enrollment.join import Asked
    from vitrael.privacy.enrollment import Invitation

INVITATION = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
YES = click.option("--yes", is_flag=True, help="Do it without asking.")


@click.command()
@INVITATION
@HOME
@click.option("--proxy", help="The hospital's proxy, http://host:port; kept in site.toml.")
@click.option(
    "--authority",
    type=click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True),
    help="PEM file of the authority by which the hospital inspects TLS; kept in site.toml.",
)
@click.option("--passphrase", "protect", is_flag=True, help="Protect the keys by a passphrase.")
@click.option(
    "--new-keys",
    is_flag=True,
    help="Set aside keys that another invitation has used up, and make others.",
)
@DRY_RUN
@YES
@AS_JSON
@private_files()
def join(
    file: Path,
    home: Path,
    *,
    proxy: str | None,
    authority: Path | None,
    protect: bool,
    new_keys: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Make this site's keys and ask to join with the invitation FILE.

    The private keys stay in the home. Read the fingerprint that is shown to the coordinator over
    the telephone: who approves it knows that the keys are yours. Then run 'vitrael site fetch'.
    Interrupted and run again, it goes on with the same keys.

    Example: vitrael site join north.invitation.json --home /srv/vitrael/north
    """
    from vitrael.client.site.enrollment.join import join as join_site  # noqa: PLC0415
    from vitrael.client.site.enrollment.join import plan_join, read_invitation  # noqa: PLC0415

    invitation = read_invitation(file, now=utc_now())
    demand_owner(home)
    plan = plan_join(home, invitation, proxy=proxy, authority=authority)
    if not _go_on(_describe(invitation), "Join?", dry_run=dry_run, yes=yes, as_json=as_json):
        return
    asked = join_site(
        plan,
        passphrase=_passphrase(new=True) if protect else None,
        ask=_ask(),
        new_keys=new_keys,
        clock=utc_now,
        tell=_tell,
    )
    _show_asked(asked, as_json=as_json)


@click.command()
@HOME
@AS_JSON
@private_files()
def fetch(home: Path, *, as_json: bool) -> int:
    """Ask the coordinator how things stand; write roster and studies into the home.

    Exits with 4 when the enrollment was revoked, and with 7 while keys of this site wait for the
    coordinator's approval, or when a study could not be taken.

    Example: vitrael site fetch --home /srv/vitrael/north
    """
    from vitrael.client.site.enrollment.fetch import fetch as fetch_standing  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415

    demand_owner(home)
    settings = load_settings(home)
    found = fetch_standing(settings, ask=_ask(), clock=utc_now, tell=_tell)
    if as_json:
        click.echo(json.dumps(_document(found)))
    else:
        click.echo("\n".join(_tell_standing(found)))
    waits = found.rotating or found.standing.status == "pending"
    return EXIT_PARTIAL if waits or found.changes.refused else EXIT_OK


@click.command()
@INVITATION
@HOME
@DRY_RUN
@YES
@AS_JSON
@private_files()
def rotate(file: Path, home: Path, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Make new keys for this site and ask for their approval with the fresh invitation FILE.

    The keys in use stay in use until the coordinator has approved and 'vitrael site fetch' has
    heard it. Afterwards every consent must be given again.

    Example: vitrael site rotate north.invitation.json --home /srv/vitrael/north
    """
    from vitrael.client.site.enrollment.fetch import demand_own_invitation  # noqa: PLC0415
    from vitrael.client.site.enrollment.fetch import rotate as rotate_keys  # noqa: PLC0415
    from vitrael.client.site.enrollment.join import (  # noqa: PLC0415
        demand_same_coordinator,
        read_invitation,
    )
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415

    demand_owner(home)
    settings = load_settings(home)
    invitation = read_invitation(file, now=utc_now())
    demand_same_coordinator(home, invitation)
    demand_own_invitation(settings, invitation)
    words = {**_describe(invitation), "afterwards": "every consent must be given again"}
    if not _go_on(words, "Make new keys?", dry_run=dry_run, yes=yes, as_json=as_json):
        return
    asked = rotate_keys(settings, invitation, ask=_ask(), clock=utc_now, tell=_tell)
    _show_asked(asked, as_json=as_json)


@click.group()
def keys() -> None:
    """Protect this site's private keys by a passphrase, or take that away.

    Signing and sealing key are encrypted; the node key and split.key are not, and count on the
    rights of their files. A service is given the passphrase as the systemd credential
    vitrael-passphrase, or in a file that VITRAEL_PASSPHRASE_FILE names.
    """


@keys.command()
@HOME
@private_files()
def protect(home: Path) -> None:
    """Encrypt the private keys with a passphrase, which is asked for twice.

    Example: vitrael site keys protect --home /srv/vitrael/north
    """
    from vitrael.client.site.enrollment.home_lock import only_one_enrollment  # noqa: PLC0415
    from vitrael.client.site.rotation import key_folders  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415
    from vitrael.privacy.keys import protect_keys  # noqa: PLC0415

    demand_owner(home)
    settings = load_settings(home)
    passphrase = _passphrase(new=True)
    with only_one_enrollment(settings.home):
        settings.load_keys(lambda: passphrase)  # those of a rotation are settled first
        for folder in key_folders(settings.home):
            protect_keys(folder, passphrase=passphrase)
    click.echo("the keys are protected: give the steward the passphrase too", err=True)


@keys.command()
@HOME
@private_files()
def unprotect(home: Path) -> None:
    """Write the private keys without encryption, for their owner alone.

    Keys that are not in use any more stay as they are.

    Example: vitrael site keys unprotect --home /srv/vitrael/north
    """
    from vitrael.client.site.enrollment.home_lock import only_one_enrollment  # noqa: PLC0415
    from vitrael.client.site.rotation import next_keys  # noqa: PLC0415
    from vitrael.client.site.settings import load_settings  # noqa: PLC0415
    from vitrael.privacy.keys import unprotect_keys  # noqa: PLC0415

    demand_owner(home)
    settings, ask = load_settings(home), _ask()
    with only_one_enrollment(settings.home):
        settings.load_keys(ask)
        unprotect_keys(settings.keys, passphrase=ask)
        if (next_keys(settings.home) / "sealing.pem").exists():
            unprotect_keys(next_keys(settings.home), passphrase=ask)
    click.echo("the keys are no longer protected by a passphrase", err=True)


def _passphrase(*, new: bool) -> bytes:
    from vitrael.client.site.passphrase import read_passphrase  # noqa: PLC0415

    return read_passphrase("keys", new=new)


def _ask() -> Callable[[], bytes]:
    """Return what gives the passphrase of keys, asked for once a command."""
    return functools.cache(lambda: _passphrase(new=False))


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _describe(invitation: Invitation) -> dict[str, str]:
    from vitrael.privacy.keys import fingerprint  # noqa: PLC0415

    return {
        "site": invitation.site,
        "address": invitation.address,
        "coordinator": fingerprint(invitation.coordinator.signing),
        "expires": invitation.expires_utc,
    }


def _go_on(
    words: dict[str, str], question: str, *, dry_run: bool, yes: bool, as_json: bool
) -> bool:
    """Show what is about to be done; return whether to do it. A "no" aborts."""
    if dry_run and as_json:
        click.echo(json.dumps(words))
    elif dry_run or not yes:
        text = "\n".join(f"{name:<12} {value}" for name, value in words.items())
        click.echo(text, err=not dry_run)
    if not dry_run and not yes:
        click.confirm(question, abort=True, err=True)
    return not dry_run


def _show_asked(asked: Asked, *, as_json: bool) -> None:
    standing = asked.standing
    if as_json:
        document = {"site": standing.site, "status": standing.status}
        click.echo(json.dumps({**document, "fingerprint": asked.fingerprint}))
        return
    click.echo(asked.fingerprint)
    if standing.status == "pending":
        _tell(
            "Read this fingerprint to the coordinator. When it is approved, run: vitrael site fetch"
        )
    else:
        _tell(f"The coordinator says: {standing.status}. Run: vitrael site fetch")


def _document(found: Fetched) -> dict[str, object]:
    changes, standing = found.changes, found.standing
    return {
        "site": standing.site,
        "status": standing.status,
        "expires_utc": standing.expires_utc,
        "fingerprint": found.fingerprint,
        "members": sorted(standing.members),
        "studies": {name: offer.protocol for name, offer in sorted(standing.offers.items())},
        "rotating": found.rotating,
        "rotated": found.rotated,
        "members_new": list(changes.members_new),
        "members_gone": list(changes.members_gone),
        "members_rekeyed": list(changes.members_rekeyed),
        "studies_new": list(changes.studies_new),
        "studies_changed": list(changes.studies_changed),
        "studies_gone": list(changes.studies_gone),
        "studies_refused": dict(changes.refused),
    }


def _tell_standing(found: Fetched) -> Iterator[str]:
    """Yield how things stand, in words, and what the operator should do."""
    standing, changes = found.standing, found.changes
    if standing.status == "pending":
        yield f"site {standing.site} waits for the coordinator to approve {found.fingerprint}"
        return
    until = f" until {standing.expires_utc}" if standing.expires_utc else ""
    yield f"site {standing.site} is enrolled{until}, with {', '.join(sorted(standing.members))}"
    if found.rotated:
        yield "the new keys are in use: start steward and courier again, and give every consent "
        yield "again: vitrael site consent STUDY"
    elif found.rotating:
        yield f"the new keys wait for the coordinator to approve {found.fingerprint}"
    told = (
        ("new on the roster", changes.members_new),
        ("no longer on the roster", changes.members_gone),
        ("on the roster with new keys", changes.members_rekeyed),
        ("new in studies/", changes.studies_new),
        ("CHANGED in studies/", changes.studies_changed),
        ("no longer offered", changes.studies_gone),
    )
    for what, names in told:
        if names:
            yield f"{what}: {', '.join(names)}"
    first = standing.site in changes.members_new  # no consent was given before
    if changes.roster and not first and not found.rotated:
        yield "consents to a roster of other members or keys cover it no more: consent again"
    for reason in changes.refused.values():
        yield f"not taken: {reason}"


ENROLLMENT = (join, fetch, rotate, keys)
"""Commands of the group ``vitrael site``."""
