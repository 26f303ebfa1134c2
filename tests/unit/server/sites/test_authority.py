"""The certificate names the host of the address; what the operator brings is checked like it."""

from __future__ import annotations

import shutil
import ssl
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from tests.factories.tls import shake_hands
from tests.fakes.clock import START
from vitrael.core.errors import AuthError, ConfigError
from vitrael.privacy.certificates import issue_authority, issue_server
from vitrael.privacy.loopback_tls import TlsFiles
from vitrael.server.config import OwnTls, ServerDocument, ServerSettings
from vitrael.server.sites.authority import (
    authority_file,
    create_authority,
    host_of,
    load_authority,
    present_tls,
    read_validity,
    server_hosts,
)

HOST = "vitrael.example.org"
YEAR = timedelta(days=365)


def shown(files: TlsFiles) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())


def names(files: TlsFiles) -> list[object]:
    extension = shown(files).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [name.value for name in extension.value]


def at(settings: ServerSettings, address: str) -> ServerSettings:
    return replace(settings, document=ServerDocument(address=address))


def test_a_site_believes_the_certificate_for_its_host_alone(tmp_path: Path) -> None:
    now = datetime.fromtimestamp(time.time(), UTC)
    settings = ServerSettings(tmp_path, ServerDocument(address=f"{HOST}:443"))
    create_authority(settings.authority, address=settings.document.address, now=now)
    files = present_tls(settings, now=now)
    shake_hands(files, authority_file(settings), HOST)
    for other in ("other.example.org", "localhost", "127.0.0.1"):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(files, authority_file(settings), other)
    create_authority(tmp_path / "other", address="x:1", now=now)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files, tmp_path / "other" / "ca.crt", HOST)


@pytest.mark.parametrize(
    ("address", "hosts"),
    [
        ("vitrael.example.org:443", ["vitrael.example.org"]),
        ("10.1.2.3:8443", [ip_address("10.1.2.3")]),
        ("[fd00::1]:8443", [ip_address("fd00::1")]),
        ("localhost:8443", ["localhost", ip_address("127.0.0.1")]),
        ("127.0.0.1:8443", [ip_address("127.0.0.1"), "localhost"]),
        ("[::1]:8443", [ip_address("::1"), "localhost", ip_address("127.0.0.1")]),
    ],
)
def test_the_certificate_names_the_host_of_the_address(
    settings: ServerSettings, address: str, hosts: list[object]
) -> None:
    files = present_tls(at(settings, address), now=START)
    assert names(files) == hosts
    assert len(server_hosts(host_of(address))) == len(hosts)


