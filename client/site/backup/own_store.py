"""What of a home stays when a backup is restored into it: a store that knows more than the backup.

What takes away holds without a line in a damaged journal: it then stands in the home's store alone,
and the store of a backup would undo it. And lines that were written behind a damaged one are whole.
So where the lines of the backup and those that the home has behind them make one whole journal that
the home's store remembers, nothing was lost but the damaged lines, and the store stays.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Final, Literal

from vitrael.client.site.backup.contents import DATABASES, JOURNAL
from vitrael.client.site.backup.heads import read_witness
from vitrael.core.digest import canonical_json, write_atomically
from vitrael.core.errors import StorageError
from vitrael.core.messages import Head
from vitrael.privacy.journal import Line, find_loss, verify_copy, verify_journal
from vitrael.privacy.journal_line import parse_line

Stays = Literal["nothing", "store", "all"]
"""Of a home: nothing, its store, or all but the journal, whose damaged lines are taken."""

_STORE: Final = DATABASES[0]
_AWAY: Final = (
    f"move {_STORE} away, restore, and pause, stop, leave or reject again what you did since the "
    "backup"
)


def choose_stays(home: Path, staging: Path, head: Head, *, again: bool) -> Stays:
    """Return what of a home stays, once nothing of it lies in ``staging`` any more.

    ``head`` is that of the backup's journal; with ``again`` this restore was begun before. Raises
    StorageError for a store that is damaged: what was taken back may stand there alone.
    """
    if not (home / _STORE).exists():
        return "nothing"
    _demand_readable(home / _STORE)
    witness = read_witness(home / _STORE)
    if witness is None or witness.lines < head.lines:
        return "nothing"
    joined = staging / "joined.jsonl"
    shutil.copyfile(staging / JOURNAL[0], joined)
    last = _add_lines_behind(joined, home / JOURNAL[0], head)
    newer = last is not None and not again
    if (newer and _is_whole(home)) or verify_copy(joined) or find_loss(joined, kept=witness):
        joined.unlink()
        return "nothing"
    if last is not None:
        counted = {"lines": last.line, "bytes": joined.stat().st_size, "hash": last.hash}
        write_atomically(staging / JOURNAL[1], canonical_json(counted) + b"\n")
    joined.replace(staging / JOURNAL[0])
    for path in staging.iterdir():
        if path.name not in JOURNAL and (newer or _is_own(path, home)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return "all" if newer else "store"


def demand_nothing_owed(home: Path) -> None:
    """Raise StorageError when a home's store holds an act that stands in no journal."""
    if (home / _STORE).exists() and _count_owed(home / _STORE):
        raise StorageError(
            "the home's store holds decisions that stand in no journal",
            why="the store of the backup would undo them",
            fix=_AWAY,
        )


def _is_own(path: Path, home: Path) -> bool:
    """Return whether it is of a database that the home has."""
    return any(path.name.startswith(name) and (home / name).exists() for name in DATABASES)


def _is_whole(home: Path) -> bool:
    try:
        return not verify_journal(home / JOURNAL[0], kept=read_witness(home / _STORE))
    except StorageError:
        return False


def _add_lines_behind(joined: Path, journal: Path, head: Head) -> Line | None:
    """Add the whole lines that follow on a head to a file; return the last one, or None."""
    last: Line | None = None
    with contextlib.suppress(FileNotFoundError), journal.open("rb") as own, joined.open("ab") as to:
        for raw in own:
            line = parse_line(raw)
            follows = line is not None and (line.line, line.previous) == (head.lines + 1, head.hash)
            if raw.endswith(b"\n") and (last is not None or follows):
                to.write(raw)
                last = line or last
    return last


def _demand_readable(store: Path) -> None:
    try:
        with contextlib.closing(_open(store)) as connection:
            (answer,) = connection.execute("PRAGMA quick_check").fetchone()
    except sqlite3.Error as error:
        answer = str(error)
    if answer != "ok":
        raise StorageError(
            "the home's store is damaged, and may hold decisions that the backup does not know",
            why=answer.partition("\n")[0],
            fix=_AWAY,
        )


def _count_owed(store: Path) -> int:
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(_open(store)) as opened:
        return int(opened.execute("SELECT count(*) FROM owed_lines").fetchone()[0])
    return 0  # an earlier version had no such table


def _open(store: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)
