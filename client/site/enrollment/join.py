"""How a site joins: it reads an invitation, makes its keys and sends their public halves.

Killed at any moment and run again, it goes on with the same keys; a private key is never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from vitrael.client.site.control import COME_BACK
from vitrael.client.site.enrollment.document import Entries, plan_document
from vitrael.client.site.enrollment.home_lock import only_one_enrollment
from vitrael.client.site.enrollment.link import Clock, Patience, Tell
from vitrael.client.site.enrollment.standing import keep_answer, read_last_standing
from vitrael.client.site.enrollment.words import exchange
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.rotation import ROTATED, settle_rotation
from vitrael.client.site.settings import SiteSettings, load_settings
from vitrael.client.site.store import Store
from vitrael.core.digest import write_atomically
from vitrael.core.errors import AuthError, ConfigError, UsageError, storage_error
from vitrael.core.version import package_version
from vitrael.privacy.enrollment import Invitation, JoinRequest, Standing, join_fingerprint, proof_of
from vitrael.privacy.journal import Event
from vitrael.privacy.keys import (
    KeyPair,
    Passphrase,
    is_protected,
    load_public_keys,
    protect_keys,
    save_public_keys,
)
from vitrael.privacy.node_keys import create_node_key, load_node_key, prove_node

MOST_BYTES = 1 << 20
"""Of an invitation; more is none."""

_FRESH = "ask the coordinator for a fresh invitation: `vitrael server invite SITE`"


@dataclass(frozen=True, slots=True)
class Plan:
    """What joining would do; nothing is written yet."""

    home: Path
    invitation: Invitation
    document: str | None
    """What ``site.toml`` is to hold; None where it holds that already."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that the coordinator has, and the fingerprint to read out."""

    standing: Standing
    fingerprint: str


def read_invitation(path: Path, *, now: datetime) -> Invitation:
    """Return the invitation of a file.

    Raises UsageError when it cannot be read, ConfigError when it is damaged, AuthError when it has
    expired. No error quotes it: it holds a secret.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path.name} is no invitation", why="it is too large", fix=_FRESH)
        data = path.read_bytes()
    except OSError as error:
        why = error.strerror or ""
        raise UsageError(f"{path} cannot be read", why=why, fix="check the path") from None
    try:
        invitation = Invitation.model_validate_json(data)
    except ValidationError:
        raise ConfigError(
            f"{path.name} is no invitation", why="it is damaged, or another file", fix=_FRESH
        ) from None
    if now >= datetime.fromisoformat(invitation.expires_utc):
        raise AuthError(
            "the invitation has expired",
            why=f"it was good until {invitation.expires_utc}, and by this machine's clock it is "
            f"{now.isoformat(timespec='seconds')}",
            fix=_FRESH,
        )
    return invitation


def plan_join(
    home: Path, invitation: Invitation, *, proxy: str | None, authority: Path | None
) -> Plan:
    """Return what joining would do.

    A home belongs to a coordinator from its first answer on. Raises AuthError for one that belongs
    to another coordinator, UsageError for one that is enrolled already or has left, ConfigError for
    a ``site.toml`` that says something else, as where it names another site.
    """
    last = read_last_standing(home)
    if last is not None or (home / "roster.json").exists():
        demand_same_coordinator(home, invitation)
    wanted = Entries(invitation.site, invitation.address, proxy, authority)
    plan = Plan(home, invitation, plan_document(home / "site.toml", wanted))
    if last is not None and last.status == "enrolled":
        raise UsageError(
            f"site {invitation.site} is enrolled already",
            why="the coordinator said so last",
            fix="for new keys ask for `vitrael server sites rotate`, then `vitrael site rotate`",
        )
    if left_utc := _left(home):
        raise UsageError(
            f"site {invitation.site} has left the federation",
            why=f"its operator did so at {left_utc}; in this home no task is answered any more",
            fix=COME_BACK,
        )
    return plan


def demand_same_coordinator(home: Path, invitation: Invitation) -> None:
    """Raise AuthError for the invitation of another coordinator than the home's."""
    path = home / "coordinator.json"
    if path.exists() and load_public_keys(path) != invitation.coordinator:
        raise AuthError(
            "this home belongs to another coordinator",
            why="the invitation holds other keys than coordinator.json",
            fix="name another home with --home: one home, one federation",
        )


