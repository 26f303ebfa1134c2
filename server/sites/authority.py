"""The coordinator's private authority, and the certificate that is shown at its address.

The authority (P-384, one level) signs one certificate: for the host of ``address``. Sites get the
authority with their invitation and believe nothing else. An operator who brings a certificate of
another authority names it in ``[tls]`` of ``server.toml``; it is checked as a site would.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from vitrael.core.digest import write_atomically
from vitrael.core.errors import AuthError, ConfigError
from vitrael.privacy.certificates import general_name, issue_authority, issue_server
from vitrael.privacy.keys import read_private
from vitrael.privacy.loopback_tls import TlsFiles
from vitrael.server.config import SERVER_FILE, OwnTls, ServerSettings

T = TypeVar("T")

RENEW_BEFORE = timedelta(days=31)
"""A server certificate that ends sooner is made anew."""
_AUTHORITY_LIFETIME = timedelta(days=3650)
_SERVER_LIFETIME = timedelta(days=825)
_LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Authority:
    """A private authority with the key that signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Validity:
    """Until when what sites see holds."""

    certificate: datetime
    authority: datetime


def host_of(address: str) -> str:
    """Return the host of ``host:port``, an IPv6 address without its brackets."""
    return address.rpartition(":")[0].strip("[]")


def create_authority(folder: Path, *, address: str, now: datetime) -> Authority:
    """Return the authority of a folder, made when there is none yet.

    ``ca.key`` is for its owner alone. Raises AuthError when half of it is missing or does not fit.
    """
    key_path, certificate_path = folder / "ca.key", folder / "ca.crt"
    if certificate_path.exists():
        return load_authority(folder)
    if not key_path.exists():
        _write_key(key_path, ec.generate_private_key(ec.SECP384R1()))
    key = _load_authority_key(key_path)  # of a process that was killed before it signed, perhaps
    name = f"Vitrael coordinator {host_of(address)}"[:64]
    certificate = issue_authority(key, name=name, now=now, lifetime=_AUTHORITY_LIFETIME)
    write_atomically(certificate_path, certificate.public_bytes(Encoding.PEM))
    return Authority(certificate, key)


def load_authority(folder: Path) -> Authority:
    """Return the authority of a folder; raise AuthError when it is missing or damaged."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    except (OSError, ValueError) as error:
        name, why = f"{folder.name}/ca.crt", "it is no certificate in PEM"
        told = error.strerror or "" if isinstance(error, OSError) else why
        raise AuthError(f"{name} cannot be read", why=told, fix=_RESTORE_AUTHORITY) from error
    key = _load_authority_key(folder / "ca.key")
    if key.public_key() != certificate.public_key():
        raise AuthError(
            f"{folder.name}/ca.key is not the key of {folder.name}/ca.crt", fix=_RESTORE_AUTHORITY
        )
    return Authority(certificate, key)


def present_tls(settings: ServerSettings, *, now: datetime) -> TlsFiles:
    """Return what is shown at the coordinator's address, checked or made anew.

    With ``[tls]`` these are the operator's files: ConfigError says what a site would refuse.
    Otherwise a certificate of the private authority for the host of the address, made anew when
    it is missing, does not fit, names another host or ends within 31 days. Raises AuthError when
    the authority cannot be used or has expired.
    """
    document = settings.document
    host = host_of(document.address)
    if document.tls is not None:
        files = own_files(document.tls, home=settings.home)
        check_own(files, host=host, now=now)
        return files
    authority = load_authority(settings.authority)
    if authority.certificate.not_valid_after_utc <= now:
        raise AuthError(
            "the coordinator's authority has expired",
            why=f"it held until {authority.certificate.not_valid_after_utc:%Y-%m-%d}",
            fix="move authority/ away, run `vitrael server init`, then `vitrael server sites "
            "rotate SITE` for every site",
        )
    files = TlsFiles.of(settings.tls)
    hosts = server_hosts(host)
    if not _still_good(files, hosts=hosts, authority=authority, now=now):
        _issue(files, hosts=hosts, authority=authority, now=now)
    return files


def own_files(tls: OwnTls, *, home: Path) -> TlsFiles:
    """Return the operator's files; a relative path starts at the home."""
    return TlsFiles(
        authority=home / tls.authority, certificate=home / tls.certificate, key=home / tls.key
    )


def server_hosts(host: str) -> tuple[str, ...]:
    """Return whom the certificate names: the host, and on loopback each spelling of it."""
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return tuple(dict.fromkeys((host, *_LOOPBACK))) if loopback else (host,)


def authority_file(settings: ServerSettings) -> Path:
    """Return the certificate of whom sites are to believe."""
    if settings.document.tls is not None:
        return own_files(settings.document.tls, home=settings.home).authority
    return settings.authority / "ca.crt"


