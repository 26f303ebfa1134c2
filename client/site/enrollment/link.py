"""The way from a site to its coordinator: one signed document goes, one comes back.

TLS is verified against the authority of the invitation and, where a hospital inspects TLS, that of
the hospital. The environment names no proxy and no certificate: ``site.toml`` alone does.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import httpx

from vitrael.client.site.enrollment.faults import Fault, Peer, explain_failure, explain_status
from vitrael.client.site.settings import SiteSettings
from vitrael.core.errors import ConfigError, NetworkError
from vitrael.core.version import package_version
from vitrael.privacy.enrollment import ENROLLMENT_PATH
from vitrael.privacy.envelope import MAX_ENVELOPE_BYTES

Clock = Callable[[], datetime]
Tell = Callable[[str], object]
"""Takes one line for the operator while something is under way."""

CLOCK_TOLD: Final = timedelta(minutes=5)
"""A difference of two clocks that is worth a word."""

_OK: Final = 200
_CONNECT_S: Final = 15.0
_SILENCE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a site tries, and by which clock."""

    total_s: float = 90.0
    """From the first attempt until no other one begins."""
    pause_s: float = 3.0
    attempt_s: float = 60.0
    """Longest time of one attempt, whatever comes."""
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Link:
    """Where the coordinator is, what it is believed by, and the way there."""

    peer: Peer
    context: ssl.SSLContext


def open_link(settings: SiteSettings) -> Link:
    """Return the link of a home that has an invitation's address and authority.

    Raises ConfigError where they are missing or cannot be used.
    """
    document, path = settings.document, settings.home / "authority.pem"
    if document.address is None:
        raise ConfigError(
            "site.toml names no address of a coordinator",
            fix="run `vitrael site join FILE` with the coordinator's invitation",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an operator may bring any authority
    _trust(context, path, fix="run `vitrael site join FILE` with a fresh invitation")
    if (own := document.network.authority) is not None:
        _trust(context, settings.home / own, fix="correct network.authority in site.toml")
    return Link(Peer(document.address, document.network.proxy), context)


def _trust(context: ssl.SSLContext, path: Path, *, fix: str) -> None:
    try:
        context.load_verify_locations(cadata=path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        why = "it holds no certificate in PEM"
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            why = error.strerror or ""
        raise ConfigError(
            f"the authority in {path.name} cannot be used", why=why, fix=fix
        ) from error


def post(
    link: Link,
    path: str,
    compose: Callable[[], bytes],
    *,
    clock: Clock,
    tell: Tell,
    patience: Patience | None = None,
) -> bytes:
    """Return what the coordinator answers to a document that is sent below ``ENROLLMENT_PATH``.

    What may pass is tried again for ``patience.total_s`` seconds, and told when it begins or
    changes; ``compose`` is called anew where the document before may have been heard, for none is
    heard twice. Raises NetworkError when the coordinator cannot be reached, AuthError when it
    cannot be believed or refuses.
    """
    patience = patience or Patience()
    end_s = patience.monotonic() + patience.total_s
    body, told = compose(), ""
    while True:
        found = asyncio.run(_try(link, path, body, clock=clock, tell=tell, patience=patience))
        if isinstance(found, bytes):
            return found
        left_s = end_s - patience.monotonic()
        if not found.passing or left_s <= patience.pause_s:
            raise found.error
        if (sentence := found.error.sentence()) != told:
            tell(f"{sentence} Trying again for {left_s:.0f} s.")
            told = sentence
        patience.sleep(patience.pause_s)
        if found.heard:
            body = compose()


async def _try(
    link: Link, path: str, body: bytes, *, clock: Clock, tell: Tell, patience: Patience
) -> bytes | Fault:
    url = f"https://{link.peer.address}{ENROLLMENT_PATH}/{path}"
    headers = {
        "content-type": "application/json",
        "user-agent": f"vitrael/{package_version()}",
    }
    limits = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
    client = httpx.AsyncClient(
        verify=link.context, proxy=link.peer.proxy, trust_env=False, timeout=limits, headers=headers
    )
    try:
        async with (
            asyncio.timeout(patience.attempt_s),
            client,
            client.stream("POST", url, content=body) as response,
        ):
            status, date = response.status_code, response.headers.get("date", "")
            data = await _read(response)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        return explain_failure(error, link.peer, now=clock())
    if data is None:
        what = f"the answer of {link.peer.address} is too large"
        return Fault(NetworkError(what, fix="check the address"), passing=False)
    if status == _OK:
        return data
    _compare_clocks(date, clock(), tell=tell)
    return explain_status(status, _parse(data), link.peer)


async def _read(response: httpx.Response) -> bytes | None:
    """Return the body, or None for more than a document has."""
    data = bytearray()
    async for block in response.aiter_bytes():
        data += block
        if len(data) > MAX_ENVELOPE_BYTES:
            return None
    return bytes(data)


def _parse(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _compare_clocks(date: str, now: datetime, *, tell: Tell) -> None:
    """Tell of a server whose clock differs; what is no date is passed over."""
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        return
    tell_difference(theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC), now, tell=tell)


def tell_difference(theirs: datetime, now: datetime, *, tell: Tell) -> None:
    """Tell when the coordinator's clock differs by more than ``CLOCK_TOLD`` from this one."""
    if abs(theirs - now) > CLOCK_TOLD:
        minutes = abs(theirs - now).total_seconds() / 60
        order = "behind" if now < theirs else "ahead of"
        tell(f"The clock of this machine is {minutes:.0f} min {order} the coordinator's: set it.")
