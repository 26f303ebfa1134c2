"""Where journals end: what a file of lines, its head and a store say, each for itself."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from pathlib import Path
from typing import Final

from vitrael.core.digest import Digest
from vitrael.core.errors import StorageError, UsageError
from vitrael.core.messages import Head
from vitrael.privacy.journal import BEGINNING, Kept, read_journal

ANEW: Final = (
    "Where none is new enough: ask the coordinator for an invitation (`vitrael server sites "
    "rotate`) and join in a new home, into which you have copied keys/split.key, withdrawn.json, "
    "cohorts/told.json and cohorts/*/versions.json. A folder of its own, into which the backup was "
    "restored without --expect-journal, has them; it answers nothing"
)
"""What is left to a site whose journal has lost what it once told."""

_EXPECTED: Final = re.compile(r"(\d{1,12}):(?:sha256:)?([0-9a-f]{16,64})")


def find_head(journal: Path) -> Head:
    """Return number and hash of a journal's last line, which must be whole."""
    lines, digest = 0, BEGINNING
    for line in read_journal(journal):
        lines, digest = line.line, line.hash
    return Head(lines=lines, hash=digest)


def read_witness(store: Path) -> Kept | None:
    """Return where a store says that the journal ended; None when it does not tell."""
    if not store.exists():
        return None
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(_read_only(store), uri=True)) as connection,
    ):
        row = connection.execute("SELECT lines, hash FROM journal_head").fetchone()
        return None if row is None else Kept(int(row[0]), Digest(str(row[1])))
    return None


def _read_only(store: Path) -> str:
    return f"{store.absolute().as_uri()}?mode=ro"


def known_heads(home: Path) -> list[Kept]:
    """Return where a home knows its journal to have ended; damaged parts tell nothing.

    The lines of the file itself count without a hash: one of them may be what is damaged.
    """
    known = []
    if (kept := read_witness(home / "store.sqlite")) is not None:
        known.append(kept)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        head = json.loads((home / "journal.head.json").read_bytes())
        known.append(Kept(int(head["lines"]), Digest(str(head["hash"]))))
    with contextlib.suppress(OSError), (home / "journal.jsonl").open("rb") as file:
        known.append(Kept(sum(line.endswith(b"\n") for line in file), Digest("")))
    return known


def parse_expected(text: str) -> Kept:
    """Return what ``N:HASH`` says, of whose digits the first 16 are enough; ``0`` is no line.

    It is the last line that the coordinator was told. ``none`` says that it was told none although
    this site has replied. Raises UsageError for anything else.
    """
    if text in ("0", "none"):
        return Kept(0, BEGINNING if text == "0" else Digest(""))
    found = _EXPECTED.fullmatch(text)
    if found is None:
        raise UsageError(
            "the journal's end cannot be read",
            why="it is not written N:HASH, the number of a line and at least 16 digits of its hash",
            fix="ask the coordinator",
        )
    return Kept(int(found[1]), Digest(f"sha256:{found[2]}"))


def holds(journal: Path, head: Kept) -> bool:
    """Return whether a journal has a line with such a hash, or one that begins like it."""
    if not head.lines:
        return True
    return any(
        line.line == head.lines and line.hash.startswith(head.hash)
        for line in read_journal(journal)
    )


def demand_newest(journal: Path, told: Kept) -> None:
    """Raise StorageError unless a journal holds all that left, by the last line that was told.

    A reply tells the line before its own: behind the one that was told a reply must stand, before
    any restore; and where none was told, no reply may stand at all, unless ``told`` has no hash:
    then none arrived.
    """
    found = replied = False
    for line in read_journal(journal):
        if line.event == "restored" and found:
            break
        replied = bool(line.nonce) and (found or not told.lines)
        if replied:
            break
        if line.line == told.lines:
            found = line.hash.startswith(told.hash)
    if told.lines and not found:
        raise older(f"its journal has no line {told.lines} with that hash")
    if told.lines and not replied:
        raise older(f"its journal has not the reply that told line {told.lines}")
    if not told.lines and replied and told.hash:
        raise StorageError(
            "the coordinator has been told of this site's journal",
            why="a reply stands in the journal, so that 0 is not what the coordinator knows",
            fix="ask it for the last line that it knows of this site; where no reply has reached "
            "it, or it has lost its journal: --expect-journal none",
        )


def older(why: str) -> StorageError:
    """Return the error for a backup that would forget what has left."""
    return StorageError(
        "the backup is older than what is known of this home",
        why=why,
        fix=f"restore the newest backup; an older one would forget what has left since. {ANEW}",
    )
