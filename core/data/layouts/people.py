"""What BIDS says of subjects and of their sessions: ``participants.tsv`` and ``sessions.tsv``."""

from __future__ import annotations

import re
from pathlib import Path

from vitrael.core.data.layouts.facts import NOTHING, FactReader, Facts, is_said, reconcile
from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.layouts.rows import Folder
from vitrael.core.data.tables import read_table
from vitrael.core.errors import CohortError

PARTICIPANTS = "participants.tsv"
_SESSIONS = re.compile(
    r"(?:(sub-[A-Za-z0-9]+)_)?(?:ses-[A-Za-z0-9]+_)?sessions\.tsv", re.IGNORECASE
)
_SUBJECT = "participant_id"
_SESSION = "session_id"


class People:
    """The facts of subjects and sessions; remembers which tables were of use."""

    def __init__(self, folder: Folder, ledger: Ledger) -> None:
        """Read the tables of a folder, ``participants.tsv`` also from the one above.

        Raises CohortError for a table that cannot be read or does not name its subjects.
        """
        self._facts: dict[tuple[str, str], tuple[Facts, Path]] = {}
        self._used: dict[Path, None] = {}
        root = folder.root.resolve()
        above = root.parent / PARTICIPANTS
        own = [p for p in folder.tables if folder.inside(p) == Path(PARTICIPANTS)]
        for path in [*([above] if above.is_file() else []), *own]:
            self._read(path, ledger, label=PARTICIPANTS, is_ours=path != above)
        for path in folder.tables:
            named = _SESSIONS.fullmatch(path.name)
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
        table = read_table(path, label=label)
        needs = [] if subject else [_SUBJECT]
        needs += [_SESSION] if label != PARTICIPANTS else []
        for column in needs:
            if column not in table.columns:
                if is_ours:
                    raise CohortError(
                        f"the table {label} lacks the column {column}",
                        fix="mend the table or remove it",
                    )
                return
        reader = FactReader(table, ledger)
        for row in table.rows():
            if row.has_formula:
                ledger.count(f"rows of {label} that hold a formula, not used")
                continue
            named = subject or _prefixed(row.cells.get(_SUBJECT, ""))
            session = row.cells.get(_SESSION, "").removeprefix("ses-")
            if label == PARTICIPANTS:
                self._take(named, "", reader.read(row), path=path)
            elif session:
                self._take(named, session, reader.read(row), path=path)

    def _take(self, subject: str, session: str, read: Facts, *, path: Path) -> None:
        if not subject:
            return
        # Whose image it is, and which visit, is not for these tables to say.
        facts = Facts(taken=read.taken, covariates=read.covariates, labels=read.labels)
        known, _ = self._facts.get((subject, session), (NOTHING, path))
        both = reconcile(known, facts)
        self._facts[subject, session] = (NOTHING if both.refused else both, path)


def _prefixed(subject: str) -> str:
    plain = subject.removeprefix("sub-")
    return f"sub-{plain}" if is_said(plain) else ""
