"""How far the way to a server goes: name, proxy, port, certificate, answer, clock.

Each function does one step with the standard library, waits ``PATIENCE_S`` at most, and raises an
error that says what to do about this very step.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vitrael.core.errors import AuthError, ConfigError, NetworkError

PATIENCE_S: Final = 5.0
HEALTH: Final = "/health"
"""What a coordinator's reverse proxy answers everybody."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and the way to it."""

    host: str
    port: int
    proxy: str | None = None
    """``http://host:port`` of an HTTPS CONNECT proxy."""

    @classmethod
    def of(cls, address: str, *, proxy: str | None = None) -> Target:
        """Return the target of ``host:port``; an IPv6 address stands in brackets."""
        host, _, port = address.rpartition(":")
        return cls(host.strip("[]"), int(port), proxy)

    @property
    def first(self) -> tuple[str, int]:
        """What is reached first: the proxy where there is one."""
        if self.proxy is None:
            return self.host, self.port
        parts = urlsplit(self.proxy)
        return str(parts.hostname), int(parts.port or 80)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server showed and said."""

    certificate_ends: datetime
    status: int
    clock: datetime | None
    """Its ``Date``, to the second; None where it said none."""


def resolve(host: str, *, port: int) -> int:
    """Return how many addresses a name has; raise NetworkError when it has none."""
    try:
        return len({one[4][0] for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
    except OSError as error:
        raise NetworkError(
            f"the name {host} is not known here",
            why=error.strerror or "",
            fix="ask for a DNS entry, or give the address in site.toml as a number",
        ) from error


def connect(target: Target, *, timeout_s: float = PATIENCE_S) -> socket.socket:
    """Return a connection to the target, through its proxy where there is one.

    Raises NetworkError.
    """
    host, port = target.first
    what = f"port {port} of {host}" if target.proxy is None else f"the proxy {host}:{port}"
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        raise NetworkError(
            f"{what} is not reached",
            why=error.strerror or "no answer in time",
            fix="ask the hospital's network to open it towards the outside",
        ) from error
    if target.proxy is None:
        return connection
    try:
        _ask_tunnel(connection, target)
    except BaseException:
        connection.close()
        raise
    return connection


def _ask_tunnel(connection: socket.socket, target: Target) -> None:
    host = f"[{target.host}]" if ":" in target.host else target.host
    name = f"{host}:{target.port}"
    try:
        connection.sendall(f"CONNECT {name} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection, method="CONNECT")
        answer.begin()
    except (OSError, http.client.HTTPException) as error:
        raise NetworkError(
            f"the proxy does not answer for {name}",
            why=type(error).__name__,
            fix="check [network].proxy in site.toml: it must be an HTTPS CONNECT proxy",
        ) from error
    if answer.status != http.client.OK:
        raise NetworkError(
            f"the proxy does not let anybody reach {name}",
            why=f"it answered {answer.status} {answer.reason}"[:200],
            fix="ask the hospital's network to allow CONNECT to this address",
        )


def ask(target: Target, path: str, *, authorities: bytes, timeout_s: float = PATIENCE_S) -> Answer:
    """Return what the server shows and says to GET of a path, trusting PEM ``authorities`` alone.

    Raises NetworkError, AuthError that says what is wrong with its certificate, and ConfigError for
    ``authorities`` that are none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=authorities.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            "the authorities are no certificates", fix="join with the coordinator's file again"
        ) from error
    with connect(target, timeout_s=timeout_s) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=target.host) as secure:
                return _ask(secure, target, path)
        except ssl.SSLCertVerificationError as error:
            name = f"{target.host}:{target.port}"
            raise explain_certificate(error.verify_message, address=name) from error
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(
                f"{target.host}:{target.port} does not speak TLS and HTTP",
                why=type(error).__name__,
                fix="check the address; ask the coordinator whether the server is up",
            ) from error


def _ask(secure: ssl.SSLSocket, target: Target, path: str) -> Answer:
    ends = ssl.cert_time_to_seconds(str((secure.getpeercert() or {})["notAfter"]))
    secure.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {target.host}\r\nConnection: close\r\n\r\n".encode()
    )
    answer = http.client.HTTPResponse(secure)
    answer.begin()
    told = answer.getheader("Date")
    try:
        clock = parsedate_to_datetime(told).astimezone(UTC) if told else None
    except ValueError:
        clock = None
    return Answer(datetime.fromtimestamp(ends, UTC), answer.status, clock)


def explain_certificate(said: str, *, address: str) -> AuthError:
    """Return what is wrong with a server's certificate, of what OpenSSL said, and what to do."""
    lower = said.lower()
    if "expired" in lower:
        why, fix = "it has expired", "ask the coordinator to renew it; set this machine's clock"
    elif "not yet valid" in lower:
        why, fix = "it is not valid yet", "set this machine's clock"
    elif "mismatch" in lower or "not valid for" in lower:
        why, fix = "it is for another host", "mend address in site.toml, or ask the coordinator"
    else:
        why = "it is of no authority that this site trusts"
        fix = "if the hospital inspects TLS, name the file of its authority as "
        fix += "[network].authority in site.toml; otherwise somebody poses as the coordinator"
    return AuthError(f"the certificate of {address} does not hold", why=why, fix=fix)


def certificate_days(pem: Path, *, now: datetime) -> float:
    """Return how many days the first certificate of a file still holds; ConfigError for none.

    The standard library reads certificates from files by a private name alone; ours goes through
    ``cryptography``, which every installation of a site or coordinator has.
    """
    from cryptography import x509  # noqa: PLC0415 - the command line starts without it

    try:
        certificate = x509.load_pem_x509_certificate(pem.read_bytes())
    except OSError as error:
        raise ConfigError(f"{pem.name} cannot be read", why=error.strerror or "") from error
    except ValueError as error:
        raise ConfigError(f"{pem.name} is no certificate in PEM") from error
    return (certificate.not_valid_after_utc - now).total_seconds() / 86_400
