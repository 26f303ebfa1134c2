"""What is signed cannot change, what is sealed cannot be read, what is sent is what was named."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import numpy as np
import pytest

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import EnvelopeError
from vitrael.core.messages import ENVELOPE, Consent, Reply, Task
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
    package_version="1",
    purpose="rehearse",
    max_rounds=2,
    given_utc="2031-05-01T12:00:00+00:00",
    expires_utc="2031-06-01T12:00:00+00:00",
    cohort={"patients": 100, "scans": 120},
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
    reply, outputs = open_reply_parcel(parcel, coordinator=COORDINATOR, site=SITE.public)
    assert reply == REPLY
    np.testing.assert_array_equal(outputs["codec"]["w"], WEIGHTS["codec"]["w"])


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
