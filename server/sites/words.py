"""What is kept of what sites say: each word is heard once, and none of them without end."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from vitrael.core.errors import AuthError
from vitrael.privacy.enrollment import SiteWord
from vitrael.server.db.sites import WordRow
from vitrael.server.sites.clocks import WINDOW

MOST_A_DAY: Final = 100
"""Words of one site and kind, but for questions: a row and a journal line stay for each."""


def remember_word(session: Session, word: SiteWord, *, now: datetime) -> None:
    """Keep a word, so that it is heard once; forget questions too old to be asked again.

    Raises AuthError for one that was heard before, or that is one too many.
    """
    session.execute(
        delete(WordRow).where(WordRow.kind == "standing", WordRow.received_utc < now - 2 * WINDOW)
    )
    if session.scalar(select(WordRow).filter_by(site=word.site, nonce=word.nonce)) is not None:
        raise AuthError(
            f"this word of site {word.site} was heard before",
            why="somebody sent it a second time",
            fix="say it again: each word has a nonce of its own",
        )
    since = now - timedelta(days=1)
    lately = select(func.count()).where(
        WordRow.site == word.site, WordRow.kind == word.kind, WordRow.received_utc > since
    )
    if word.kind != "standing" and (session.scalar(lately) or 0) >= MOST_A_DAY:
        raise AuthError(
            f"site {word.site} has said this too often",
            why=f"more than {MOST_A_DAY} such words of a site are not heard in a day",
            fix="say it again tomorrow, or call the coordinator",
        )
    session.add(
        WordRow(
            site=word.site,
            nonce=word.nonce,
            kind=word.kind,
            protocol=word.protocol,
            reason=word.reason,
            said_utc=datetime.fromisoformat(word.utc),
            received_utc=now,
        )
    )
