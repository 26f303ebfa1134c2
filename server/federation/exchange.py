"""Parcels to the sites and their answers: the Protocol, and how Flower fulfils it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from vitrael.core.errors import ConfigError

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from vitrael.core.messages import Parcel

BYTES = "vitrael.bytes"
"""How Flower's Array names a plain byte string."""

ABSENT_S = 90.0
"""How long a site that is not connected is waited for before its deadline begins."""

_POLL_S = 0.1
_SLOWEST_POLL_S = 1.0
_PRESENCE_POLL_S = 0.5
_TTL_MARGIN_S = 30.0
_LONGEST_REASON = 500
_LOST_ON_THE_WAY = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
"""Errors that the SuperLink or SuperNode writes when nobody can say what the site did."""


class Exchange(Protocol):
    """Carries one parcel to each of several sites and brings back what they answer."""

    def send(
        self, parcels: Mapping[str, Parcel], *, deadline_s: float | Mapping[str, float]
    ) -> Iterator[tuple[str, Parcel | str]]:
        """Yield each addressed site exactly once, as it settles.

        With the site comes its reply parcel, or one sentence that says why there is none. A
        site that does not answer within ``deadline_s`` seconds, all the same or each its own, is
        yielded with that reason.
        """


def pack(parcel: Parcel) -> ArrayRecord:
    """Return a parcel in Flower's form."""
    return ArrayRecord(
        {name: Array("uint8", (len(data),), BYTES, data) for name, data in parcel.items()}
    )


def unpack(record: ArrayRecord) -> dict[str, bytes]:
    """Return the parcel that Flower carried."""
    return {str(name): array.data for name, array in record.items()}


@dataclass(slots=True)
class _Errand:
    """One parcel on its way to one site."""

    site: str
    parcel: Parcel
    deadline_s: float
    until: float = math.inf
    """The moment at which the site's time is up; set when the parcel is sent first."""
    absent_since: float = 0.0
    attempts: int = 0


@dataclass(slots=True)
class _Pending:
    """One send: what waits for its node, and by message id what waits for its answer."""

    absent: list[_Errand]
    sent: dict[str, _Errand] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FlowerExchange:
    """An Exchange on Flower's ``push_messages`` and ``pull_messages``.

    A site whose node is not connected is waited for, at most ``absent_s`` seconds; the others
    do not wait with it. A parcel whose node or courier was lost on the way is sent again, at
    most ``attempts`` times in all and within its deadline: a site answers the same parcel twice
    with the same answer. Answers are asked for ten times a second at first and, when one takes
    long, ever less often, down to once a second.
    """

    grid: Grid
    nodes: Mapping[str, int]
    """Site name -> Flower node id."""
    absent_s: float = ABSENT_S
    attempts: int = 3
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def send(
        self, parcels: Mapping[str, Parcel], *, deadline_s: float | Mapping[str, float]
    ) -> Iterator[tuple[str, Parcel | str]]:
        """Yield each addressed site exactly once; see Exchange.

        Raises ConfigError for a site that has no node id and for a deadline that is no time.
        """
        unknown = sorted(parcels.keys() - self.nodes.keys())
        if unknown:
            raise ConfigError(f"site {unknown[0]} has no Flower node", fix="register its node key")
        now = self.clock()
        errands = [
            _Errand(site, parcel, _seconds_for(site, deadline_s), absent_since=now)
            for site, parcel in parcels.items()
        ]
        return self._send(_Pending(errands))

    def _send(self, pending: _Pending) -> Iterator[tuple[str, Parcel | str]]:
        started = look_again = self.clock()
        while pending.absent or pending.sent:
            if pending.absent and self.clock() >= look_again:
                yield from self._push(pending)
                look_again = self.clock() + _PRESENCE_POLL_S
            yield from self._pull(pending)
            yield from _expired(pending, now=self.clock())
            if pending.absent or pending.sent:
                waited = self.clock() - started
                self.sleep(min(_SLOWEST_POLL_S, max(_POLL_S, waited / 50)))

    def _push(self, pending: _Pending) -> Iterator[tuple[str, str]]:
        present = set(self.grid.get_node_ids())
        for errand in list(pending.absent):
            site, now = errand.site, self.clock()
            if self.nodes[site] in present:
                pending.absent.remove(errand)
                errand.until = min(errand.until, now + errand.deadline_s)
                errand.attempts += 1
                message_id = self._push_one(errand, seconds=errand.until - now)
                if message_id is None:
                    yield site, f"site {site}: the SuperLink did not take the message"
                else:
                    pending.sent[message_id] = errand
            elif now - errand.absent_since >= self.absent_s:
                pending.absent.remove(errand)
                yield site, f"site {site} is not connected, waited {self.absent_s:.0f} s"

    def _push_one(self, errand: _Errand, *, seconds: float) -> str | None:
        content = RecordDict(
            {"parcel": pack(errand.parcel), "terms": ConfigRecord({"deadline_s": seconds})}
        )
        message = Message(
            content,
            dst_node_id=self.nodes[errand.site],
            message_type="query",
            ttl=seconds + _TTL_MARGIN_S,
        )
        return next(iter(self.grid.push_messages([message])), None) or None

    def _pull(self, pending: _Pending) -> Iterator[tuple[str, Parcel | str]]:
        if not pending.sent:
            return
        for reply in self.grid.pull_messages(list(pending.sent)):
            errand = pending.sent.pop(reply.metadata.reply_to_message_id, None)
            if errand is None:
                continue
            lost = reply.has_error() and reply.error.code in _LOST_ON_THE_WAY
            if lost and errand.attempts < self.attempts:
                errand.absent_since = self.clock()
                pending.absent.append(errand)
            else:
                yield errand.site, _read(reply, site=errand.site)


def _seconds_for(site: str, deadline_s: float | Mapping[str, float]) -> float:
    """Return a site's deadline; raise ConfigError for one that is no time."""
    seconds = deadline_s[site] if isinstance(deadline_s, Mapping) else deadline_s
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"deadline_s is {seconds}", why="it must be finite and above zero")
    return seconds


def _expired(pending: _Pending, *, now: float) -> Iterator[tuple[str, str]]:
    for message_id, errand in list(pending.sent.items()):
        if now >= errand.until:
            del pending.sent[message_id]
            yield errand.site, f"site {errand.site} did not answer within {errand.deadline_s:g} s"
    for errand in list(pending.absent):
        if now >= errand.until:
            pending.absent.remove(errand)
            yield errand.site, f"site {errand.site} was lost and did not return in time"


def _read(reply: Message, *, site: str) -> Parcel | str:
    if reply.has_error():
        return f"site {site}: {_plain(reply.error.reason or 'its node failed')}"
    content = reply.content
    if "parcel" in content.array_records:
        return unpack(content.array_records["parcel"])
    terms = content.config_records.get("terms")
    reason = terms.get("error") if terms is not None else None
    return f"site {site}: {_plain(str(reason or 'it sent no parcel'))}"


def _plain(text: str) -> str:
    """Return what a site wrote as one printable line of bounded length."""
    return "".join(c if c.isprintable() else " " for c in text)[:_LONGEST_REASON]