def read_roots(path: Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM file of authorities; raise ConfigError for none."""
    return _read(path, _load_chain, what="certificate of an authority")


def read_validity(settings: ServerSettings) -> Validity:
    """Return until when certificate and authority hold; raise ConfigError or AuthError."""
    if settings.document.tls is not None:
        files = own_files(settings.document.tls, home=settings.home)
        return Validity(
            _read(files.certificate, _load_chain, what="certificate")[0].not_valid_after_utc,
            min(root.not_valid_after_utc for root in read_roots(files.authority)),
        )
    authority = load_authority(settings.authority).certificate
    shown = _read(
        TlsFiles.of(settings.tls).certificate, x509.load_pem_x509_certificate, what="certificate"
    )
    return Validity(shown.not_valid_after_utc, authority.not_valid_after_utc)


def check_own(files: TlsFiles, *, host: str, now: datetime) -> None:
    """Raise ConfigError, which says what is wrong, unless a site would believe these files."""
    server, *between = _read(files.certificate, _load_chain, what="certificate")
    roots = read_roots(files.authority)
    key = _read(files.key, _load_own_key, what="private key")
    _demand_private(files.key)
    if key.public_key() != server.public_key():
        raise ConfigError(
            f"{SERVER_FILE}: tls.key",
            why="it is not the key of tls.certificate",
            fix="name the key with which the certificate was requested",
        )
    if not server.not_valid_before_utc <= now <= server.not_valid_after_utc:
        raise ConfigError(
            f"{SERVER_FILE}: tls.certificate",
            why=f"it holds from {server.not_valid_before_utc:%Y-%m-%d} to "
            f"{server.not_valid_after_utc:%Y-%m-%d} and not now, {now:%Y-%m-%d}",
            fix="renew it, or set this machine's clock",
        )
    if not _names(server, host):
        raise ConfigError(
            f"{SERVER_FILE}: tls.certificate",
            why=f"it does not name {host}, the host of address, as a subject alternative name",
            fix=f"request one for {host}, or correct address",
        )
    name = general_name(host)
    verifier = PolicyBuilder().store(Store(roots)).time(now).build_server_verifier(name)
    try:
        verifier.verify(server, between)
    except VerificationError as error:
        raise ConfigError(
            f"{SERVER_FILE}: tls.authority",
            why=f"tls.certificate does not lead to it: {error}",
            fix="name the authority that signed the certificate, and put the certificates between "
            "them behind the certificate in its file",
        ) from error


def _still_good(
    files: TlsFiles, *, hosts: tuple[str, ...], authority: Authority, now: datetime
) -> bool:
    try:
        shown = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        root = x509.load_pem_x509_certificate(files.authority.read_bytes())
        key = load_pem_private_key(files.key.read_bytes(), password=None)
        shown.verify_directly_issued_by(authority.certificate)
        named = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    lasts = shown.not_valid_after_utc > now + RENEW_BEFORE
    # A certificate ends with its authority at the latest: then a new one would end no later.
    lasts |= now < shown.not_valid_after_utc == authority.certificate.not_valid_after_utc
    same = key.public_key() == shown.public_key() and root == authority.certificate
    return same and lasts and list(named) == [general_name(host) for host in hosts]


def _issue(files: TlsFiles, *, hosts: tuple[str, ...], authority: Authority, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = issue_server(
        key.public_key(),
        hosts=hosts,
        authority=authority.certificate,
        authority_key=authority.key,
        now=now,
        lifetime=_SERVER_LIFETIME,
    )
    _write_key(files.key, key)
    write_atomically(files.certificate, certificate.public_bytes(Encoding.PEM))
    write_atomically(files.authority, authority.certificate.public_bytes(Encoding.PEM))


def _names(certificate: x509.Certificate, host: str) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    wanted = general_name(host)
    if isinstance(wanted, x509.IPAddress):
        return wanted in list(names)
    wild = "*." + host.partition(".")[2]
    told = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    return bool(told & {host.lower(), wild.lower()})


_RESTORE_AUTHORITY = (
    "restore authority/ from a backup; without one move what is left of it away, run `vitrael "
    "server init`, then `vitrael server sites rotate SITE` for every site"
)


def _load_authority_key(path: Path) -> ec.EllipticCurvePrivateKey:
    data = read_private(path, fix=_RESTORE_AUTHORITY)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuthError(f"{path.parent.name}/ca.key is no key", fix=_RESTORE_AUTHORITY) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthError(f"{path.parent.name}/ca.key is of another kind", fix=_RESTORE_AUTHORITY)
    return key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomically(path, pem)  # its temporary file is 0600 from the start
    path.chmod(0o600)


def _load_own_key(data: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(data, password=None)
    except TypeError as error:
        raise ConfigError(
            f"{SERVER_FILE}: tls.key",
            why="it is protected by a passphrase, which nobody gives to nginx",
            fix="write it without a passphrase, for its owner alone",
        ) from error


def _demand_private(path: Path) -> None:
    if path.stat().st_mode & stat.S_IRWXO:
        raise ConfigError(
            f"{SERVER_FILE}: tls.key",
            why=f"{path} is open to every user of this machine",
            fix=f"chmod 600 {path}",
        )


def _load_chain(data: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(data)


def _read(path: Path, load: Callable[[bytes], T], *, what: str) -> T:
    try:
        return load(path.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = error.strerror or "" if isinstance(error, OSError) else f"it holds no {what}"
        raise ConfigError(
            f"{path} cannot be used", why=why, fix="name a PEM file that this user can read"
        ) from error
