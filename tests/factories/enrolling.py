"""A site as the coordinator hears it: its keys, its join request, its words."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes.clock import FakeClock
from vitrael.privacy.enrollment import (
    JoinRequest,
    SiteWord,
    Standing,
    join_fingerprint,
    proof_of,
)
from vitrael.privacy.envelope import open_standing, sign_enrollment
from vitrael.privacy.keys import KeyPair
from vitrael.privacy.node_keys import prove_node
from vitrael.server.config import ServerSettings
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.registry import Registry


def node_pem(node: ec.EllipticCurvePrivateKey) -> str:
    public = node.public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass(slots=True)
class JoiningSite:
    """Makes keys and says what a site says."""

    name: str
    clock: FakeClock
    settings: ServerSettings
    """Of the coordinator that invites it."""
    keys: KeyPair = field(default_factory=KeyPair.create)
    node: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )

    @property
    def fingerprint(self) -> str:
        coordinator = KeyPair.load(self.settings.keys).public
        return join_fingerprint(self.keys.public, node_pem(self.node), coordinator=coordinator)

    def with_new_keys(self) -> JoiningSite:
        return JoiningSite(self.name, self.clock, self.settings)

    def request(self, token: str, **changes: Any) -> JoinRequest:
        """Return a join request; ``changes`` replace fields after the proof was made."""
        site = str(changes.pop("proved_for", self.name))
        proof = prove_node(self.node, proof_of(self.keys.public, site=site))
        fields: dict[str, Any] = {
            "site": self.name,
            "token": token,
            "keys": self.keys.public,
            "node": node_pem(self.node),
            "node_proof": proof,
            "package_version": "0.1.0",
            "utc": self.clock().isoformat(timespec="seconds"),
        }
        return JoinRequest(**{**fields, **changes})

    def join(self, token: str, **changes: Any) -> bytes:
        """Return the signed request."""
        return sign_enrollment(self.request(token, **changes), self.keys)

    def say(self, kind: str = "standing", **changes: Any) -> SiteWord:
        fields: dict[str, Any] = {
            "site": self.name,
            "kind": kind,
            "nonce": secrets.token_hex(16),
            "utc": self.clock().isoformat(timespec="seconds"),
        }
        return SiteWord(**{**fields, **changes})

    def word(self, kind: str = "standing", **changes: Any) -> bytes:
        """Return a signed word."""
        return sign_enrollment(self.say(kind, **changes), self.keys)


class Answers:
    """Asks the desk and opens what it answers, as the site would."""

    def __init__(self, desk: Desk, settings: ServerSettings) -> None:
        self.desk = desk
        self.coordinator = KeyPair.load(settings.keys).public

    def join(self, data: bytes) -> Standing:
        return open_standing(self.desk.join(data), self.coordinator)

    def word(self, data: bytes) -> Standing:
        return open_standing(self.desk.word(data), self.coordinator)


def enroll(site: JoiningSite, registry: Registry, desk: Desk) -> None:
    desk.join(site.join(registry.invite(site.name).token))
    registry.approve(site.name, fingerprint=site.fingerprint)
