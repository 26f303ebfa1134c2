from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tests.factories.tls import shake_hands
from vitrael.privacy.loopback_tls import TlsFiles, create_secret, create_tls

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_what_fits_is_kept(tmp_path: Path) -> None:
    first = create_tls(tmp_path, party="x", now=NOW).certificate.read_bytes()
    assert create_tls(tmp_path, party="x", now=NOW).certificate.read_bytes() == first


@pytest.mark.parametrize("name", ["ca.crt", "server.pem", "server.key"])
def test_what_a_kill_left_half_is_made_anew(tmp_path: Path, name: str) -> None:
    first = create_tls(tmp_path / "a", party="x", now=NOW)
    other = create_tls(tmp_path / "b", party="x", now=NOW)
    before = first.certificate.read_bytes()
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    assert create_tls(tmp_path / "a", party="x", now=NOW).certificate.read_bytes() not in {
        before,
        other.certificate.read_bytes(),
    }


def test_what_runs_out_is_made_anew(tmp_path: Path) -> None:
    first = create_tls(tmp_path, party="x", now=NOW).certificate.read_bytes()
    later = NOW + timedelta(days=800)
    assert create_tls(tmp_path, party="x", now=later).certificate.read_bytes() != first


def test_what_is_for_another_host_is_made_anew(tmp_path: Path) -> None:
    first = create_tls(tmp_path, party="x", now=NOW).certificate.read_bytes()
    elsewhere = create_tls(tmp_path, party="x", now=NOW, host="node").certificate.read_bytes()
    names = x509.load_pem_x509_certificate(elsewhere).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert elsewhere != first
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost", "node"]
    assert create_tls(tmp_path, party="x", now=NOW, host="node").certificate.read_bytes() == (
        elsewhere
    )


def test_the_arguments_are_flower_s(tmp_path: Path) -> None:
    words = TlsFiles.of(tmp_path).arguments()
    assert words[::2] == ("--ssl-ca-certfile", "--ssl-certfile", "--ssl-keyfile")


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_secret_is_open_to_whom_it_is_for(tmp_path: Path, mode: int) -> None:
    create_secret(tmp_path / "secret", mode=mode)
    first = (tmp_path / "secret").read_bytes()
    create_secret(tmp_path / "secret", mode=mode)
    assert (tmp_path / "secret").read_bytes() == first
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == mode


def test_a_kill_between_a_secret_and_its_mode_locks_nobody_out(tmp_path: Path) -> None:
    create_secret(tmp_path / "secret", mode=0o600)
    secret = (tmp_path / "secret").read_bytes()
    create_secret(tmp_path / "secret", mode=0o640)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o640
    assert (tmp_path / "secret").read_bytes() == secret


def test_a_server_is_trusted_by_its_own_authority_only(tmp_path: Path) -> None:
    now = datetime.now(UTC)  # a handshake looks at the real clock
    north = create_tls(tmp_path / "north", party="north", now=now)
    south = create_tls(tmp_path / "south", party="south", now=now)
    shake_hands(north, north.authority, "127.0.0.1")
    shake_hands(north, north.authority, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(north, south.authority, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(north, north.authority, "10.0.0.1")


def test_the_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    assert stat.S_IMODE(create_tls(tmp_path, party="x", now=NOW).key.stat().st_mode) == 0o600
