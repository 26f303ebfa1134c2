"""What an enrolled site says to its coordinator outside of a study, and the answer.

Each word is written into the site's journal before it goes, like all that leaves.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from typing import Final, Literal

from vitrael.client.site.enrollment.link import (
    Clock,
    Patience,
    Tell,
    open_link,
    post,
    tell_difference,
)
from vitrael.client.site.options import utc_now
from vitrael.client.site.settings import SiteSettings
from vitrael.client.site.store import Store
from vitrael.core.digest import Digest
from vitrael.core.errors import AuthError
from vitrael.core.text import one_line
from vitrael.privacy.enrollment import MOST_REASON, JoinRequest, SiteWord, Standing
from vitrael.privacy.envelope import open_standing, sign_enrollment
from vitrael.privacy.journal import Entry, Event, Journal
from vitrael.privacy.keys import KeyPair, fingerprint, load_public_keys

Kind = Literal["standing", "withdraw", "leave"]

OLDEST: Final = timedelta(minutes=15)
"""How far the time of an answer may be from this machine's."""


def send_word(
    settings: SiteSettings,
    kind: Kind,
    *,
    protocol: Digest | None = None,
    reason: str = "",
    keys: KeyPair | None = None,
    clock: Clock = utc_now,
    tell: Tell = lambda _: None,
    patience: Patience | None = None,
) -> Standing:
    """Return how things stand, as the coordinator answers to a word of this site.

    ``reason`` is for the coordinator and says nothing of a patient; ``keys`` stand for those in
    use. ``tell`` takes what the operator should read while the site tries. Raises NetworkError when
    the coordinator was not reached: then the word may not have been heard; AuthError when it
    refuses, or its answer cannot be believed.
    """

    def compose() -> SiteWord:
        return SiteWord(
            site=settings.name,
            kind=kind,
            protocol=protocol,
            reason=one_line(reason, MOST_REASON),
            nonce=secrets.token_hex(16),
            utc=clock().isoformat(timespec="seconds"),
        )

    own = keys or settings.load_keys()
    return exchange(
        settings, "word", compose, keys=own, event="sent", clock=clock, tell=tell, patience=patience
    )


def exchange(
    settings: SiteSettings,
    path: Literal["join", "word"],
    compose: Callable[[], JoinRequest | SiteWord],
    *,
    keys: KeyPair,
    event: Event,
    clock: Clock,
    tell: Tell,
    patience: Patience | None = None,
) -> Standing:
    """Return the answer to a message, once it is signed, in the journal and sent.

    ``compose`` is called for each message that may be heard. Raises as ``send_word`` does.
    """
    link, coordinator = open_link(settings), load_public_keys(settings.coordinator)
    receiver = f"coordinator {fingerprint(coordinator.signing)[:19]}"
    asked: list[JoinRequest | SiteWord] = []
    with closing(Store(settings.store, updates=settings.updates)) as store:
        journal = Journal(settings.journal, clock=clock, witness=store)

        def prepare() -> bytes:
            asked.append(compose())
            data = sign_enrollment(asked[-1], keys)
            journal.append(_describe(asked[-1], event=event, to=receiver, size=len(data)))
            return data

        answer = post(link, path, prepare, clock=clock, tell=tell, patience=patience)
    standing = open_standing(answer, coordinator)
    _check(standing, asked[-1], now=clock())
    tell_difference(datetime.fromisoformat(standing.utc), clock(), tell=tell)
    return standing


def _describe(message: JoinRequest | SiteWord, *, event: Event, to: str, size: int) -> Entry:
    """Return the journal's line; without a nonce, which the lines of replies alone have.

    The sentence for the coordinator leaves with the word, so the line holds it.
    """
    said, protocol = "public keys", ""
    if isinstance(message, SiteWord):
        said = ": ".join(filter(None, (f"word: {message.kind}", message.reason)))
        protocol = message.protocol or ""
    return Entry(
        event=event, to=to, origin=message.site, protocol=protocol, bytes=size, reason=said
    )


def _check(standing: Standing, asked: JoinRequest | SiteWord, *, now: datetime) -> None:
    """Raise AuthError for an answer to something else, or from another time."""
    nonce = asked.nonce if isinstance(asked, SiteWord) else asked.token[:32]
    if (standing.site, standing.nonce) != (asked.site, nonce):
        raise AuthError(
            "the coordinator's answer belongs to another question",
            why="its site or its nonce differs",
            fix="ask again; if it stays so, something in between repeats old answers",
        )
    if abs(now - datetime.fromisoformat(standing.utc)) > OLDEST:
        raise AuthError(
            "the coordinator's answer is of another time",
            why=f"it says {standing.utc} and this machine {now.isoformat(timespec='seconds')}",
            fix="set the clocks of both sides",
        )
