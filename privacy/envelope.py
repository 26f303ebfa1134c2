"""Signed envelopes and sealed attachments: how a Task, Reply or Consent travels.

Signatures are DSSE envelopes (secure-systems-lab/dsse v1.0) with Ed25519. Attachments are
safetensors files, sealed for one recipient: an ephemeral X25519 exchange, HKDF-SHA256 and
ChaCha20-Poly1305, as in RFC 9180's base mode. Sealing hides; what proves the origin is the digest
of the plain bytes inside the signed document.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]

from vitrael.core.digest import Digest, canonical_json, digest_bytes
from vitrael.core.errors import EnvelopeError
from vitrael.core.messages import ENVELOPE, Consent, Message, Parcel, Reply, Task
from vitrael.core.weights import Tensors, pack_tensors, unpack_tensors
from vitrael.privacy.keys import KeyPair, PublicKeys

M = TypeVar("M", bound=Message)

MAX_ENVELOPE_BYTES = 8 << 20
"""A larger envelope is refused before it is parsed."""
MAX_ATTACHMENT_BYTES = (1 << 31) - 64
"""What ChaCha20-Poly1305 of the library takes in one piece."""

_TYPES: dict[type[Message], str] = {
    Task: "application/vnd.vitrael.task+json",
    Reply: "application/vnd.vitrael.reply+json",
    Consent: "application/vnd.vitrael.consent+json",
}
_HELLO_BYTES = 32

logging.getLogger("securesystemslib").setLevel(logging.CRITICAL)  # we report failures ourselves


def sign_task(task: Task, key: KeyPair) -> bytes:
    """Return the task in an envelope signed by the coordinator."""
    return _sign(task, key)


def open_task(data: bytes, coordinator: PublicKeys) -> Task:
    """Return the task of an envelope; raise EnvelopeError unless the coordinator signed it."""
    return _open(data, coordinator, Task, signer="the coordinator")


def sign_reply(reply: Reply, key: KeyPair) -> bytes:
    """Return the reply in an envelope signed by the site."""
    return _sign(reply, key)


def open_reply(data: bytes, site: PublicKeys) -> Reply:
    """Return the reply of an envelope; raise EnvelopeError unless the site signed it."""
    return _open(data, site, Reply, signer="the site")


def sign_consent(consent: Consent, key: KeyPair) -> bytes:
    """Return the consent in an envelope signed by the site."""
    return _sign(consent, key)


def open_consent(data: bytes, site: PublicKeys) -> Consent:
    """Return the consent of an envelope; raise EnvelopeError unless the site signed it."""
    return _open(data, site, Consent, signer="the site")


def _sign(message: Message, key: KeyPair) -> bytes:
    envelope = Envelope(message.to_bytes(), _TYPES[type(message)], {})
    envelope.sign(CryptoSigner(key.signing))
    return canonical_json(envelope.to_dict())


def _open(data: bytes, public: PublicKeys, kind: type[M], *, signer: str) -> M:
    if len(data) > MAX_ENVELOPE_BYTES:
        raise EnvelopeError("the envelope is too large", why=f"{len(data)} bytes came")
    try:
        envelope = Envelope.from_dict(json.loads(data))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EnvelopeError("the envelope is not DSSE", why="it cannot be parsed") from error
    except SecureSystemsError as error:
        raise EnvelopeError("the envelope is not DSSE", why="a signature has no form") from error
    if envelope.payload_type != _TYPES[kind]:
        raise EnvelopeError("the envelope is of another type", why=f"{_TYPES[kind]} is expected")
    try:
        envelope.verify([SSlibKey.from_crypto(public.verifier())], threshold=1)
    except (SecureSystemsError, ValueError) as error:
        raise EnvelopeError(
            "the envelope's signature does not hold",
            why=f"{signer}'s key did not sign these bytes",
            fix="obey it under no circumstances; ask who sent it",
        ) from error
    try:
        return kind.from_bytes(envelope.payload)
    except ValueError as error:
        raise EnvelopeError(
            "the signed document cannot be used",
            why="it is of another version or not in canonical form",
            fix="run the same package version on both sides",
        ) from error


def seal(data: bytes, recipient: PublicKeys, *, context: bytes) -> bytes:
    """Return bytes that only the recipient can read, and only in the same context."""
    if len(data) > MAX_ATTACHMENT_BYTES:
        raise EnvelopeError("the attachment is too large to seal", why=f"{len(data)} bytes")
    ephemeral = X25519PrivateKey.generate()
    hello = ephemeral.public_key().public_bytes_raw()
    public = recipient.recipient()
    cipher, nonce = _cipher(ephemeral.exchange(public), hello=hello, recipient=public)
    return hello + cipher.encrypt(nonce, data, context)


def unseal(data: bytes, key: KeyPair, *, context: bytes) -> bytes:
    """Return the bytes that were sealed for this key; raise EnvelopeError when they are not."""
    hello = data[:_HELLO_BYTES]
    try:
        shared = key.sealing.exchange(X25519PublicKey.from_public_bytes(hello))
        cipher, nonce = _cipher(shared, hello=hello, recipient=key.sealing.public_key())
        return cipher.decrypt(nonce, data[_HELLO_BYTES:], context)
    except (InvalidTag, ValueError) as error:
        raise EnvelopeError(
            "an attachment cannot be unsealed",
            why="it was changed, cut, or sealed for another key or task",
            fix="send it again",
        ) from error


def _cipher(
    shared: bytes, *, hello: bytes, recipient: X25519PublicKey
) -> tuple[ChaCha20Poly1305, bytes]:
    salt = hello + recipient.public_bytes_raw()
    derived = HKDF(SHA256(), 44, salt=salt, info=b"vitrael seal 1").derive(shared)
    return ChaCha20Poly1305(derived[:32]), derived[32:]  # the key is new, so is the nonce


def attachment_digests(attachments: Mapping[str, Tensors]) -> dict[str, Digest]:
    """Return the digest of each attachment, as ``Task.inputs`` and ``Reply.outputs`` hold it."""
    return {name: digest_bytes(pack_tensors(attachments[name])) for name in sorted(attachments)}


def make_task_parcel(
    task: Task, attachments: Mapping[str, Tensors], *, coordinator: KeyPair, site: PublicKeys
) -> dict[str, bytes]:
    """Return the parcel for one site.

    ``task.inputs`` must name the attachments' digests (see ``attachment_digests``), else
    EnvelopeError.
    """
    sealed = _seal_all(attachments, task.inputs, recipient=site, message=task)
    return {ENVELOPE: sign_task(task, coordinator), **sealed}


def open_task_attachments(task: Task, parcel: Parcel, *, site: KeyPair) -> dict[str, Tensors]:
    """Return the attachments of a task that ``open_task`` gave.

    Raises EnvelopeError unless they are those that the task names, with their digests. Of the
    parcel nothing is read but the names until these are known to be right.
    """
    return _unseal_all(parcel, task.inputs, key=site, message=task)


def make_reply_parcel(
    reply: Reply, attachments: Mapping[str, Tensors], *, site: KeyPair, coordinator: PublicKeys
) -> dict[str, bytes]:
    """Return the parcel for the coordinator; ``reply.outputs`` must name the digests."""
    sealed = _seal_all(attachments, reply.outputs, recipient=coordinator, message=reply)
    return {ENVELOPE: sign_reply(reply, site), **sealed}


def open_reply_parcel(
    parcel: Parcel, *, coordinator: KeyPair, site: PublicKeys
) -> tuple[Reply, dict[str, Tensors]]:
    """Return reply and attachments; raise EnvelopeError unless signature and digests hold."""
    reply = open_reply(parcel.get(ENVELOPE, b""), site)
    return reply, _unseal_all(parcel, reply.outputs, key=coordinator, message=reply)


def _context(message: Task | Reply, name: str) -> bytes:
    kind = _TYPES[type(message)]
    where = [message.protocol, message.site, message.stage, message.round, message.nonce]
    return canonical_json([kind, *where, name])


def _seal_all(
    attachments: Mapping[str, Tensors],
    digests: Mapping[str, Digest],
    *,
    recipient: PublicKeys,
    message: Task | Reply,
) -> dict[str, bytes]:
    _same_names(attachments, digests)
    sealed = {}
    for name in sorted(attachments):
        plain = pack_tensors(attachments[name])
        _same_digest(name, plain, digests)
        sealed[name] = seal(plain, recipient, context=_context(message, name))
    return sealed


def _unseal_all(
    parcel: Parcel, digests: Mapping[str, Digest], *, key: KeyPair, message: Task | Reply
) -> dict[str, Tensors]:
    _same_names({name: None for name in parcel if name != ENVELOPE}, digests)
    opened: dict[str, Tensors] = {}
    for name in sorted(digests):
        plain = unseal(parcel[name], key, context=_context(message, name))
        _same_digest(name, plain, digests)
        opened[name] = unpack_tensors(plain)
    return opened


def _same_names(came: Mapping[str, object], digests: Mapping[str, Digest]) -> None:
    if came.keys() != digests.keys():
        missing = ", ".join(sorted(digests.keys() - came.keys())) or "none"
        raise EnvelopeError(
            "the attachments are not those that the signed document names",
            why=f"missing: {missing}; not named: {len(came.keys() - digests.keys())}",
            fix="send the parcel again",
        )


def _same_digest(name: str, plain: bytes, digests: Mapping[str, Digest]) -> None:
    if digest_bytes(plain) != digests[name]:
        raise EnvelopeError(
            f"attachment {name} has another digest than the signed document says",
            fix="send the parcel again",
        )
