"""What a home remembers of a restore until it is known that nothing newer is lost.

A restored journal may end before lines whose bytes left: then what those lines say was forgotten,
and answers that were given once would be given again. The coordinator quotes in each task where
this site's journal ended when it was last told (``Task.yours``). Until a task of after the restore
quotes a line that is found here with its reply, or the operator has named the last one that the
coordinator was told, no task is answered. One of before the restore confirms nothing: whoever
carries parcels can lay it again.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from vitrael.client.site.backup.contents import Manifest
from vitrael.client.site.backup.heads import demand_newest
from vitrael.core.configs import Section
from vitrael.core.digest import write_atomically
from vitrael.core.errors import StorageError
from vitrael.core.messages import Task, UtcField
from vitrael.privacy.journal import Kept

MARK: Final = "restored.json"


class Restored(Section):
    """Which backup a home was restored from."""

    home: str
    number: int = Field(ge=1)
    created_utc: UtcField
    restored_utc: UtcField
    complete: bool
    """False while files are put in their places."""

    def names(self, backup: Manifest) -> bool:
        """Return whether it was this backup."""
        mine, other = (self.home, self.number), (backup.home, backup.number)
        return mine == other and self.created_utc == backup.created_utc


def read_mark(home: Path) -> Restored | None:
    """Return what is not confirmed yet, or None; StorageError when the mark is damaged."""
    try:
        return Restored.model_validate_json((home / MARK).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise StorageError(
            f"{MARK} in the site's home cannot be read",
            why="it says that the home was restored from a backup",
            fix="restore the newest backup again",
        ) from error


def save_mark(home: Path, mark: Restored) -> None:
    """Let no task be answered until the restore is confirmed."""
    write_atomically(home / MARK, mark.model_dump_json().encode() + b"\n")


def confirm_restore(home: Path, expected: Kept) -> None:
    """Take the mark away, given the last line that the coordinator was told.

    Raises StorageError when it shows that something is missing, or the restore was cut short.
    """
    mark = read_mark(home)
    if mark is not None and not mark.complete:
        raise _cut()
    demand_newest(home / "journal.jsonl", expected)
    forget_mark(home)


def forget_mark(home: Path) -> None:
    """Take the mark away."""
    with contextlib.suppress(FileNotFoundError):
        (home / MARK).unlink()


def demand_confirmed(home: Path, task: Task) -> None:
    """Raise StorageError unless a restore is confirmed; a task that quotes the journal confirms it.

    Call it once the line that the task quotes was found in the journal.
    """
    mark = read_mark(home)
    if mark is None:
        return
    if not mark.complete:
        raise _cut()
    if task.yours is None:
        raise StorageError(
            "the home was restored from a backup, and nobody has said yet that it is the newest",
            why="the coordinator quotes no line of this site's journal",
            fix="ask the coordinator for the last line that it knows of this site, 0 for none, and "
            "run `vitrael site restore --expect-journal N:HASH`",
        )
    if datetime.fromisoformat(task.issued_utc) < datetime.fromisoformat(mark.restored_utc):
        raise StorageError(
            "the home was restored from a backup after this task was issued",
            why=f"it was issued at {task.issued_utc} and the home restored at {mark.restored_utc}",
            fix="ask again with a new task; if this one is new, set the clocks of both sides, or "
            "run `vitrael site restore --expect-journal N:HASH`",
        )
    forget_mark(home)


def _cut() -> StorageError:
    return StorageError(
        "the home is half restored",
        why="a restore was interrupted",
        fix="run the same `vitrael site restore FILE` again",
    )
