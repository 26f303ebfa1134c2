"""Signed statements: in-toto Statement v1 inside a DSSE envelope with one Ed25519 signature.

Sources: in-toto attestation framework, spec v1 (Statement); secure-systems-lab/dsse v1.0.
An envelope's bytes are canonical JSON, so that no byte of it can change without being seen.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]

from vitrael.core.digest import Digest, canonical_json
from vitrael.core.errors import VerificationError
from vitrael.privacy.release.manifest import MAX_STATEMENT_BYTES

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
RELEASE_TYPE: Final = "urn:vitrael:release:1"
RECALL_TYPE: Final = "urn:vitrael:recall:1"

logging.getLogger("securesystemslib").setLevel(logging.CRITICAL)  # we report failures ourselves


@dataclass(frozen=True, slots=True)
class Statement:
    """Something said about one subject, which is named by its digest."""

    subject: str
    digest: Digest
    kind: str
    """The in-toto ``predicateType``."""
    predicate: Mapping[str, Any]  # any JSON object

    def to_bytes(self) -> bytes:
        """Return the in-toto Statement."""
        algorithm, digits = self.digest.split(":")
        subject = {"name": self.subject, "digest": {algorithm: digits}}
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [subject],
                "predicateType": self.kind,
                "predicate": dict(self.predicate),
            }
        )


def sign_statement(statement: Statement, key: Ed25519PrivateKey) -> bytes:
    """Return the envelope's bytes; equal statement and key, equal bytes (RFC 8032)."""
    envelope = Envelope(statement.to_bytes(), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(key))
    return canonical_json(envelope.to_dict())


def open_statement(data: bytes, *, public: str, kind: str, label: str) -> Statement:
    """Return the statement that the holder of ``public`` signed.

    Raises VerificationError, with its own message each: not an envelope; a foreign key; a signature
    that does not hold; a statement of another kind. ``label`` begins the message.
    """
    envelope = _parse(data, label=label)
    key = _verifier(public)
    if list(envelope.signatures) != [key.keyid]:
        raise VerificationError(
            f"{label} is by a foreign key",
            why="it was not made with the key that you trust",
            fix="do not use it; ask the coordinator which keys are right",
        )
    try:
        envelope.verify([key], threshold=1)
    except (SecureSystemsError, ValueError) as error:
        raise VerificationError(
            f"{label} does not hold",
            why="the trusted key did not sign these bytes",
            fix="do not use it; get the release again",
        ) from error
    statement = _read(envelope.payload)
    if envelope.payload_type != PAYLOAD_TYPE or statement is None or statement.kind != kind:
        raise VerificationError(f"{label} says something else", why=f"{kind} is expected")
    return statement


def _verifier(public: str) -> SSlibKey:
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)))


def _parse(data: bytes, *, label: str) -> Envelope:
    what, fix = f"{label} is damaged", "get the release again"
    if len(data) > MAX_STATEMENT_BYTES:
        raise VerificationError(what, why="it is too large", fix=fix)
    try:
        envelope = Envelope.from_dict(json.loads(data))
        (signature,) = envelope.signatures.values()
        whole = canonical_json(envelope.to_dict()) == data and not signature.unrecognized_fields
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise VerificationError(what, why="it is not a DSSE envelope", fix=fix) from error
    except SecureSystemsError as error:
        raise VerificationError(what, why="it is not a DSSE envelope", fix=fix) from error
    if not whole:
        raise VerificationError(what, why="its bytes are not in canonical form", fix=fix)
    return envelope


def _read(payload: bytes) -> Statement | None:
    try:
        document = json.loads(payload)
        (subject,) = document["subject"]
        statement = Statement(
            subject=str(subject["name"]),
            digest=Digest("sha256:" + subject["digest"]["sha256"]),
            kind=str(document["predicateType"]),
            predicate=dict(document["predicate"]),
        )
        return statement if statement.to_bytes() == payload else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
