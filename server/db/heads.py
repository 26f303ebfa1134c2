"""Where the coordinator's journal ends, remembered in ``server.sqlite``.

Who removes the journal together with ``journal.head.json``, or puts older ones there, is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from vitrael.privacy.journal import Kept
from vitrael.server.db.engine import explain_failures
from vitrael.server.db.sites import JournalHeadRow


@dataclass(frozen=True, slots=True)
class JournalHead:
    """The witness of the coordinator's journal."""

    engine: Engine
    session: Session | None = None
    """A transaction that is at work already: what is kept in it is kept when it ends."""

    def read_head(self) -> Kept | None:
        """Return what was kept last, or None; it waits for no transaction."""
        with self._opened(read_only=True) as session:
            row = session.get(JournalHeadRow, 1)
            return None if row is None else Kept(row.lines, row.hash)

    def read_acts(self) -> int | None:
        """Return the number of the line up to which the acts are known, or None."""
        with self._opened(read_only=True) as session:
            row = session.get(JournalHeadRow, 1)
            return None if row is None else row.acts

    def keep_head(self, head: Kept) -> None:
        """Remember a head; one that another process has left behind changes nothing.

        Of the acts, what is kept within a transaction tells: it ends with the act's.
        """
        with self._opened(read_only=False) as session:
            row = session.get(JournalHeadRow, 1)
            if row is None:
                row = JournalHeadRow(id=1, lines=head.lines, hash=head.hash, acts=head.lines)
                session.add(row)
            elif row.lines < head.lines:
                row.lines, row.hash = head.lines, head.hash
            if self.session is not None:
                row.acts = max(row.acts, head.lines)
            session.flush()

    @contextmanager
    def _opened(self, *, read_only: bool) -> Iterator[Session]:
        if self.session is not None:
            yield self.session
            return
        options = self.engine.execution_options(read_only=read_only)
        with explain_failures(), Session(options) as session, session.begin():
            yield session
