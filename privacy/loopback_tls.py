"""Certificates for what talks over loopback: one server, one authority that signs it alone.

Flower's processes on one machine speak TLS with each other too, so that another user of the
machine can neither listen nor pose as one of them. The authority (P-384, one level) is for
127.0.0.1, localhost and where else the server is said to listen; its private key is forgotten as
soon as it has signed.
"""

from __future__ import annotations

import secrets
import stat
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from vitrael.core.digest import write_atomically
from vitrael.privacy.certificates import general_name, issue_authority, issue_server

_LIFETIME = timedelta(days=825)


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


def create_tls(folder: Path, *, party: str, now: datetime, host: str = "127.0.0.1") -> TlsFiles:
    """Return a folder's TLS files, made anew when they are missing or run out within a month.

    ``host`` is where the server listens: files for another one are made anew too. The authority's
    private key is forgotten at once: it signs one certificate.
    """
    files = TlsFiles.of(folder)
    hosts = tuple(dict.fromkeys(("localhost", "127.0.0.1", host)))
    if _still_good(files, host=host, now=now):
        return files
    authority_key = ec.generate_private_key(ec.SECP384R1())
    authority = issue_authority(
        authority_key, name=f"Vitrael loopback {party}", now=now, lifetime=_LIFETIME
    )
    server_key = ec.generate_private_key(ec.SECP384R1())
    server = issue_server(
        server_key.public_key(),
        hosts=hosts,
        authority=authority,
        authority_key=authority_key,
        now=now,
        lifetime=_LIFETIME,
    )
    pem = server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomically(files.key, pem)  # 0600 from the start
    write_atomically(files.certificate, server.public_bytes(Encoding.PEM))
    write_atomically(files.authority, authority.public_bytes(Encoding.PEM))
    return files


def create_secret(path: Path, *, mode: int = 0o600) -> None:
    """Make the secret that a SuperExec shows its SuperLink or SuperNode, unless it exists.

    With mode 0640 the group of its folder may read it: a SuperExec under a user of its own. The
    mode is mended where a process was killed between the two.
    """
    if not path.exists():
        write_atomically(path, secrets.token_hex(32).encode())
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def _still_good(files: TlsFiles, *, host: str, now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        authority = x509.load_pem_x509_certificate(files.authority.read_bytes())
        key = load_pem_private_key(files.key.read_bytes(), password=None)
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False  # a process that was killed between two files leaves what does not fit
    fits = key.public_key() == certificate.public_key() and general_name(host) in names.value
    return fits and certificate.not_valid_after_utc > now + timedelta(days=31)
