"""A node key is made once, and proves that it is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve

from vitrael.core.errors import AuthError
from vitrael.privacy.node_keys import check_node_proof, create_node_key, load_node_key, prove_node


def test_proof_holds_for_its_key_and_statement_alone(tmp_path: Path) -> None:
    public = create_node_key(tmp_path / "node").decode()
    other = create_node_key(tmp_path / "other").decode()
    proof = prove_node(load_node_key(tmp_path / "node"), b"this")
    check_node_proof(public, b"this", proof)
    for wrong in ((public, b"that", proof), (other, b"this", proof), (public, b"this", "00" * 70)):
        with pytest.raises(AuthError, match="proof does not hold"):
            check_node_proof(*wrong)


@pytest.mark.parametrize("public", ["", "no key", "-----BEGIN PUBLIC KEY-----\n"])
def test_proof_of_no_key_is_refused(public: str) -> None:
    with pytest.raises(AuthError, match="proof does not hold"):
        check_node_proof(public, b"this", "00")


def test_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(AuthError, match="P-384"):
        check_node_proof(public.decode(), b"this", prove_node(key, b"this"))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (tmp_path / "node").write_bytes(pem)
    with pytest.raises(AuthError, match="P-384"):
        load_node_key(tmp_path / "node")


def test_key_is_made_once(tmp_path: Path) -> None:
    assert create_node_key(tmp_path / "node") == create_node_key(tmp_path / "node")
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o600


def test_error_names_no_place(tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="cannot be read") as caught:
        load_node_key(tmp_path / "keys" / "node")
    assert str(tmp_path) not in str(caught.value)
    assert "keys/node" in str(caught.value)


def test_node_keys_are_what_flower_takes(tmp_path: Path) -> None:
    key = bytes_to_public_key(create_node_key(tmp_path / "node"))
    assert uses_nist_ec_curve(key)
    assert key == load_node_key(tmp_path / "node").public_key()
    assert (tmp_path / "node.pub").read_bytes().startswith(b"ecdsa-sha2-nistp384 ")


def test_a_file_that_is_no_node_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node").write_bytes(b"no key")
    with pytest.raises(AuthError, match="no node key"):
        create_node_key(tmp_path / "node")
