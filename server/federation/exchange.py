"""Parcels to the sites and their answers: the Protocol, and how Flower fulfils it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from vitrael.core.errors import ConfigError
from vitrael.core.messages import MakeParcel, Parcel
from vitrael.core.text import one_line

if TYPE_CHECKING:
    from flwr.serverapp import Grid

BYTES = "vitrael.bytes"
"""How Flower's Array names a plain byte string."""

ABSENT_S = 90.0
"""How long a site that is not connected is waited for before its deadline begins."""

_POLL_S = 0.1
_SLOWEST_POLL_S = 1.0
_PRESENCE_POLL_S = 0.5
_PATIENCE_S = 0.5
"""How long all wait for one answer that is being fetched; then it is fetched beside the others."""
_FETCH_S = 30.0
"""How long an answer that was asked for near its site's deadline may take to be fetched."""
_MOST_LEFT = 4
_PROMPT_S = 5.0
"""Within this a SuperLink answers that was there all the time."""
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
        self, parcels: Mapping[str, MakeParcel], *, deadline_s: float | Mapping[str, float]
    ) -> Iterator[tuple[str, Parcel | str]]:
        """Yield each addressed site exactly once, as it settles.

        With the site comes its reply parcel, or one sentence that says why there is none. A
        site whose answer is not all there within ``deadline_s`` seconds, all the same or each its
        own, is yielded with that reason, whatever the others do. A parcel is made when it goes,
        so that memory holds one.
        """


def pack(parcel: Parcel) -> ArrayRecord:
    """Return a parcel in Flower's form."""
    return ArrayRecord(
        {name: Array("uint8", (len(data),), BYTES, data) for name, data in parcel.items()}
    )


def unpack(record: ArrayRecord) -> dict[str, bytes]:
    """Return the parcel that Flower carried."""
    return {str(name): array.data for name, array in record.items()}


@dataclass(frozen=True, slots=True)
class _Came:
    """What came back: a parcel, or why there is none."""

    content: Parcel | str
    lost: bool = False
    """Whether nobody can say what the site did: the parcel may be sent again."""


