"""Signed envelopes and sealed attachments: how a Task, Reply or Consent travels.

Signatures are DSSE envelopes (secure-systems-lab/dsse v1.0) with Ed25519. A Task travels signed, a
Reply signed and sealed. Attachments are safetensors files. Whatever is sealed is so for one
recipient: an ephemeral X25519 exchange, HKDF-SHA256 and ChaCha20-Poly1305, as in RFC 9180's base
mode. Sealing hides; what proves the origin is the signature, and the digest of the plain bytes
inside the signed document.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
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
from vitrael.privacy.enrollment import JoinRequest, SiteWord, Standing
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
    JoinRequest: "application/vnd.vitrael.join+json",
    SiteWord: "application/vnd.vitrael.word+json",
    Standing: "application/vnd.vitrael.standing+json",
}
_HELLO_BYTES = 32
SEAL_BYTES = _HELLO_BYTES + 16
"""By how much a seal makes bytes longer: the hello and the tag of Poly1305."""

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


def claimed_consent(data: bytes) -> Consent:
    """Return what a consent says, whoever signed it: to count what was given, never to obey it.

    Raises EnvelopeError for what is none.
    """
    return _claimed(data, Consent, what="the consent")


def sign_enrollment(message: JoinRequest | SiteWord | Standing, key: KeyPair) -> bytes:
    """Return a document of the enrollment in an envelope signed by whoever says it."""
    return _sign(message, key)


def peek_join(data: bytes) -> JoinRequest:
    """Return a join request whose signature holds by the key that it brings itself.

    That shows possession of the key and not yet whose it is. Raises EnvelopeError.
    """
    claimed = _claimed(data, JoinRequest, what="the join request")
    return _open(data, claimed.keys, JoinRequest, signer="the site")


def claimed_sender(data: bytes) -> str:
    """Return which site a word says that it is of: whose keys to try. Nothing is checked."""
    return _claimed(data, SiteWord, what="the word").site


def open_word(data: bytes, site: PublicKeys) -> SiteWord:
    """Return the word of an envelope; raise EnvelopeError unless the site signed it."""
    return _open(data, site, SiteWord, signer="the site")


def open_standing(data: bytes, coordinator: PublicKeys) -> Standing:
    """Return the standing of an envelope; raise EnvelopeError unless the coordinator signed it."""
    return _open(data, coordinator, Standing, signer="the coordinator")


def _sign(message: Message, key: KeyPair) -> bytes:
    envelope = Envelope(message.to_bytes(), _TYPES[type(message)], {})
    envelope.sign(CryptoSigner(key.signing))
    return canonical_json(envelope.to_dict())


def _claimed(data: bytes, kind: type[M], *, what: str) -> M:
    """Return the document of an envelope whose signature is not checked."""
    _demand_size(data)
    try:
        return kind.from_bytes(Envelope.from_dict(json.loads(data)).payload)
    except (
        AttributeError,
        LookupError,
        RecursionError,
        SecureSystemsError,
        TypeError,
        ValueError,
    ) as error:
        raise EnvelopeError(
            f"{what} cannot be read",
            why="it has no form, or is of another version",
            fix="run the same package version on both sides",
        ) from error


def _demand_size(data: bytes) -> None:
    if len(data) > MAX_ENVELOPE_BYTES:
        raise EnvelopeError("the envelope is too large", why=f"{len(data)} bytes came")


def _open(data: bytes, public: PublicKeys, kind: type[M], *, signer: str) -> M:
    _demand_size(data)
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
            "a part of the parcel cannot be unsealed",
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


@dataclass(frozen=True, slots=True)
class OpenedReply:
    """What a site answered, once signature and digests hold."""

    reply: Reply
    tensors: dict[str, Tensors]
    envelope: bytes
    """The reply as the site signed it, for others to check (``open_reply``)."""


def make_reply_parcel(
    reply: Reply, attachments: Mapping[str, Tensors], *, site: KeyPair, coordinator: PublicKeys
) -> dict[str, bytes]:
    """Return the parcel for the coordinator; ``reply.outputs`` must name the digests.

    All of it is sealed, the signed reply too: who carries it reads nothing but its size.
    """
    sealed = _seal_all(attachments, reply.outputs, recipient=coordinator, message=reply)
    context = _context(Reply, reply, ENVELOPE)
    return {ENVELOPE: seal(sign_reply(reply, site), coordinator, context=context), **sealed}


def open_reply_parcel(
    parcel: Parcel, task: Task, *, coordinator: KeyPair, site: PublicKeys
) -> OpenedReply:
    """Return what answers a task.

    Raises EnvelopeError unless it was sealed for that very task, and signature and digests hold.
    Nothing large is unsealed before its size is known to be right.
    """
    sealed = parcel.get(ENVELOPE, b"")
    if len(sealed) > MAX_ENVELOPE_BYTES + SEAL_BYTES:
        raise EnvelopeError("the envelope is too large", why=f"{len(sealed)} bytes came")
    envelope = unseal(sealed, coordinator, context=_context(Reply, task, ENVELOPE))
    reply = open_reply(envelope, site)
    reply.check_answers(task)
    tensors = _unseal_all(parcel, reply.outputs, key=coordinator, message=reply)
    return OpenedReply(reply, tensors, envelope)


def _context(kind: type[Task | Reply], message: Task | Reply, name: str) -> bytes:
    """Return what binds a sealed entry to its place: a reply's bears the task's own names."""
    where = [message.protocol, message.site, message.stage, message.round, message.nonce]
    return canonical_json([_TYPES[kind], *where, name])


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
        sealed[name] = seal(plain, recipient, context=_context(type(message), message, name))
    return sealed


def _unseal_all(
    parcel: Parcel, digests: Mapping[str, Digest], *, key: KeyPair, message: Task | Reply
) -> dict[str, Tensors]:
    _same_names({name: None for name in parcel if name != ENVELOPE}, digests)
    opened: dict[str, Tensors] = {}
    for name in sorted(digests):
        plain = unseal(parcel[name], key, context=_context(type(message), message, name))
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