def test_private_keys_are_for_their_owner_alone(settings: ServerSettings) -> None:
    for path in (settings.authority / "ca.key", settings.tls / "server.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_authority_signs_servers_and_no_other_authority(settings: ServerSettings) -> None:
    authority = load_authority(settings.authority)
    limits = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    assert isinstance(authority.key.curve, ec.SECP384R1)


def test_the_certificate_is_kept_until_31_days_before_its_end(settings: ServerSettings) -> None:
    first = shown(present_tls(settings, now=START))
    ends = first.not_valid_after_utc
    assert shown(present_tls(settings, now=ends - timedelta(days=32))) == first
    renewed = shown(present_tls(settings, now=ends - timedelta(days=30)))
    assert renewed.not_valid_after_utc > ends
    assert read_validity(settings).certificate == renewed.not_valid_after_utc


def test_the_certificate_is_made_anew_for_another_host(settings: ServerSettings) -> None:
    assert names(present_tls(at(settings, "new.example.org:443"), now=START)) == ["new.example.org"]


@pytest.mark.parametrize("name", ["server.pem", "server.key", "ca.crt"])
def test_a_damaged_file_is_made_anew(settings: ServerSettings, name: str) -> None:
    before = (settings.tls / name).read_bytes()
    (settings.tls / name).write_bytes(before[:100])
    files = present_tls(settings, now=START)
    assert shown(files).not_valid_after_utc > START
    assert (settings.tls / "ca.crt").read_bytes() == (settings.authority / "ca.crt").read_bytes()
    # A key that does not belong to the certificate is noticed too.
    other = ec.generate_private_key(ec.SECP384R1())
    write_key(files.key, other)
    assert shown(present_tls(settings, now=START)).public_key() != other.public_key()


def test_no_certificate_outlives_the_authority(settings: ServerSettings) -> None:
    ends = load_authority(settings.authority).certificate.not_valid_after_utc
    late = ends - timedelta(days=10)
    last = shown(present_tls(settings, now=late))
    assert last.not_valid_after_utc == ends
    assert shown(present_tls(settings, now=late + timedelta(days=1))) == last
    with pytest.raises(AuthError, match=r"authority has expired.*sites rotate SITE"):
        present_tls(settings, now=ends)


def test_an_authority_whose_process_was_killed_is_completed(settings: ServerSettings) -> None:
    key = (settings.authority / "ca.key").read_bytes()
    (settings.authority / "ca.crt").unlink()
    create_authority(settings.authority, address="x.example.org:1", now=START)
    assert (settings.authority / "ca.key").read_bytes() == key
    load_authority(settings.authority)


@pytest.mark.parametrize("damage", ["gone", "cut", "open", "foreign"])
def test_an_authority_that_is_not_whole_is_refused(settings: ServerSettings, damage: str) -> None:
    path = settings.authority / "ca.key"
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:60])
    elif damage == "open":
        path.chmod(0o640)
    else:
        write_key(path, ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(AuthError, match=r"ca\.key"):
        present_tls(settings, now=START)
    shutil.rmtree(settings.authority)
    with pytest.raises(AuthError, match=r"authority/ca\.crt cannot be read.*server init"):
        present_tls(settings, now=START)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem)
    path.chmod(0o600)


Maker = Callable[..., ServerSettings]


@pytest.fixture
def with_own(settings: ServerSettings, tmp_path: Path) -> Maker:
    """Return a maker of settings whose operator brings a certificate of the hospital."""

    def make(
        host: str = HOST,
        *,
        now: datetime = START,
        between: bool = False,
        lifetime: timedelta = YEAR,
    ) -> ServerSettings:
        root_key, key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
        root = issue_authority(root_key, name="Hospital", now=now, lifetime=10 * YEAR)
        signer, signer_key, chain = root, root_key, b""
        if between:
            signer_key = ec.generate_private_key(ec.SECP384R1())
            root, signer = issue_between(root_key, signer_key, now=now)
            chain = signer.public_bytes(Encoding.PEM)
        server = issue_server(
            key.public_key(),
            hosts=(host,),
            authority=signer,
            authority_key=signer_key,
            now=now,
            lifetime=lifetime,
        )
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        (folder / "ca.pem").write_bytes(root.public_bytes(Encoding.PEM))
        (folder / "server.pem").write_bytes(server.public_bytes(Encoding.PEM) + chain)
        write_key(folder / "server.key", key)
        own = OwnTls(
            certificate=folder / "server.pem",
            key=folder / "server.key",
            authority=folder / "ca.pem",
        )
        return replace(settings, document=ServerDocument(address=f"{HOST}:443", tls=own))

    return make


def issue_between(
    root_key: ec.EllipticCurvePrivateKey, key: ec.EllipticCurvePrivateKey, *, now: datetime
) -> tuple[x509.Certificate, x509.Certificate]:
    """Return a root that may sign authorities, and one that it has signed."""
    made = []
    for level, (name, public) in enumerate((("Root", root_key), ("Between", key))):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        root = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Root")])
        usage = dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment"),
                *("data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
            ),
            False,
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
        subject_id = x509.SubjectKeyIdentifier.from_public_key(public.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + 5 * YEAR)
            .public_key(public.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=1 - level), critical=True)
            .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
            .add_extension(subject_id, critical=False)
            .add_extension(issuer, critical=False)
        )
        made.append(builder.sign(root_key, hashes.SHA384()))
    return made[0], made[1]


