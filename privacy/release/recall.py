"""The recall of a published release: a statement signed with the coordinator's recall key.

A recall can only end a release. One that is forged, or is about another release, ends it too: who
cannot tell whether a release was recalled does not use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import UsageError, VerificationError
from vitrael.privacy.release.manifest import RECALLED, parse_manifest
from vitrael.privacy.release.statement import (
    RECALL_TYPE,
    Statement,
    open_statement,
    sign_statement,
)

MAX_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class Recall:
    """Which release was recalled, why and when."""

    release: str
    """``name@version``."""
    manifest: Digest
    reason: str
    recalled_utc: str
    """ISO 8601, to the second."""


def sign_recall(manifest: bytes, key: Ed25519PrivateKey, *, reason: str, now: datetime) -> bytes:
    """Return the envelope that recalls the release of a manifest.

    Raises UsageError for an empty or overlong reason, or a time without a zone.
    """
    text = " ".join(reason.split())
    if not text or len(text) > MAX_REASON_CHARS or not text.isprintable():
        raise UsageError(
            "the recall has no usable reason",
            why=f"it needs 1 to {MAX_REASON_CHARS} printable characters",
            fix="say in one sentence why nobody should use the release",
        )
    if now.tzinfo is None:
        raise UsageError("the time of the recall has no zone", fix="give it in UTC")
    predicate = {
        "release": str(parse_manifest(manifest).reference),
        "reason": text,
        "recalled_utc": now.astimezone(UTC).isoformat(timespec="seconds"),
    }
    digest = digest_bytes(manifest)
    return sign_statement(Statement(predicate["release"], digest, RECALL_TYPE, predicate), key)


def open_recall(data: bytes, *, public: str) -> Recall:
    """Return the recall that the holder of the recall key signed, else raise VerificationError."""
    label = f"{RECALLED}, the recall of this release,"
    statement = open_statement(data, public=public, kind=RECALL_TYPE, label=label)
    fields = {name: str(statement.predicate.get(name, "")) for name in _FIELDS}
    if not all(text.isprintable() for text in fields.values()):
        raise VerificationError(f"{label} says something else", why="it is not printable")
    return Recall(
        release=statement.subject,
        manifest=statement.digest,
        reason=fields["reason"],
        recalled_utc=fields["recalled_utc"],
    )


_FIELDS = ("reason", "recalled_utc")


def refuse_recalled(data: bytes, *, manifest: bytes, public: str) -> NoReturn:
    """Raise VerificationError, always: recalled, forged, or about another release."""
    recall = open_recall(data, public=public)
    if recall.manifest != digest_bytes(manifest):
        raise VerificationError(
            f"{RECALLED} is about another release",
            why=f"it recalls {ascii(recall.release)[1:-1]} with another manifest",
            fix="get the release again; do not use it before",
        )
    raise VerificationError(
        f"{recall.release} was recalled on {recall.recalled_utc}",
        why=recall.reason,
        fix="do not use it; look for a later version",
    )
