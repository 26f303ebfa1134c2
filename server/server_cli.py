"""``vitrael server``: found a coordinator, invite sites, approve, renew and revoke them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from vitrael.server.operation_cli import proxy_config, status, up
from vitrael.server.options import AS_JSON, DEFAULT_HOME, DRY_RUN, HOME, YES

if TYPE_CHECKING:
    from vitrael.server.config import ServerSettings

_SITE = click.argument("site")
_OUT = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to write the invitation. [default: SITE.invitation.json]",
)


@click.group()
def server() -> None:
    """Invite and approve sites, run the coordinator, see how it goes.

    Begin with 'vitrael server init --address HOST:PORT'. All that a coordinator keeps lies in its
    home, --home.
    """


for command in (up, status, proxy_config):
    server.add_command(command)


@server.command(epilog="Example: 'vitrael server init --address vitrael.example.org:443'.")
@click.option("--address", required=True, metavar="HOST:PORT", help="Where sites will reach it.")
@HOME
@click.option(
    "--days", type=click.IntRange(1, 3650), help="How long an enrollment holds. [default: 365]"
)
@DRY_RUN
@AS_JSON
def init(address: str, home: Path, days: int | None, *, dry_run: bool, as_json: bool) -> None:
    """Make a coordinator's home: settings, keys, a private authority, a certificate for HOST.

    What is there already is kept and checked; run it again after a change of server.toml.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - slow to import, as what follows

    from vitrael.core.errors import UsageError  # noqa: PLC0415
    from vitrael.privacy.keys import KeyPair, fingerprint  # noqa: PLC0415
    from vitrael.server.config import ServerDocument  # noqa: PLC0415
    from vitrael.server.settings import utc_now  # noqa: PLC0415
    from vitrael.server.sites.founding import demand_same, found_coordinator  # noqa: PLC0415

    given: dict[str, Any] = {"address": address}
    if days is not None:
        given["enrollment_days"] = days
    try:
        document = ServerDocument(**given)
    except ValidationError as error:
        raise UsageError(f"{address} is no address", fix="say host:port") from error
    facts: dict[str, Any] = {"home": str(home.absolute()), "address": address}
    if dry_run:
        demand_same(home, document)
        _tell(facts, f"{home} would become the home of a coordinator at {address}", as_json=as_json)
        return
    settings = found_coordinator(home, document, now=utc_now())
    facts["fingerprint"] = fingerprint(KeyPair.load(settings.keys).public.signing)
    facts |= _certificate_days(settings)
    elsewhere = "" if home == DEFAULT_HOME else f" --home {shlex.quote(str(home))}"
    text = (
        f"{home} is the home of a coordinator at {address}.\n"
        f"It signs with the key {facts['fingerprint']}.\n"
        "Keep a copy of keys/ and authority/ where nobody else reads it. Next: "
        f"vitrael server up{elsewhere}, and vitrael server invite SITE{elsewhere}"
    )
    _tell(facts, text, as_json=as_json)


