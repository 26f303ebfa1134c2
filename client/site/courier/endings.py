"""What Flower's SuperNode says, understood: whether it is connected, and why it ended.

Flower tells a SuperNode's fate in words alone. ``connected`` reads them while it runs, ``explain``
when it has ended; a test holds both to the words of the Flower that is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from vitrael.core.errors import AuthError, NetworkError, ProcessError, VitraelError
from vitrael.core.reach import explain_certificate

REFUSED_S: Final = 90.0
"""How long a refused key is tried: a killed SuperNode's heartbeats run out within 60 s."""

_NODE_ID = re.compile(r"SuperNode ID: (\d+)")
_CERTIFICATE = re.compile(
    r"certificate.verify.failed|certificate_verify|hostname mismatch", re.IGNORECASE
)
_NO_TLS = re.compile(r"wrong[_ ]version[_ ]number|record layer failure", re.IGNORECASE)
"""What OpenSSL says of bytes that are no TLS."""
_REFUSED = "[code: 2004]"
_PROXY = re.compile(r"^([3-5]\d\d [A-Za-z][A-Za-z -]*)$", re.MULTILINE)
"""All that httpx tells of a proxy's answer to CONNECT: status and reason, on a line alone."""
_NO_REASON = re.compile(
    r"(INFO|WARNING|ERROR) *:|Failed to initialize|The SuperNode could not|For more information"
)
"""How lines of Flower's begin that say nothing of why it ended."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a SuperNode ended and what follows."""

    kind: Literal["lost", "held", "final"]
    """``lost``: start it again. ``held``: again, for ``REFUSED_S``. ``final``: never again."""
    error: VitraelError


def node_id(line: str) -> str | None:
    """Return the number that the SuperLink gave this node, when a line tells it."""
    found = _NODE_ID.search(line)
    return found.group(1) if found else None


def connected(line: str) -> bool | None:
    """Return what a line says about the connection, or None when it says nothing."""
    if node_id(line) is not None or "Connection successful after" in line:
        return True
    return False if "Connection attempt failed" in line else None


def explain(
    said: str, *, code: int, address: str, was_connected: bool, once_connected: bool
) -> Ending:
    """Return why a SuperNode ended, of its last lines and its exit code.

    Where this courier was connected once, by another SuperNode perhaps, nothing is final: whatever
    stands in the way came there since, and may go. No certificate is trusted for that.
    """
    if error := _explain_setup(said, address=address):
        return Ending("lost" if once_connected else "final", error)
    if _REFUSED in said:
        return Ending("held", _explain_refusal(address))
    if code < 0:
        ended = ProcessError("the SuperNode was ended from outside", why=f"signal {-code}")
        return Ending("lost", ended)
    if code == 0 and not was_connected:
        error = AuthError(
            f"the coordinator at {address} takes no signature of this site's node key",
            why="the clocks differ by more than five minutes, or the site was revoked",
            fix="set this machine's clock; run `vitrael doctor`; ask the coordinator",
        )
        return Ending("held", error)
    return Ending("lost", _explain_loss(said, address=address))


def _explain_setup(said: str, *, address: str) -> AuthError | None:
    """Return what no second try mends when already the first one meets it, or None."""
    if _CERTIFICATE.search(said):
        return explain_certificate(said, address=address)
    if _NO_TLS.search(said):
        return AuthError(
            f"the courier cannot speak to {address}",
            why="no TLS is spoken there, and nothing was sent",
            fix="mend address in site.toml, or ask the coordinator; otherwise somebody poses as it",
        )
    if "Exit Code: 302" in said:
        return AuthError(
            "keys/node is no key of a node",
            why="Flower cannot read it",
            fix="restore it from a backup, or join again",
        )
    if "Exit Code: 606" in said:
        return AuthError(
            f"the coordinator at {address} runs another version of Flower",
            fix="install the version of vitrael that the coordinator names",
        )
    return None


def _explain_refusal(address: str) -> AuthError:
    return AuthError(
        f"the coordinator at {address} refuses this site's node key",
        why="it does not know the key (not approved yet, or revoked), or another SuperNode uses it",
        fix="ask the coordinator for `vitrael server sites list`; let one courier run alone",
    )


def _explain_loss(said: str, *, address: str) -> NetworkError:
    if answer := _PROXY.search(said):
        return NetworkError(
            f"the proxy does not let the courier reach {address}",
            why=f"it answered {answer.group(1)}",
            fix="ask the hospital's network for CONNECT to this address; see [network].proxy",
        )
    reasons = [line for line in said.splitlines() if line and not _NO_REASON.match(line)]
    return NetworkError(
        f"the SuperNode lost {address}",
        why=reasons[-1][:200] if reasons else "",
        fix="run `vitrael doctor`",
    )
