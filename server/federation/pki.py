"""Certificates and node keys of a federation on one machine.

Every party that serves TLS has an authority of its own (P-384, one level, for 127.0.0.1 and
localhost); a Flower node is known by a P-384 key in OpenSSH form. A real deployment brings
certificates of its hospital's authority instead; nothing else changes.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vitrael.core.digest import write_atomically
from vitrael.core.errors import AuthError

_LIFETIME = timedelta(days=825)
_CLOCK_SKEW = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a party keeps its authority's certificate and its own server certificate and key."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def of(cls, folder: Path) -> TlsFiles:
        """Return the three paths of a folder."""
        return cls(folder / "ca.crt", folder / "server.pem", folder / "server.key")

    def arguments(self) -> tuple[str, ...]:
        """Return what Flower's servers want on their command line."""
        return (
            "--ssl-ca-certfile",
            str(self.authority),
            "--ssl-certfile",
            str(self.certificate),
            "--ssl-keyfile",
            str(self.key),
        )


def create_tls(folder: Path, *, party: str, now: datetime) -> TlsFiles:
    """Return a folder's TLS files, made anew when they are missing or run out within a month.

    The authority's private key is forgotten at once: it signs one certificate.
    """
    files = TlsFiles.of(folder)
    if _still_good(files, now=now):
        return files
    authority_key = ec.generate_private_key(ec.SECP384R1())
    authority = _authority(authority_key, party=party, now=now)
    server_key = ec.generate_private_key(ec.SECP384R1())
    server = _server(server_key, authority=authority, authority_key=authority_key, now=now)
    _write_private(files.key, _private_pem(server_key, PrivateFormat.PKCS8))
    write_atomically(files.certificate, server.public_bytes(Encoding.PEM))
    write_atomically(files.authority, authority.public_bytes(Encoding.PEM))
    return files


def create_node_key(path: Path) -> bytes:
    """Return the public half of a site's node key, ``path`` and ``path.pub`` made if missing.

    The bytes are the PEM SubjectPublicKeyInfo by which Flower's SuperLink knows a node.
    """
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        _write_private(path, _private_pem(key, PrivateFormat.OpenSSH))
    key = load_node_key(path)
    public = key.public_key()
    write_atomically(
        path.with_name(path.name + ".pub"),
        public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
    )
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a site's private node key; raise AuthError when the file holds none."""
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise AuthError(f"{path} is no node key", fix="remove it and start again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthError(f"{path} is no node key", why="it is not on the curve P-384")
    return key


def create_secret(path: Path) -> None:
    """Make the secret that a SuperExec shows its SuperLink or SuperNode, unless it exists."""
    if not path.exists():
        _write_private(path, secrets.token_hex(32).encode())


def _still_good(files: TlsFiles, *, now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    except (OSError, ValueError):
        return False
    lasts = certificate.not_valid_after_utc > now + timedelta(days=31)
    return lasts and files.key.exists() and files.authority.exists()


def _builder(name: str, *, now: datetime) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - _CLOCK_SKEW)
        .not_valid_after(now.astimezone(UTC) + _LIFETIME)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(key: ec.EllipticCurvePrivateKey, *, party: str, now: datetime) -> x509.Certificate:
    builder = _builder(f"Vitrael rehearsal {party}", now=now)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Vitrael rehearsal {party}")])
    return (
        builder.issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _server(
    key: ec.EllipticCurvePrivateKey,
    *,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    )
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder("localhost", now=now)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(issuer_id, critical=False)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _private_pem(key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _write_private(path: Path, data: bytes) -> None:
    """Write a secret that its owner alone can read (the temporary file is 0600 from the start)."""
    write_atomically(path, data)
    path.chmod(0o600)