@server.command(epilog="Example: 'vitrael server invite north --out north.invitation.json'.")
@_SITE
@HOME
@_OUT
@DRY_RUN
@AS_JSON
def invite(site: str, home: Path, out: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """Write the one file with which SITE joins; its token is good once, for 24 hours.

    Whoever has the file can ask to join as SITE: hand it over as you would a password. An older
    invitation of the site is void.
    """
    _hand_out("invite", site, home=home, out=out, dry_run=dry_run, as_json=as_json)


@server.group()
def sites() -> None:
    """Show, approve, renew and revoke the sites of this coordinator."""


@sites.command(name="list", epilog="Example: 'vitrael server sites list --json'.")
@HOME
@AS_JSON
def list_all(home: Path, *, as_json: bool) -> None:
    """Show every site: status, days to expiry, last seen; and how long the certificates hold."""
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.settings import utc_now  # noqa: PLC0415
    from vitrael.server.sites.listing import list_sites, show_sites  # noqa: PLC0415

    document = list_sites(load_server(home), now=utc_now())
    click.echo(json.dumps(document) if as_json else show_sites(document))


@sites.command(
    epilog="Example: 'vitrael server sites approve north --fingerprint \"1f0a 99c2 …\"'."
)
@_SITE
@click.option(
    "--fingerprint",
    required=True,
    metavar="DIGITS",
    help="All 64 digits, as the site's operator reads them out; spaces do not count.",
)
@HOME
@DRY_RUN
@YES
@AS_JSON
def approve(
    site: str, fingerprint: str, home: Path, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Let SITE take part, if its keys have the fingerprint that was read out.

    Have it read out on a channel that you trust, such as a telephone number that you knew before.
    Older keys of the site no longer hold.
    """
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.sites.registry import Registry  # noqa: PLC0415

    settings = load_server(home)
    with Registry(settings, dry_run=True) as registry:
        found = registry.approve(site, fingerprint=fingerprint)
    facts: dict[str, Any] = {"site": site, "package_version": found.package_version}
    if not dry_run:
        if not yes:
            click.confirm(f"Let site {site} take part with these keys?", abort=True, err=True)
        with Registry(settings) as registry:
            found = registry.approve(site, fingerprint=fingerprint)
        facts["registered"] = site in _sync_now(settings)
    assert found.expires_utc is not None  # noqa: S101 - an approved one has it
    facts |= {"expires_utc": found.expires_utc.isoformat(timespec="seconds")}
    would = "would be" if dry_run else "is"
    text = f"site {site} {would} enrolled until {found.expires_utc:%Y-%m-%d}"
    if not dry_run and not facts["registered"]:
        text += "; its node is registered as soon as `vitrael server up` runs"
    _tell({**facts, "enrolled": not dry_run}, text, as_json=as_json)


@sites.command(epilog="Example: 'vitrael server sites rotate north --out north.invitation.json'.")
@_SITE
@HOME
@_OUT
@DRY_RUN
@AS_JSON
def rotate(site: str, home: Path, out: Path | None, *, dry_run: bool, as_json: bool) -> None:
    """Write an invitation with which an enrolled SITE brings new keys.

    Its present keys hold until you approve the new ones.
    """
    _hand_out("rotate", site, home=home, out=out, dry_run=dry_run, as_json=as_json)


@sites.command(epilog="Example: 'vitrael server sites revoke north --reason \"stolen server\"'.")
@_SITE
@click.option("--reason", required=True, help="One sentence for list and journal.")
@HOME
@DRY_RUN
@YES
@AS_JSON
def revoke(site: str, reason: str, home: Path, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Shut SITE out: enrollment, request and invitation end, its keys are never taken again."""
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.sites.registry import Registry  # noqa: PLC0415

    settings = load_server(home)
    with Registry(settings, dry_run=True) as registry:
        registry.revoke(site, reason=reason)
    if not dry_run:
        if not yes:
            click.confirm(f"Shut site {site} out for good?", abort=True, err=True)
        with Registry(settings) as registry:
            registry.revoke(site, reason=reason)
        _sync_now(settings)
    text = f"site {site} {'would be' if dry_run else 'is'} revoked"
    _tell({"site": site, "reason": reason, "revoked": not dry_run}, text, as_json=as_json)


def _hand_out(
    kind: Literal["invite", "rotate"],
    site: str,
    *,
    home: Path,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    from vitrael.core.errors import UsageError  # noqa: PLC0415
    from vitrael.core.protocols import Name  # noqa: PLC0415
    from vitrael.server.config import load_server  # noqa: PLC0415
    from vitrael.server.sites.invitations import hand_out  # noqa: PLC0415
    from vitrael.server.sites.registry import Registry  # noqa: PLC0415

    try:
        TypeAdapter(Name).validate_python(site)
    except ValidationError as error:
        raise UsageError(
            f"{site} is no name of a site",
            fix="use lower-case letters, digits and hyphens, a letter first, at most 48 of them",
        ) from error
    settings, path = load_server(home), out or Path(f"{site}.invitation.json")
    with Registry(settings, dry_run=dry_run) as registry:
        issue = registry.invite if kind == "invite" else registry.rotate
        if dry_run:
            issue(site)
            facts = {"site": site, "file": str(path), "written": False}
            _tell(
                facts, f"an invitation for site {site} would be written to {path}", as_json=as_json
            )
            return
        given = hand_out(settings, path, issue=lambda: issue(site))
    facts = {"site": site, "file": str(path), "expires_utc": given.expires_utc, "written": True}
    text = (
        f"{path} is the invitation for site {site}, good once and until {given.expires_utc}.\n"
        "Hand it over as you would a password. At the site: "
        f"vitrael site {'join' if kind == 'invite' else 'rotate'} FILE"
    )
    _tell(facts, text, as_json=as_json)


def _sync_now(settings: ServerSettings) -> dict[str, int]:
    """Let the SuperLink know at once, if it is up; else `server up` does when it starts."""
    from vitrael.core.errors import NetworkError  # noqa: PLC0415
    from vitrael.server.settings import utc_now  # noqa: PLC0415
    from vitrael.server.sites.nodes import find_superlink, sync_nodes  # noqa: PLC0415

    superlink = find_superlink(settings)
    if not superlink.authority.exists() or not superlink.is_up():
        return {}
    try:
        return sync_nodes(settings, superlink, now=utc_now())
    except NetworkError as error:
        click.echo(f"{error.sentence()} `vitrael server up` will tell it.", err=True)
        return {}


def _certificate_days(settings: ServerSettings) -> dict[str, Any]:
    from vitrael.server.settings import utc_now  # noqa: PLC0415
    from vitrael.server.sites.authority import read_validity  # noqa: PLC0415

    validity, now = read_validity(settings), utc_now()
    return {
        "certificate_days_left": (validity.certificate - now).days,
        "authority_days_left": (validity.authority - now).days,
    }


def _tell(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(facts) if as_json else text)
