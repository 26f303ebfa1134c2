"""The journal's lines of the registry's acts: each stands there before its transaction ends.

The database remembers in the same transaction where the journal ended. So a line behind that place
is of an act that came to nothing, and the next act says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from vitrael.privacy.journal import Entry, Event, Journal, Kept, Line, read_journal
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
    for line in list(_unfinished(journal, kept=head.read_head())):
        journal.append(take_back(line))
    journal.append(entry)
    session.info["noted"] = entry


def take_back(act: Entry | Line) -> Entry:
    """Return the line which says that an act was not finished."""
    said = f"{act.event} of {act.to or act.origin} was not finished"
    return Entry(event="repaired", to=act.to, origin=act.origin, reason=said)


def _unfinished(journal: Journal, *, kept: Kept | None) -> Iterator[Line]:
    """Yield the acts of which the database knows nothing: a process was killed in them."""
    if kept is None or journal.head().lines == kept.lines:
        return
    for line in read_journal(journal.path):
        if line.line > kept.lines and line.event in _ACTS:
            yield line
