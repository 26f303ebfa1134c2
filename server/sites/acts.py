"""The journal's lines of the registry's acts: each stands there before its transaction ends.

The database remembers in the same transaction up to which line it knows the acts. So an act behind
that place came to nothing, and the next act says so, whatever a study has written in between.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from vitrael.privacy.journal import Entry, Event, Journal, Line, read_journal
from vitrael.server.db.heads import JournalHead

_ACTS: Final[frozenset[Event]] = frozenset(
    {"invite", "rotate", "join", "approve", "revoke", "withdraw", "leave"}
)


def write_act(
    entry: Entry, session: Session, *, engine: Engine, path: Path, clock: Callable[[], datetime]
) -> None:
    """Append an act's line within its transaction, behind one for each act that was not finished.

    Raises StorageError as the journal does.
    """
    head = JournalHead(engine, session)
    journal = Journal(path, clock=clock, witness=head)
    for line in _unfinished(journal, known=head.read_acts()):
        journal.append(take_back(line))
    journal.append(entry)
    session.info["noted"] = entry


def take_back(act: Entry | Line) -> Entry:
    """Return the line which says that an act was not finished."""
    said = f"{act.event} of {act.to or act.origin} was not finished"
    return Entry(event="repaired", to=act.to, origin=act.origin, reason=said)


def _unfinished(journal: Journal, *, known: int | None) -> list[Line]:
    """Return the acts of which neither the database nor the journal says what became of them."""
    if known is None or journal.head().lines == known:
        return []
    found: dict[str, Line] = {}
    for line in read_journal(journal.path):
        if line.line > known and line.event in _ACTS:
            found[take_back(line).reason] = line
        elif line.line > known and line.event == "repaired":
            found.pop(line.reason, None)
    return list(found.values())