@dataclass(slots=True)
class _Errand:
    """One parcel on its way to one site."""

    site: str
    make: MakeParcel
    deadline_s: float
    until: float = math.inf
    """The moment at which the site's time is up; set when the parcel is sent first."""
    absent_since: float = 0.0
    attempts: int = 0
    asked_at: float = -math.inf
    """When its answer was asked for last."""
    asking: Future[_Came | None] | None = None
    """The asking that has not been looked at yet."""


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

    Flower hands out an answer as soon as it is announced, and waits for its bytes for up to two
    hours. So each answer is asked for in a thread of its own. One that is left at its deadline
    goes on until Flower gives up; a site that has four of them is sent nothing new.
    """

    grid: Grid
    nodes: Mapping[str, int]
    """Site name -> Flower node id."""
    absent_s: float = ABSENT_S
    attempts: int = 3
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _left: dict[str, set[Future[_Came | None]]] = field(default_factory=dict, init=False)
    """Site -> the askings that were not waited for to their end."""

    def send(
        self, parcels: Mapping[str, MakeParcel], *, deadline_s: float | Mapping[str, float]
    ) -> Iterator[tuple[str, Parcel | str]]:
        """Yield each addressed site exactly once; see Exchange.

        Raises ConfigError for a site that has no node id and for a deadline that is no time.
        """
        unknown = sorted(parcels.keys() - self.nodes.keys())
        if unknown:
            raise ConfigError(f"site {unknown[0]} has no Flower node", fix="register its node key")
        now = self.clock()
        errands = [
            _Errand(site, make, _seconds_for(site, deadline_s), absent_since=now)
            for site, make in parcels.items()
        ]
        return self._send(_Pending(errands))

    def _send(self, pending: _Pending) -> Iterator[tuple[str, Parcel | str]]:
        started = look_again = self.clock()
        while pending.absent or pending.sent:
            if pending.absent and self.clock() >= look_again:
                yield from self._push(pending)
                look_again = self.clock() + _PRESENCE_POLL_S
            yield from self._pull(pending)
            yield from self._expire(pending)
            if pending.absent or pending.sent:
                waited = self.clock() - started
                self.sleep(min(_SLOWEST_POLL_S, max(_POLL_S, waited / 50)))

    def _push(self, pending: _Pending) -> Iterator[tuple[str, str]]:
        present = set(self.grid.get_node_ids())
        for errand in list(pending.absent):
            site = errand.site
            busy = len(self._left.get(site, ())) >= _MOST_LEFT
            if self.nodes[site] in present and not busy:
                pending.absent.remove(errand)
                message_id = self._push_one(errand)
                if message_id is None:
                    yield site, f"site {site}: the SuperLink did not take the message"
                else:
                    pending.sent[message_id] = errand
            elif self.clock() - errand.absent_since >= self.absent_s:
                pending.absent.remove(errand)
                what = "still sends earlier answers" if busy else "is not connected"
                yield site, f"site {site} {what}, waited {self.absent_s:.0f} s"

    def _push_one(self, errand: _Errand) -> str | None:
        packed = pack(errand.make())
        now = self.clock()
        errand.until = min(errand.until, now + errand.deadline_s)
        errand.attempts += 1
        seconds = errand.until - now
        message = Message(
            RecordDict({"parcel": packed, "terms": ConfigRecord({"deadline_s": seconds})}),
            dst_node_id=self.nodes[errand.site],
            message_type="query",
            ttl=seconds + _TTL_MARGIN_S,
        )
        return next(iter(self.grid.push_messages([message])), None) or None

    def _pull(self, pending: _Pending) -> Iterator[tuple[str, Parcel | str]]:
        begun = []
        for message_id, errand in pending.sent.items():
            if errand.asking is None:
                errand.asked_at = self.clock()
                errand.asking = _begin(self._ask, message_id, errand.site)
                begun.append(errand.asking)
        wait(begun, timeout=_PATIENCE_S)
        for message_id, errand in list(pending.sent.items()):
            if errand.asking is None or not errand.asking.done():
                continue
            came, errand.asking = errand.asking.result(), None
            if came is None:
                continue
            del pending.sent[message_id]
            if came.lost and errand.attempts < self.attempts:
                errand.absent_since = self.clock()
                pending.absent.append(errand)
            else:
                yield errand.site, came.content

    def _ask(self, message_id: str, site: str) -> _Came | None:
        """Return what a site answered, None when it has not.

        What a site sends may be anything: an answer that Flower or we cannot take apart is that
        site's failing alone.
        """
        try:
            for reply in self.grid.pull_messages([message_id]):
                if reply.metadata.reply_to_message_id == message_id:
                    lost = reply.has_error() and reply.error.code in _LOST_ON_THE_WAY
                    return _Came(_read(reply, site=site), lost=lost)
        except httpx.HTTPError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge at which foreign bytes come in
            return _Came(f"site {site}: its answer cannot be read ({type(error).__name__})")
        return None

    def _expire(self, pending: _Pending) -> Iterator[tuple[str, str]]:
        """Yield the sites whose time is up: nothing was there when last asked, or not all."""
        now = self.clock()
        for message_id, errand in list(pending.sent.items()):
            site, late = errand.site, f"did not answer within {errand.deadline_s:g} s"
            if errand.asking is None and errand.asked_at >= errand.until:
                del pending.sent[message_id]
                yield site, f"site {site} {late}"
            elif errand.asking is not None and now >= max(errand.until, errand.asked_at + _FETCH_S):
                if self._was_away():
                    errand.asked_at = self.clock()
                    continue
                del pending.sent[message_id]
                self._leave(site, errand.asking)
                yield site, f"site {site} {late}: its answer was still on its way"
        for errand in list(pending.absent):
            if now >= errand.until:
                pending.absent.remove(errand)
                yield errand.site, f"site {errand.site} was lost and did not return in time"

    def _was_away(self) -> bool:
        """Wait for the SuperLink; say whether it was away, so that no asking could end."""
        began = self.clock()
        self.grid.get_node_ids()
        return self.clock() - began > _PROMPT_S

    def _leave(self, site: str, asking: Future[_Came | None]) -> None:
        left = self._left.setdefault(site, set())
        left.add(asking)
        asking.add_done_callback(left.discard)


def _begin(
    ask: Callable[[str, str], _Came | None], message_id: str, site: str
) -> Future[_Came | None]:
    """Return the future of an asking; the process's end waits no longer for it than Flower does."""
    future: Future[_Came | None] = Future()

    def run() -> None:
        try:
            future.set_result(ask(message_id, site))
        except BaseException as error:  # noqa: BLE001 - raised on where the result is taken
            future.set_exception(error)

    threading.Thread(target=run, name=f"ask {site}", daemon=True).start()
    return future


def _seconds_for(site: str, deadline_s: float | Mapping[str, float]) -> float:
    """Return a site's deadline; raise ConfigError for one that is no time."""
    seconds = deadline_s[site] if isinstance(deadline_s, Mapping) else deadline_s
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"deadline_s is {seconds}", why="it must be finite and above zero")
    return seconds


def _read(reply: Message, *, site: str) -> Parcel | str:
    if reply.has_error():
        return f"site {site}: {one_line(reply.error.reason or 'its node failed', _LONGEST_REASON)}"
    content = reply.content
    if "parcel" in content.array_records:
        return unpack(content.array_records["parcel"])
    terms = content.config_records.get("terms")
    reason = terms.get("error") if terms is not None else None
    return f"site {site}: {one_line(str(reason or 'it sent no parcel'), _LONGEST_REASON)}"