def join(
    plan: Plan,
    *,
    passphrase: bytes | None,
    ask: Passphrase,
    new_keys: bool,
    clock: Clock,
    tell: Tell,
    patience: Patience | None = None,
) -> Asked:
    """Return what the coordinator answered, once the home is made and the request was sent.

    With a passphrase the keys are protected by it; ``ask`` gives the one of keys that are protected
    already. ``new_keys`` sets keys aside that another invitation has used up.
    """
    home, invitation = plan.home, plan.invitation
    Home(home).key()
    with only_one_enrollment(home):
        save_public_keys(invitation.coordinator, home / "coordinator.json")
        write_atomically(home / "authority.pem", invitation.authority.encode())
        if plan.document is not None:
            write_atomically(home / "site.toml", plan.document.encode())
        settings = load_settings(home)
        settle_rotation(home)
        if new_keys:
            set_keys_aside(settings.keys)
        keys = make_keys(settings.keys, passphrase=passphrase, ask=ask)
        asked = ask_to_join(
            settings,
            invitation,
            keys=keys,
            folder=settings.keys,
            event="joined",
            clock=clock,
            tell=tell,
            patience=patience,
        )
        keep_answer(home, asked.standing)
        return asked


def make_keys(folder: Path, *, passphrase: bytes | None, ask: Passphrase) -> KeyPair:
    """Return the keys of a folder, made where they are missing; with a passphrase protected."""
    if not all((folder / name).exists() for name in ("signing.pem", "sealing.pem")):
        _save_new(folder, passphrase=passphrase)
    elif passphrase is not None and not is_protected(folder):
        protect_keys(folder, passphrase=passphrase)
    create_node_key(folder / "node")
    known: Callable[[], bytes] = ask if passphrase is None else lambda: passphrase
    return KeyPair.load(folder, passphrase=known)


def _save_new(folder: Path, *, passphrase: bytes | None) -> None:
    try:
        KeyPair.create().save(folder, passphrase=passphrase)
    except AuthError as error:
        raise AuthError(
            f"half of the keys in {folder.name} is missing",
            why="what is there is never replaced",
            fix="restore the other half from a backup, or make new ones: `vitrael site join FILE "
            "--new-keys`",
        ) from error


def ask_to_join(
    settings: SiteSettings,
    invitation: Invitation,
    *,
    keys: KeyPair,
    folder: Path,
    event: Event,
    clock: Clock,
    tell: Tell,
    patience: Patience | None,
) -> Asked:
    """Return the answer to a request for ``keys``, whose node key lies in ``folder``."""
    node = create_node_key(folder / "node").decode()
    proof = prove_node(load_node_key(folder / "node"), proof_of(keys.public, site=invitation.site))

    def compose() -> JoinRequest:
        return JoinRequest(
            site=invitation.site,
            token=invitation.token,
            keys=keys.public,
            node=node,
            node_proof=proof,
            package_version=package_version(),
            utc=clock().isoformat(timespec="seconds"),
        )

    standing = exchange(
        settings,
        "join",
        compose,
        keys=keys,
        event=event,
        clock=clock,
        tell=tell,
        patience=patience,
    )
    fingerprint = join_fingerprint(keys.public, node, coordinator=invitation.coordinator)
    return Asked(standing, fingerprint)


def set_keys_aside(keys: Path) -> None:
    """Move the keys of a request that ended into ``keys.unused-N`` beside them; none is lost.

    They are renamed, which the folder's owner may whosoever they are. Killed in between and called
    again, the rest goes into a folder of its own.
    """
    there = [name for name in ROTATED if (keys / name).exists()]
    number = 1
    while (keys.parent / f"keys.unused-{number}").exists():
        number += 1
    aside = keys.parent / f"keys.unused-{number}"
    try:
        for name in reversed(there):  # the node key first: with new keys it would be refused
            aside.mkdir(mode=0o700, exist_ok=True)
            (keys / name).rename(aside / name)
    except OSError as error:
        raise storage_error("the site's keys", error) from error


def _left(home: Path) -> str:
    """Return when this home's operator left the federation, or nothing."""
    if not (home / "store.sqlite").exists():
        return ""
    path, updates = home / "store.sqlite", home / "updates"
    with closing(Store(path, updates=updates, read_only=True)) as store:
        return store.decisions.standing().left_utc
