"""What went wrong between a site and its coordinator, each in one sentence with its remedy."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import httpx

from vitrael.core.errors import AuthError, NetworkError, VitraelError
from vitrael.core.text import one_line

_EXPIRED, _NOT_YET = 10, 9
_NAMES: Final = (62, 64)
_SELF_SIGNED: Final = (18,)
"""Numbers of OpenSSL's ``X509_V_ERR_*``; what is none of them is signed by nobody known."""

_NO_TLS: Final = frozenset(
    {"HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL"}
    | {"WRONG_VERSION_NUMBER"}
)
"""What OpenSSL says of bytes that are no TLS."""

_WAITING: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""How the library says that more bytes must come; no fault."""

_TELL_AUTHORITY = (
    "ask the coordinator for a fresh invitation; where your hospital inspects TLS, name its "
    "authority with --authority FILE, or as network.authority in site.toml"
)
_PROXY_BUSY: Final = 500
_PROXY_PASSWORD: Final = 407


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom a site speaks to, and through which proxy."""

    address: str
    proxy: str | None

    @property
    def host(self) -> str:
        """The name that a certificate must bear."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def first(self) -> str:
        """Whom the first connection goes to, in words."""
        return f"the proxy {self.proxy}" if self.proxy else f"the coordinator at {self.address}"


@dataclass(frozen=True, slots=True)
class Fault:
    """An error to tell, and whether trying again soon may help."""

    error: VitraelError
    passing: bool
    heard: bool = False
    """Whether the coordinator may have taken in what was sent, for all that."""


def explain_failure(error: Exception, peer: Peer, *, now: datetime) -> Fault:
    """Return the fault behind what the library or the system raised."""
    chain = list(_walk(error))
    for each in chain:
        if isinstance(each, ssl.SSLCertVerificationError):
            return Fault(_explain_certificate(each.verify_code, peer, now=now), passing=False)
    for each in chain:
        if isinstance(each, ssl.SSLError) and not isinstance(each, _WAITING):
            return _explain_tls(each, peer)
        if isinstance(each, socket.gaierror):
            return _explain_name(each, peer)
    if isinstance(error, httpx.ProxyError):
        return _explain_proxy(str(error), peer)
    return _explain_connection(error, chain, peer)


def _explain_connection(error: Exception, chain: Sequence[BaseException], peer: Peer) -> Fault:
    if any(isinstance(each, ConnectionRefusedError) for each in chain):
        return _network(
            f"{peer.first} refused the connection",
            why="nothing listens at that port, or a firewall forbids it",
            fix="check host and port, and that the coordinator runs",
        )
    unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return _network(
            f"{peer.first} did not answer in time",
            why="a firewall drops what is sent, or the other side is busy",
            fix="check host, port, proxy and firewall, then try again",
            heard=not unsent,
        )
    system = next((each for each in chain if isinstance(each, OSError) and each.strerror), None)
    return _network(
        f"the connection to {peer.first} broke",
        why=(system.strerror or "") if system else type(error).__name__,
        fix="try again",
        heard=not unsent,
    )


def _walk(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that led to it, groups opened."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(each.exceptions)
        waiting.extend(filter(None, (each.__cause__, each.__context__)))


def _explain_certificate(code: int, peer: Peer, *, now: datetime) -> AuthError:
    if code in _NAMES:
        return AuthError(
            f"the certificate at {peer.address} is for another host",
            why=f"it does not name {peer.host}",
            fix="check the address in site.toml; the coordinator's certificate must name that host",
        )
    clock = f"this machine's clock says {now.isoformat(timespec='minutes')}"
    if code == _EXPIRED:
        return AuthError(
            f"the certificate at {peer.address} has expired",
            why=clock,
            fix="set the clock if it is wrong; else the coordinator must renew the certificate",
        )
    if code == _NOT_YET:
        return AuthError(
            f"the certificate at {peer.address} is not valid yet",
            why=clock,
            fix="set the clock of this machine, or let the coordinator set theirs",
        )
    who = "itself alone" if code in _SELF_SIGNED else "no authority that this site trusts"
    return AuthError(
        f"the certificate at {peer.address} is not trusted",
        why=f"it is signed by {who}",
        fix=_TELL_AUTHORITY,
    )


def _explain_tls(error: ssl.SSLError, peer: Peer) -> Fault:
    if error.reason in _NO_TLS:
        return Fault(
            AuthError(
                f"no TLS is spoken at {peer.address}",
                why="what answers there sends no certificate; nothing was sent to it",
                fix="check host and port",
            ),
            passing=False,
        )
    return _network(
        f"no TLS connection to {peer.address} came about",
        why=(error.reason or "the other side ended it").replace("_", " ").lower(),
        fix="try again; if it stays so, let a proxy or firewall in between pass TLS",
    )


def _explain_proxy(text: str, peer: Peer) -> Fault:
    found = re.match(r"\d{3}", text)
    status = int(found[0]) if found else 0
    why = f"it answered {status}" if status else "it answered no HTTP"
    fix = f"let the proxy's operator allow CONNECT to {peer.address}"
    if status == _PROXY_PASSWORD:
        why, fix = "it asks for a password", f"{fix} without one from this machine"
    error = NetworkError(f"{peer.first} refused the tunnel", why=why, fix=fix)
    return Fault(error, passing=status >= _PROXY_BUSY)


def _explain_name(error: socket.gaierror, peer: Peer) -> Fault:
    name = peer.proxy or peer.host
    again = error.errno == socket.EAI_AGAIN
    return Fault(
        NetworkError(
            f"the name of {peer.first} cannot be resolved",
            why="no name server answered" if again else f"no name server knows {name}",
            fix="check the spelling and this machine's DNS, or name the hospital's proxy",
        ),
        passing=again,
    )


def _network(what: str, *, why: str, fix: str, heard: bool = False) -> Fault:
    return Fault(NetworkError(what, why=why, fix=fix), passing=True, heard=heard)


_BUSY: Final = (408, 425, 429)
_REFUSED: Final = (400, 401, 403, 409, 410, 413, 422)
_MOST_WORDS: Final = 300


def explain_status(status: int, document: object, peer: Peer) -> Fault:
    """Return the fault behind an answer that is no success; ``document`` is its JSON, or None.

    The coordinator gives ``{"error": {"what": …, "why": …, "fix": …}}``; what something in between
    answers is told by its number.
    """
    said = _read_words(document)
    if status in _REFUSED and said:
        why = ": ".join(filter(None, (said["what"], said["why"])))
        return Fault(AuthError("the coordinator refused", why=why, fix=said["fix"]), passing=False)
    if status in _BUSY or status >= 500:  # noqa: PLR2004 - of HTTP
        return _network(
            f"the coordinator at {peer.address} is not ready",
            why=f"it answered {status}",
            fix="try again later",
            heard=status not in _BUSY,
        )
    return Fault(
        NetworkError(
            f"no enrollment service answers at {peer.address}",
            why=f"the answer was {status}, without a word of a coordinator",
            fix="check the address, and what a proxy in between allows",
        ),
        passing=False,
    )


def _read_words(document: object) -> dict[str, str]:
    """Return what, why and fix of an error in JSON, printable and short; else nothing."""
    said = document.get("error") if isinstance(document, Mapping) else None
    if not isinstance(said, Mapping) or not isinstance(said.get("what"), str):
        return {}
    words = {name: said.get(name) for name in ("what", "why", "fix")}
    return {
        name: one_line(text, _MOST_WORDS) if isinstance(text, str) else ""
        for name, text in words.items()
    }