@pytest.mark.parametrize("between", [False, True])
def test_an_own_certificate_for_the_host_is_shown(with_own: Maker, *, between: bool) -> None:
    settings = with_own(between=between)
    files = present_tls(settings, now=START)
    assert files.certificate.parent.name == "own"
    assert authority_file(settings) == files.authority
    assert read_validity(settings).certificate == shown(files).not_valid_after_utc


def test_an_own_wildcard_names_the_host(with_own: Maker) -> None:
    assert present_tls(with_own("*.example.org"), now=START).certificate.parent.name == "own"


def test_an_own_certificate_for_another_host_is_refused(with_own: Maker) -> None:
    with pytest.raises(ConfigError, match=rf"tls\.certificate: it does not name {HOST}"):
        present_tls(with_own("other.example.org"), now=START)


def test_an_own_certificate_that_has_expired_is_refused(with_own: Maker) -> None:
    settings = with_own(lifetime=timedelta(days=30))
    present_tls(settings, now=START)
    with pytest.raises(ConfigError, match=r"holds from 2031-04-30 to 2031-05-31 and not now"):
        present_tls(settings, now=START + timedelta(days=31))


def test_an_own_certificate_of_the_future_is_refused(with_own: Maker) -> None:
    with pytest.raises(ConfigError, match="and not now"):
        present_tls(with_own(now=START + YEAR), now=START)


def test_an_own_certificate_of_another_authority_is_refused(
    with_own: Maker, settings: ServerSettings
) -> None:
    own = with_own()
    assert own.document.tls is not None
    shutil.copy(settings.authority / "ca.crt", own.document.tls.authority)
    with pytest.raises(ConfigError, match=r"tls\.authority: tls\.certificate does not lead to it"):
        present_tls(own, now=START)


def test_an_own_certificate_without_those_between_is_refused(with_own: Maker) -> None:
    own = with_own(between=True)
    assert own.document.tls is not None
    first = shown(TlsFiles(Path(), own.document.tls.certificate, Path()))
    own.document.tls.certificate.write_bytes(first.public_bytes(Encoding.PEM))
    with pytest.raises(ConfigError, match="put the certificates between them behind"):
        present_tls(own, now=START)


def test_an_own_key_that_does_not_fit_is_refused(with_own: Maker) -> None:
    own = with_own()
    assert own.document.tls is not None
    write_key(own.document.tls.key, ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(ConfigError, match=r"tls\.key: it is not the key of tls\.certificate"):
        present_tls(own, now=START)


def test_an_own_key_with_a_passphrase_is_refused(with_own: Maker) -> None:
    own = with_own()
    assert own.document.tls is not None
    path = own.document.tls.key
    key = load_pem_private_key(path.read_bytes(), None)
    locked = key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"five words are enough here")
    )
    path.write_bytes(locked)
    with pytest.raises(ConfigError, match=r"tls\.key: it is protected by a passphrase.*without a"):
        present_tls(own, now=START)


def test_an_own_key_that_is_open_to_everybody_is_refused(with_own: Maker) -> None:
    own = with_own()
    assert own.document.tls is not None
    own.document.tls.key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"tls\.key: .* is open to every user.*chmod 600"):
        present_tls(own, now=START)
    own.document.tls.key.chmod(0o640)  # a group of its own may read it
    present_tls(own, now=START)


@pytest.mark.parametrize("name", ["certificate", "key", "authority"])
def test_an_own_file_that_is_none_is_refused(with_own: Maker, name: str) -> None:
    own = with_own()
    path = getattr(own.document.tls, name)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"cannot be used: it holds no"):
        present_tls(own, now=START)
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        present_tls(own, now=START)
