"""A coordinator's home from nothing: document, keys, authority, certificate, registry."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import tomli_w

from vitrael.core.digest import write_atomically
from vitrael.core.errors import AuthError, UsageError
from vitrael.privacy.keys import KeyPair
from vitrael.server.config import SERVER_FILE, ServerDocument, ServerSettings, load_server
from vitrael.server.sites.authority import create_authority, present_tls
from vitrael.server.sites.registry import Registry

_HEAD = """\
# Settings of this coordinator.
# For a certificate of your own authority add:
#   [tls]
#   certificate = "/etc/ssl/certs/coordinator.pem"
#   key = "/etc/ssl/private/coordinator.key"
#   authority = "/etc/ssl/certs/hospital-ca.pem"

"""


def found_coordinator(home: Path, document: ServerDocument, *, now: datetime) -> ServerSettings:
    """Return the settings of a home in which all that a coordinator needs now lies.

    What is there already is kept and checked, so that a call which was cut short, or which follows
    a change of ``server.toml``, completes the rest. Raises UsageError for a home of another
    document, AuthError or ConfigError for keys or certificates that do not hold.
    """
    demand_same(home, document)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (home / SERVER_FILE).exists():
        values = document.model_dump(mode="json", exclude_none=True)
        write_atomically(home / SERVER_FILE, (_HEAD + tomli_w.dumps(values)).encode())
    settings = load_server(home)
    if (settings.keys / "sealing.pem").exists() and (settings.keys / "signing.pem").exists():
        KeyPair.load(settings.keys)
    else:
        _demand_unknown(settings, now=now)
        KeyPair.create().save(settings.keys)
    create_authority(settings.authority, address=document.address, now=now)
    present_tls(settings, now=now)
    settings.studies.mkdir(exist_ok=True)
    with Registry(settings, clock=lambda: now) as registry:
        registry.keep_roster()
    return settings


def _demand_unknown(settings: ServerSettings, *, now: datetime) -> None:
    """Raise AuthError where sites know a coordinator by keys that are gone: others are no help."""
    if not settings.database.exists():
        return
    with Registry(settings, clock=lambda: now) as registry:
        sites = {one.site for one in registry.enrollments()}
    if sites:
        raise AuthError(
            "the coordinator's keys are gone",
            why=f"{len(sites)} sites know it by them and would obey no other",
            fix="restore keys/ from your copy; without one found a new home and invite every site",
        )


def demand_same(home: Path, document: ServerDocument) -> None:
    """Raise UsageError when the home's document says otherwise than what was given in this one."""
    if not (home / SERVER_FILE).exists():
        return
    found = load_server(home).document
    if found.address != document.address:
        raise UsageError(
            f"{home} is the home of a coordinator at {found.address}",
            why=f"its {SERVER_FILE} says so",
            fix=f"change address in {SERVER_FILE} and run this with it, or choose another --home",
        )
    for key in sorted(document.model_fields_set):
        own, given = getattr(found, key), getattr(document, key)
        if own != given:
            raise UsageError(
                f"{home} is there already, with {key} = {own}",
                why=f"its {SERVER_FILE} says so, and this command {given}",
                fix=f"change {key} in {SERVER_FILE}, or run this without it",
            )
