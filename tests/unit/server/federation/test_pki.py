from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, uses_nist_ec_curve

from vitrael.core.errors import AuthError
from vitrael.server.federation.pki import (
    TlsFiles,
    create_node_key,
    create_secret,
    create_tls,
    load_node_key,
)


@pytest.fixture(scope="module")
def now() -> datetime:
    import time

    return datetime.fromtimestamp(time.time(), UTC)


def shake_hands(server: TlsFiles, trusted: Path, name: str) -> None:
    """Do a TLS handshake in memory; raises what the client thinks of the server."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(server.certificate, server.key)
    theirs = ssl.create_default_context(cafile=str(trusted))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(down, up, server_hostname=name)
    host = ours.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (client, host):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() is not None


def test_a_server_is_trusted_by_its_own_authority_only(tmp_path: Path, now: datetime) -> None:
    north = create_tls(tmp_path / "north", party="north", now=now)
    south = create_tls(tmp_path / "south", party="south", now=now)
    shake_hands(north, north.authority, "127.0.0.1")
    shake_hands(north, north.authority, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(north, south.authority, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(north, north.authority, "10.0.0.1")


def test_private_halves_are_for_their_owner_alone(tmp_path: Path, now: datetime) -> None:
    files = create_tls(tmp_path, party="x", now=now)
    create_node_key(tmp_path / "node")
    create_secret(tmp_path / "secret")
    for path in (files.key, tmp_path / "node", tmp_path / "secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_certificates_are_kept_until_they_run_out(tmp_path: Path, now: datetime) -> None:
    first = create_tls(tmp_path, party="x", now=now).certificate.read_bytes()
    assert create_tls(tmp_path, party="x", now=now).certificate.read_bytes() == first
    later = now + timedelta(days=820)
    renewed = create_tls(tmp_path, party="x", now=later).certificate.read_bytes()
    assert renewed != first
    assert x509.load_pem_x509_certificate(renewed).not_valid_after_utc > later


def test_node_keys_are_what_flower_takes(tmp_path: Path) -> None:
    public = create_node_key(tmp_path / "node")
    key = bytes_to_public_key(public)
    assert uses_nist_ec_curve(key)
    assert key == load_node_key(tmp_path / "node").public_key()
    assert (tmp_path / "node.pub").read_bytes().startswith(b"ecdsa-sha2-nistp384 ")
    assert create_node_key(tmp_path / "node") == public


def test_a_file_that_is_no_node_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "node").write_bytes(b"no key")
    with pytest.raises(AuthError, match="no node key"):
        create_node_key(tmp_path / "node")
    with pytest.raises(AuthError, match="no node key"):
        load_node_key(tmp_path / "missing")


def test_a_secret_stays(tmp_path: Path) -> None:
    create_secret(tmp_path / "secret")
    first = (tmp_path / "secret").read_bytes()
    create_secret(tmp_path / "secret")
    assert (tmp_path / "secret").read_bytes() == first
    assert len(first) == 64


def test_the_curve_is_p384(tmp_path: Path) -> None:
    create_node_key(tmp_path / "node")
    assert isinstance(load_node_key(tmp_path / "node").curve, ec.SECP384R1)
