"""How a site learns how things stand, and how new keys take the place of older ones."""

from __future__ import annotations

from dataclasses import dataclass

from vitrael.client.site.control import COME_BACK
from vitrael.client.site.enrollment.home_lock import only_one_enrollment
from vitrael.client.site.enrollment.join import (
    Asked,
    ask_to_join,
    demand_same_coordinator,
    make_keys,
)
from vitrael.client.site.enrollment.link import Clock, Patience, Tell, open_link
from vitrael.client.site.enrollment.standing import Changes, keep_standing
from vitrael.client.site.enrollment.words import send_word
from vitrael.client.site.rotation import (
    adopt_keys,
    forget_old_keys,
    is_rotating,
    next_keys,
)
from vitrael.client.site.settings import SiteSettings
from vitrael.core.digest import write_atomically
from vitrael.core.errors import AuthError
from vitrael.privacy.enrollment import Invitation, Standing, join_fingerprint
from vitrael.privacy.keys import KeyPair, Passphrase, is_protected, load_public_keys
from vitrael.privacy.node_keys import load_node_public


@dataclass(frozen=True, slots=True)
class Fetched:
    """How things stand, what is different, and which keys the coordinator knows."""

    standing: Standing
    changes: Changes
    fingerprint: str
    """Of the keys that are in use, or wait for approval; empty where the node key's is lost."""
    rotating: bool
    """New keys wait for approval; the standing is that of those in use."""
    rotated: bool
    """New keys were put in use just now."""


def fetch(
    settings: SiteSettings,
    *,
    ask: Passphrase,
    clock: Clock,
    tell: Tell,
    patience: Patience | None = None,
) -> Fetched:
    """Return how things stand, once roster and studies are written.

    New keys that the coordinator has approved are put in use first. Raises AuthError when the
    enrollment was revoked or the site has left, and as ``send_word`` does.
    """
    open_link(settings)  # who has not joined is told so before keys are missed
    with only_one_enrollment(settings.home):
        keys = settings.load_keys(ask)
        standing = None
        if is_rotating(settings.home):
            standing = _ask_with_next(settings, ask=ask, clock=clock, tell=tell, patience=patience)
        rotated = standing is not None
        if standing is None:
            standing = send_word(
                settings, "standing", keys=keys, clock=clock, tell=tell, patience=patience
            )
        else:
            keys = settings.load_keys(ask)
        rotating = is_rotating(settings.home)
        changes = keep_standing(settings, standing, own=keys.public)
        fingerprint = ""
        if rotating or standing.status == "pending" or (settings.keys / "node.pub").exists():
            fingerprint = _read_fingerprint(settings, keys, ask=ask)
        if standing.status == "enrolled" and not rotated:
            forget_old_keys(settings.home)  # the coordinator has answered under the new ones
    _demand_welcome(standing)
    return Fetched(standing, changes, fingerprint, rotating=rotating, rotated=rotated)


def _read_fingerprint(settings: SiteSettings, keys: KeyPair, *, ask: Passphrase) -> str:
    """Return the fingerprint of the keys that wait for approval, or else of those in use.

    Of a node key only the public half is read: who cannot read the other may ask all the same.
    """
    folder, coordinator = settings.keys, load_public_keys(settings.coordinator)
    if is_rotating(settings.home):
        folder = next_keys(settings.home)
        keys = KeyPair.load(folder, passphrase=ask)
    node = load_node_public(folder / "node")
    return join_fingerprint(keys.public, node, coordinator=coordinator)


def _ask_with_next(
    settings: SiteSettings, *, ask: Passphrase, clock: Clock, tell: Tell, patience: Patience | None
) -> Standing | None:
    """Return the standing of the next keys, now in use, or None while they are not approved."""
    keys = KeyPair.load(next_keys(settings.home), passphrase=ask)
    try:
        standing = send_word(
            settings, "standing", keys=keys, clock=clock, tell=tell, patience=patience
        )
    except AuthError:
        return None  # these keys may mean nothing to the coordinator; those in use are asked next
    if standing.status != "enrolled" or standing.members.get(settings.name) != keys.public:
        return None
    adopt_keys(settings.home)
    return standing


def _demand_welcome(standing: Standing) -> None:
    """Raise AuthError when the site takes part no more."""
    if standing.status == "revoked":
        raise AuthError(
            f"the coordinator has revoked the enrollment of site {standing.site}",
            why="it takes no part in any study",
            fix="ask the coordinator; with a fresh invitation run `vitrael site join FILE "
            "--new-keys`",
        )
    if standing.status == "left":
        raise AuthError(
            f"site {standing.site} has left the federation",
            why="the coordinator has heard it",
            fix=COME_BACK,
        )


def rotate(
    settings: SiteSettings,
    invitation: Invitation,
    *,
    ask: Passphrase,
    clock: Clock,
    tell: Tell,
    patience: Patience | None = None,
) -> Asked:
    """Return what the coordinator answered to a request for new keys, which lie in ``keys.next``.

    Those in use stay in use until the coordinator has approved; asked again, it goes on with the
    same new keys. They are protected by a passphrase when those in use are. From now on the
    invitation's authority is trusted. Raises AuthError for one of another coordinator or site.
    """
    demand_same_coordinator(settings.home, invitation)
    demand_own_invitation(settings, invitation)
    with only_one_enrollment(settings.home):
        settings.load_keys(ask)
        passphrase = ask() if is_protected(settings.keys) else None
        write_atomically(settings.home / "authority.pem", invitation.authority.encode())
        folder = next_keys(settings.home)
        keys = make_keys(folder, passphrase=passphrase, ask=ask)
        return ask_to_join(
            settings,
            invitation,
            keys=keys,
            folder=folder,
            event="rotated",
            clock=clock,
            tell=tell,
            patience=patience,
        )


def demand_own_invitation(settings: SiteSettings, invitation: Invitation) -> None:
    """Raise AuthError for an invitation of another site or address than the home's."""
    told = {"name": invitation.site, "address": invitation.address}
    for key, value in told.items():
        own = getattr(settings.document, key)
        if own != value:
            raise AuthError(
                f"the invitation is not for this home: {key}",
                why=f'it says "{value}" and site.toml "{own}"',
                fix="name the right home with --home, or correct site.toml if the coordinator "
                "has moved",
            )
