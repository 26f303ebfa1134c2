"""SQLite files of a site: one way to open them, and what they say when something is wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import NullPool

from vitrael.core.digest import canonical_json
from vitrael.core.errors import StorageError, storage_error

_PATIENCE_S: Final = 10.0
"""How long another process may hold a file."""


def open_engine(path: Path) -> Engine:
    """Return an engine on a file: write-ahead log, every commit on disk, one writer at a time."""
    engine = create_engine(f"sqlite:///{path}", json_serializer=_to_json)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def open_to_read(path: Path) -> Engine:
    """Return an engine that changes no row; on an empty database in memory where there is no file.

    SQLite makes ``-wal`` and ``-shm`` beside the file: who opened it without, as if nobody could
    write, would read half of what a steward commits at that moment.
    """
    if not path.exists():
        return create_engine("sqlite://", json_serializer=_to_json)
    address = f"{path.absolute().as_uri()}?mode=ro"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(address, uri=True, timeout=_PATIENCE_S)

    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


@contextmanager
def explain_storage(what: str, *, mend: str = "restore the file from a backup") -> Iterator[None]:
    """Turn what the disk and the database say into a StorageError with a remedy.

    ``mend`` is what to do about a file that is damaged.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error
    except OperationalError as error:
        raise StorageError(
            f"{what} cannot be read or written",
            why=str(error.orig),
            fix="see that it may be written, that the disk has room and no other program holds it",
        ) from error
    except DatabaseError as error:
        raise StorageError(f"{what} is damaged", why=str(error.orig), fix=mend) from error


def _to_json(value: object) -> str:
    return canonical_json(value).decode()


def _prepare(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's object
    connection.isolation_level = None  # transactions begin in _begin, also those of a migration
    patience = f"busy_timeout = {_PATIENCE_S * 1000:.0f}"
    wanted = (patience, "journal_mode = WAL", "synchronous = FULL")
    for pragma in (*wanted, "secure_delete = ON"):  # what is deleted is overwritten as well
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
