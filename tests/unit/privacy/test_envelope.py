"""What is signed cannot change, what is sealed cannot be read, what is sent is what was named."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import numpy as np
import pytest

from vitrael.core.digest import canonical_json, digest_bytes
from vitrael.core.errors import EnvelopeError
from vitrael.core.messages import ENVELOPE, CohortTerms, Consent, Head, PrivacyTerms, Reply, Task
from vitrael.privacy.envelope import (
    MAX_ENVELOPE_BYTES,
    attachment_digests,
    make_reply_parcel,
    make_task_parcel,
    open_consent,
    open_reply,
    open_reply_parcel,
    open_task,
    open_task_attachments,
    seal,
    sign_consent,
    sign_reply,
    sign_task,
    unseal,
)
from vitrael.privacy.keys import KeyPair

COORDINATOR, SITE, FOREIGN = KeyPair.create(), KeyPair.create(), KeyPair.create()
WEIGHTS = {"codec": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}}
DIGEST = digest_bytes(b"a protocol")

TASK = Task(
    protocol=DIGEST,
    roster=DIGEST,
    site="north",
    stage="codec",
    round=0,
    nonce="0" * 32,
    issued_utc="2031-05-01T12:00:00+00:00",
    deadline_s=60,
    inputs=attachment_digests(WEIGHTS),
)
REPLY = Reply(
    protocol=DIGEST,
    roster=DIGEST,
    site="north",
    stage="codec",
    round=0,
    nonce="0" * 32,
    status="done",
    outputs=attachment_digests(WEIGHTS),
)
CONSENT = Consent(
    site="north",
    protocol=DIGEST,
    roster=DIGEST,
    members={"north": DIGEST},
    package_version="1",
    lock=DIGEST,
    purpose="rehearse",
    privacy=PrivacyTerms(
        path="empirical", policy="public", screening=True, false_match_rate=0.05, votes=8
    ),
    max_rounds=2,
    given_utc="2031-05-01T12:00:00+00:00",
    expires_utc="2031-06-01T12:00:00+00:00",
    cohort=CohortTerms(name="main", version=1, digest=DIGEST, patients=100, scans=120),
)


def task_parcel() -> dict[str, bytes]:
    return make_task_parcel(TASK, WEIGHTS, coordinator=COORDINATOR, site=SITE.public)


def test_signed_documents_come_back() -> None:
    assert open_task(sign_task(TASK, COORDINATOR), COORDINATOR.public) == TASK
    assert open_reply(sign_reply(REPLY, SITE), SITE.public) == REPLY
    assert open_consent(sign_consent(CONSENT, SITE), SITE.public) == CONSENT


def test_foreign_key_is_refused() -> None:
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        open_task(sign_task(TASK, FOREIGN), COORDINATOR.public)


def with_foreign_signature_under_our_key_id(data: bytes) -> bytes:
    envelope = json.loads(data)
    foreign = json.loads(sign_task(TASK, FOREIGN))
    envelope["signatures"][0]["sig"] = foreign["signatures"][0]["sig"]
    return json.dumps(envelope).encode()


def with_other_payload(data: bytes) -> bytes:
    envelope = json.loads(data)
    changed = TASK.model_copy(update={"round": 1}).to_bytes()
    envelope["payload"] = base64.b64encode(changed).decode()
    return json.dumps(envelope).encode()


def without_signature(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "signatures": []}).encode()


@pytest.mark.parametrize(
    "change",
    [with_foreign_signature_under_our_key_id, with_other_payload, without_signature],
)
def test_changed_envelope_is_refused(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        open_task(change(sign_task(TASK, COORDINATOR)), COORDINATOR.public)


def test_any_changed_byte_is_refused_or_means_the_same() -> None:
    data = sign_task(TASK, COORDINATOR)
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 1
        try:
            opened = open_task(bytes(changed), COORDINATOR.public)
        except EnvelopeError:
            continue
        assert opened == TASK  # spare bits of base64 carry no meaning


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"\xff", b'{"payload": 1, "signatures": 2}', b"[" * 9999]
)
def test_bytes_that_are_no_envelope_are_refused(data: bytes) -> None:
    with pytest.raises(EnvelopeError, match="not DSSE"):
        open_task(data, COORDINATOR.public)


def test_large_envelope_is_refused_unparsed() -> None:
    with pytest.raises(EnvelopeError, match="too large"):
        open_task(b"[" * (MAX_ENVELOPE_BYTES + 1), COORDINATOR.public)


def test_reply_is_no_task() -> None:
    with pytest.raises(EnvelopeError, match="another type"):
        open_task(sign_reply(REPLY, COORDINATOR), COORDINATOR.public)


def test_sealed_bytes_are_read_by_their_recipient_in_their_context_alone() -> None:
    sealed = seal(b"weights", SITE.public, context=b"here")
    assert unseal(sealed, SITE, context=b"here") == b"weights"
    assert b"weights" not in sealed
    for key, context in ((FOREIGN, b"here"), (SITE, b"there")):
        with pytest.raises(EnvelopeError, match="cannot be unsealed"):
            unseal(sealed, key, context=context)


def test_sealing_twice_gives_different_bytes() -> None:
    assert seal(b"x", SITE.public, context=b"") != seal(b"x", SITE.public, context=b"")


def test_changed_or_cut_seal_is_refused() -> None:
    sealed = seal(b"weights", SITE.public, context=b"")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(EnvelopeError, match="cannot be unsealed"):
            unseal(bytes(changed), SITE, context=b"")
        with pytest.raises(EnvelopeError, match="cannot be unsealed"):
            unseal(sealed[:place], SITE, context=b"")


def test_seal_for_the_zero_key_is_refused() -> None:
    with pytest.raises(EnvelopeError, match="cannot be unsealed"):
        unseal(bytes(100), SITE, context=b"")


def test_parcels_come_back() -> None:
    task = open_task(task_parcel()[ENVELOPE], COORDINATOR.public)
    assert task == TASK
    inputs = open_task_attachments(task, task_parcel(), site=SITE)
    np.testing.assert_array_equal(inputs["codec"]["w"], WEIGHTS["codec"]["w"])
    parcel = make_reply_parcel(REPLY, WEIGHTS, site=SITE, coordinator=COORDINATOR.public)
    opened = open_reply_parcel(parcel, TASK, coordinator=COORDINATOR, site=SITE.public)
    assert opened.reply == REPLY == open_reply(opened.envelope, SITE.public)
    np.testing.assert_array_equal(opened.tensors["codec"]["w"], WEIGHTS["codec"]["w"])


def reply_parcel(reply: Reply = REPLY) -> dict[str, bytes]:
    return make_reply_parcel(reply, WEIGHTS, site=SITE, coordinator=COORDINATOR.public)


def test_reply_tells_whoever_carries_it_nothing() -> None:
    reply = REPLY.model_copy(update={"reason": "the loss was", "body": {"curve_loss": [0.1875]}})
    carried = b"".join(reply_parcel(reply).values())
    signed = sign_reply(reply, SITE)
    readable = (reply.reason.encode(), b"curve_loss", b"payload", b"keyid", DIGEST.encode()[7:])
    assert not any(piece in carried for piece in readable)
    assert WEIGHTS["codec"]["w"].tobytes() not in carried
    assert b"payload" in signed  # what is not sealed would show it
    assert reply_parcel(reply)[ENVELOPE] != reply_parcel(reply)[ENVELOPE]


@pytest.mark.parametrize("reader", [SITE, FOREIGN], ids=["site", "foreign"])
def test_reply_is_readable_to_the_coordinator_alone(reader: KeyPair) -> None:
    with pytest.raises(EnvelopeError, match="cannot be unsealed"):
        open_reply_parcel(reply_parcel(), TASK, coordinator=reader, site=SITE.public)
    assert open_reply_parcel(reply_parcel(), TASK, coordinator=COORDINATOR, site=SITE.public)


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "1" * 32},
        {"round": 1},
        {"stage": "teacher"},
        {"site": "harbour"},
        {"protocol": digest_bytes(b"another")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_reply_to_another_task_is_not_even_unsealed(change: dict[str, object]) -> None:
    other = TASK.model_copy(update=change)
    with pytest.raises(EnvelopeError, match="cannot be unsealed"):
        open_reply_parcel(reply_parcel(), other, coordinator=COORDINATOR, site=SITE.public)


def test_reply_under_another_roster_is_refused() -> None:
    other = TASK.model_copy(update={"roster": digest_bytes(b"another")})
    with pytest.raises(EnvelopeError, match="answers another task"):
        open_reply_parcel(reply_parcel(), other, coordinator=COORDINATOR, site=SITE.public)


def test_reply_that_another_signed_is_refused_though_it_is_sealed_well() -> None:
    parcel = make_reply_parcel(REPLY, WEIGHTS, site=FOREIGN, coordinator=COORDINATOR.public)
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        open_reply_parcel(parcel, TASK, coordinator=COORDINATOR, site=SITE.public)


def test_reply_that_is_not_sealed_or_too_large_is_refused() -> None:
    for envelope in (sign_reply(REPLY, SITE), b"", bytes(40)):
        with pytest.raises(EnvelopeError, match="cannot be unsealed"):
            open_reply_parcel(
                {**reply_parcel(), ENVELOPE: envelope},
                TASK,
                coordinator=COORDINATOR,
                site=SITE.public,
            )
    swollen = {**reply_parcel(), ENVELOPE: bytes(MAX_ENVELOPE_BYTES + 100)}
    with pytest.raises(EnvelopeError, match="too large"):
        open_reply_parcel(swollen, TASK, coordinator=COORDINATOR, site=SITE.public)


def test_documents_without_heads_keep_the_form_that_was_signed_before() -> None:
    head = Head(lines=3, hash=DIGEST)
    for document, names in ((TASK, {"journal", "yours"}), (REPLY, {"journal"})):
        assert not names & json.loads(document.to_bytes()).keys()
        quoting = document.model_copy(update=dict.fromkeys(names, head))
        assert names <= json.loads(quoting.to_bytes()).keys()
        assert type(document).from_bytes(quoting.to_bytes()) == quoting
        spelled = canonical_json({**json.loads(document.to_bytes()), **dict.fromkeys(names)})
        with pytest.raises(ValueError, match="canonical"):
            type(document).from_bytes(spelled)


def test_attachment_that_is_missing_or_not_named_is_refused() -> None:
    parcel = task_parcel()
    for changed in ({ENVELOPE: parcel[ENVELOPE]}, {**parcel, "more": b"x"}):
        with pytest.raises(EnvelopeError, match="not those that the signed document names"):
            open_task_attachments(TASK, changed, site=SITE)


def test_attachment_of_another_task_is_refused() -> None:
    later = TASK.model_copy(update={"nonce": "1" * 32})
    other = make_task_parcel(later, WEIGHTS, coordinator=COORDINATOR, site=SITE.public)
    mixed = {**task_parcel(), "codec": other["codec"]}
    with pytest.raises(EnvelopeError, match="cannot be unsealed"):
        open_task_attachments(TASK, mixed, site=SITE)


def test_tensors_that_the_document_does_not_name_are_refused() -> None:
    others = {"codec": {"w": np.zeros((2, 3), np.float32)}}
    with pytest.raises(EnvelopeError, match="another digest"):
        make_task_parcel(TASK, others, coordinator=COORDINATOR, site=SITE.public)
