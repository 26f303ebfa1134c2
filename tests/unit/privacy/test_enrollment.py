"""The documents of enrollment: what they take, what they hide, what is read aloud."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from vitrael.core.errors import EnvelopeError
from vitrael.privacy.enrollment import (
    Address,
    Invitation,
    JoinRequest,
    SiteWord,
    Standing,
    join_fingerprint,
    proof_of,
)
from vitrael.privacy.envelope import (
    MAX_ENVELOPE_BYTES,
    claimed_sender,
    open_standing,
    open_word,
    peek_join,
    sign_enrollment,
)
from vitrael.privacy.keys import KeyPair, PublicKeys

KEYS = PublicKeys(signing="1" * 64, sealing="2" * 64)
COORDINATOR = PublicKeys(signing="8" * 64, sealing="9" * 64)
NODE = "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----\n"
UTC = "2031-05-01T12:00:00+00:00"
TOKEN = "c" * 64


def request(keys: PublicKeys = KEYS, **changes: Any) -> JoinRequest:
    fields = {"site": "north", "token": TOKEN, "keys": keys, "node": NODE, "node_proof": "ab"}
    return JoinRequest(**{**fields, "package_version": "1", "utc": UTC, **changes})


@pytest.mark.parametrize(
    "address",
    ["a:1", "vitrael.example.org:443", "10.0.0.1:65535", "[::1]:8443", "[fd00::1]:1", "A-b.c:80"],
)
def test_an_address_is_host_and_port(address: str) -> None:
    assert TypeAdapter(Address).validate_python(address) == address


@pytest.mark.parametrize(
    "address",
    [
        *(
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "a:-1",
            "a:\N{FULLWIDTH DIGIT ONE}",
            "http://a:1",
            "a/b:1",
            "a b:1",
        ),
        *("[::1]", "[::g]:1", "[1.2.3.4]:1", "::1:1", "-a:1", "a..b:1", "a.:1", "a\n:1", "a:1\n"),
        *("u@a:1", f"{'a' * 64}:1", f"{'.'.join(['a' * 60] * 5)}:1"),
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="not host:port"):
        TypeAdapter(Address).validate_python(address)


def test_no_token_is_shown() -> None:
    invitation = Invitation(
        site="north",
        address="a:1",
        authority="pem",
        coordinator=KEYS,
        token=TOKEN,
        expires_utc=UTC,
    )
    for document in (invitation, request()):
        assert TOKEN not in repr(document)
        assert TOKEN not in str(document)
        assert TOKEN in document.to_bytes().decode()


def test_the_fingerprint_changes_with_each_key_and_not_with_white_space() -> None:
    def read(keys: PublicKeys = KEYS, node: str = NODE, other: PublicKeys = COORDINATOR) -> str:
        return join_fingerprint(keys, node, coordinator=other)

    digits = read()
    assert len(digits) == 79
    assert {len(group) for group in digits.split(" ")} == {4}
    assert read(node=NODE.replace("\n", "\r\n")) == digits
    others = {
        read(KEYS.model_copy(update={"signing": "3" * 64})),
        read(KEYS.model_copy(update={"sealing": "3" * 64})),
        read(node=NODE.replace("abc", "abd")),
        read(PublicKeys(signing=KEYS.sealing, sealing=KEYS.signing)),
        read(other=COORDINATOR.model_copy(update={"signing": "3" * 64})),
        read(other=COORDINATOR.model_copy(update={"sealing": "3" * 64})),
    }
    assert len(others | {digits}) == 7


@pytest.mark.parametrize("reason", ["\x1b[2K", "two\nlines", "\u202egnol", "x" * 501])
def test_a_word_is_one_line_that_can_be_printed(reason: str) -> None:
    def say(text: str) -> SiteWord:
        return SiteWord(site="north", kind="leave", reason=text, nonce="0" * 32, utc=UTC)

    with pytest.raises(ValidationError):
        say(reason)
    assert say("x" * 500).reason == "x" * 500


def test_a_proof_is_bound_to_site_and_keys() -> None:
    other = KEYS.model_copy(update={"sealing": "3" * 64})
    proofs = {proof_of(KEYS, site="north"), proof_of(KEYS, site="south"), proof_of(other, site="x")}
    assert len(proofs) == 3


@pytest.mark.parametrize("proof", ["", "a", "abc", "AB", "zz", "ab" * 257])
def test_a_proof_is_whole_bytes_in_hex(proof: str) -> None:
    with pytest.raises(ValidationError):
        request(node_proof=proof)


def test_a_request_is_signed_by_the_key_that_it_brings() -> None:
    site, other = KeyPair.create(), KeyPair.create()
    assert peek_join(sign_enrollment(request(site.public), site)).keys == site.public
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        peek_join(sign_enrollment(request(site.public), other))


def test_a_word_names_its_sender_before_its_signature_is_checked() -> None:
    site, other = KeyPair.create(), KeyPair.create()
    word = SiteWord(site="north", kind="standing", nonce="0" * 32, utc=UTC)
    data = sign_enrollment(word, other)
    assert claimed_sender(data) == "north"
    assert open_word(data, other.public) == word
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        open_word(data, site.public)
    with pytest.raises(EnvelopeError, match="cannot be read"):
        claimed_sender(b"{}")
    with pytest.raises(EnvelopeError, match="too large"):
        claimed_sender(b" " * (MAX_ENVELOPE_BYTES + 1))


def test_a_standing_is_believed_from_the_coordinator_alone() -> None:
    coordinator, other = KeyPair.create(), KeyPair.create()
    standing = Standing(site="north", status="pending", nonce="0" * 32, utc=UTC)
    data = sign_enrollment(standing, coordinator)
    assert open_standing(data, coordinator.public) == standing
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        open_standing(data, other.public)
    # One kind of document does not pass for another.
    with pytest.raises(EnvelopeError, match="another type"):
        open_word(data, coordinator.public)
