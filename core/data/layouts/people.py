"""What BIDS says of subjects and of their sessions: ``participants.tsv`` and ``sessions.tsv``.

The file of the same name in JSON says how they are coded. They do not say whose an image is: so one
that cannot be read costs its facts alone, and is told.
"""

from __future__ import annotations

from pathlib import Path

from vitrael.core.data.layouts.facts import (
    IMPOSSIBLE_EF,
    NOTHING,
    FactReader,
    Facts,
    is_said,
    reconcile,
)
from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.layouts.rows import BROKEN_TABLE, PARTICIPANTS, SESSIONS, Folder, is_there
from vitrael.core.data.layouts.sidecar import in_words, read_sidecar
from vitrael.core.data.tables import Row, read_table
from vitrael.core.errors import CohortError

_SUBJECT = "participant_id"
_SESSION = "session_id"


class People:
    """The facts of subjects and sessions; remembers which tables were of use."""

    def __init__(self, folder: Folder, ledger: Ledger) -> None:
        """Read the tables of a folder, ``participants.tsv`` also from the one above.

        One that cannot be read or does not name its subjects is left out.
        """
        self._facts: dict[tuple[str, str], tuple[Facts, Path]] = {}
        self._used: dict[Path, None] = {}
        root = folder.root.resolve()
        above = root.parent / PARTICIPANTS
        own = [p for p in folder.tables if folder.inside(p) == Path(PARTICIPANTS)]
        for path in [*([above] if is_there(above) else []), *own]:
            self._read(path, ledger, label=PARTICIPANTS, is_ours=path != above)
        for path in folder.tables:
            named = SESSIONS.fullmatch(path.name)
            if named:
                self._read(path, ledger, label="sessions.tsv", subject=named[1] or "")

    @property
    def used(self) -> tuple[Path, ...]:
        """The tables that told something of a subject that was asked for."""
        return tuple(self._used)

    def tell(self, subject: str, session: str) -> tuple[Facts, Facts]:
        """Return what is known of a subject (``sub-01``), and of one session of it (``2``)."""
        return self._look_up(subject, ""), self._look_up(subject, session)

    def _look_up(self, subject: str, session: str) -> Facts:
        facts, path = self._facts.get((subject, session), (NOTHING, None))
        if path is not None:
            self._used[path] = None
        return facts

    def _read(
        self, path: Path, ledger: Ledger, *, label: str, subject: str = "", is_ours: bool = True
    ) -> None:
        needs = [] if subject else [_SUBJECT]
        needs += [_SESSION] if label != PARTICIPANTS else []
        try:
            table = read_table(path, label=label)
        except CohortError:
            if is_ours:
                ledger.leave([path], BROKEN_TABLE)
            else:
                ledger.count(f"a {label} above the folder that cannot be read")
            return
        missing = [column for column in needs if column not in table.columns]
        if missing:
            if is_ours:
                ledger.leave([path], f"a table that lacks the column {missing[0]}")
            return
        reader, about = FactReader(table, ledger), read_sidecar(path)
        for row in table.rows():
            if row.has_formula:
                ledger.count(f"rows of {label} that hold a formula, not used")
                continue
            named = subject or _prefixed(row.cells.get(_SUBJECT, ""))
            session = row.cells.get(_SESSION, "").removeprefix("ses-")
            is_of_visit = label != PARTICIPANTS
            if not named or (is_of_visit and not is_said(session)):
                ledger.count(f"rows of {label} that name no {'patient' if not named else 'visit'}")
                continue
            facts = reader.read(Row(row.number, in_words(row.cells, about)))
            self._take(named, session if is_of_visit else "", facts, path=path)

    def _take(self, subject: str, session: str, read: Facts, *, path: Path) -> None:
        # Whose image it is, and which visit, is not for these tables to say.
        facts = Facts(taken=read.taken, covariates=read.covariates, labels=read.labels)
        known, _ = self._facts.get((subject, session), (NOTHING, path))
        both = reconcile(known, facts)
        if IMPOSSIBLE_EF in {known.refused, read.refused}:
            both = Facts(refused=IMPOSSIBLE_EF)
        elif both.refused:
            both = NOTHING
        self._facts[subject, session] = both, path


def _prefixed(subject: str) -> str:
    plain = subject.removeprefix("sub-")
    return f"sub-{plain}" if is_said(plain) else ""
