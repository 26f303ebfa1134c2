"""What coordinator and site say to each other before a study: invitation, request, word, standing.

An *invitation* is one file that the coordinator hands to a site. With it the site makes its keys
and sends a *join request*; the coordinator's operator hears the request's fingerprint from the
site's operator and approves. From then on the site may ask for its *standing*: who else takes
part, which studies are offered. Requests and words are signed by the site, the standing by the
coordinator; each is a DSSE envelope (``privacy.envelope``).
"""

from __future__ import annotations

import hashlib
import re
from ipaddress import IPv6Address
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from vitrael.core.messages import DigestField, Message, Nonce, UtcField
from vitrael.core.protocols import Name
from vitrael.core.text import Sentence
from vitrael.privacy.keys import PublicKeys

ENROLLMENT_PATH = "/v1/enrollment"
"""Below it the coordinator answers: ``join`` takes a JoinRequest, ``word`` a SiteWord."""

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_PORTS = 65_536
MOST_PEM = 32_768
"""Characters of a key or certificate in PEM."""
MOST_REASON = 500
"""Characters of what a site says to its coordinator in one sentence."""


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    try:
        named = bool(_HOST.fullmatch(host)) or (
            host.startswith("[") and host.endswith("]") and bool(IPv6Address(host[1:-1]))
        )
    except ValueError:
        named = False
    if not named or not (port.isascii() and port.isdecimal() and 0 < int(port) < _PORTS):
        msg = "it is not host:port"
        raise ValueError(msg)
    return value


Address = Annotated[str, AfterValidator(_address)]
"""``host:port`` at which sites reach the coordinator."""
Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Pem = Annotated[str, StringConstraints(max_length=MOST_PEM)]


class Invitation(Message):
    """The one file that the coordinator hands to a site; whoever holds it can ask to join."""

    format: Literal["vitrael-invitation/1"] = "vitrael-invitation/1"
    site: Name
    address: Address
    authority: Pem
    """Certificate of the authority that signed the certificate shown at ``address``."""
    coordinator: PublicKeys
    """Fixed at the site from now on: only tasks signed by it are obeyed."""
    token: Token = Field(repr=False)
    """Good for one request; a secret."""
    expires_utc: UtcField


class JoinRequest(Message):
    """What a site sends: its public keys, signed by the new signing key.

    ``node_proof`` is the node key's own signature over ``proof_of(keys)``: nobody enrolls a key
    that he does not hold.
    """

    site: Name
    token: Token = Field(repr=False)
    keys: PublicKeys
    node: Pem
    """The public key by which Flower knows the site's SuperNode: P-384, SubjectPublicKeyInfo."""
    node_proof: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){1,256}$")]
    package_version: Sentence = Field(min_length=1, max_length=40)
    utc: UtcField


class SiteWord(Message):
    """What an enrolled site says outside of a study, signed by its signing key."""

    site: Name
    kind: Literal["standing", "withdraw", "leave"]
    """Ask how things stand; take back the consent to ``protocol``; leave the federation."""
    protocol: DigestField | None = None
    reason: Sentence = Field(default="", max_length=MOST_REASON)
    """One sentence for the coordinator; never says anything of a patient."""
    nonce: Nonce
    utc: UtcField

    @model_validator(mode="after")
    def _protocol_withdrawn(self) -> Self:
        if (self.kind == "withdraw") != (self.protocol is not None):
            msg = "a withdrawal, and nothing else, names a protocol"
            raise ValueError(msg)
        return self


class Offer(Message):
    """A study that is open for consent."""

    study: str = Field(max_length=262_144)
    """The TOML document."""
    protocol: DigestField


class Standing(Message):
    """What the coordinator answers to a request or word, signed by its key."""

    site: Name
    status: Literal["pending", "enrolled", "revoked", "left"]
    members: dict[Name, PublicKeys] = Field(default_factory=dict)
    """Every enrolled site with its keys; empty unless this site is enrolled."""
    offers: dict[Name, Offer] = Field(default_factory=dict)
    """Studies whose roster names this site."""
    expires_utc: UtcField | None = None
    """Until when this site's enrollment holds."""
    nonce: Nonce
    """Of the word that is answered; of a join request, the first 32 digits of its token."""
    utc: UtcField


def proof_of(keys: PublicKeys, *, site: str) -> bytes:
    """Return the bytes that a node key signs to show that it belongs to a site's other keys."""
    return f"vitrael node key of {site}: {keys.signing} {keys.sealing}".encode()


def join_fingerprint(keys: PublicKeys, node: str, *, coordinator: PublicKeys) -> str:
    """Return SHA-256 over a site's three public keys and the coordinator's two, for reading aloud.

    16 groups of four digits. The site takes the coordinator's keys from its invitation, the
    coordinator its own: where the invitation was changed on its way, the two read other digits.
    """
    own = (keys.signing, keys.sealing, "".join(node.split()))
    lines = "\n".join((*own, coordinator.signing, coordinator.sealing))
    digits = hashlib.sha256(lines.encode()).hexdigest()
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))
