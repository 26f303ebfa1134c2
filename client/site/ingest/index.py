"""The index of a cohort: what was read before, so that a second intake reads what is new alone.

One SQLite file beside the shards. It holds keyed codes instead of paths and identifiers, and can
be made again from the files at any time: one of another version is thrown away, but for the code of
the folder that the cohort comes from.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import JSON, BigInteger, String, delete, select, text
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from vitrael.client.site.database import explain_storage, open_engine
from vitrael.client.site.ingest.interrupts import uninterrupted
from vitrael.core.data.cache import make_private_folder
from vitrael.core.digest import Digest

VERSION: Final = 3
"""Of the tables and of what is read from a file; another one makes everything be read again."""

# What interrupts a transaction is told once, by the command line, and not also as a traceback.
logging.getLogger("sqlalchemy.pool").addHandler(logging.NullHandler())

_CODE = String(64)
_CHUNK = 500


class Base(DeclarativeBase):
    """Parent of the index's tables."""

    type_annotation_map = {dict[str, Any]: JSON}  # noqa: RUF012 - SQLAlchemy's way


class HeaderRow(Base):
    """The header of one file, as it was when it had this size and time."""

    __tablename__ = "headers"

    file: Mapped[str] = mapped_column(_CODE, primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    header: Mapped[dict[str, Any]]


class OutcomeRow(Base):
    """What became of one source, whose files and recipe the stamp names."""

    __tablename__ = "outcomes"

    source: Mapped[str] = mapped_column(_CODE, primary_key=True)
    stamp: Mapped[str] = mapped_column(_CODE)
    subject: Mapped[str] = mapped_column(String(64), index=True)
    outcome: Mapped[dict[str, Any]]
    thumbnail: Mapped[bytes]


class RootRow(Base):
    """The folder that the cohort comes from, by its code."""

    __tablename__ = "root"

    id: Mapped[int] = mapped_column(primary_key=True)
    folder: Mapped[str] = mapped_column(_CODE)


@dataclass(frozen=True, slots=True, repr=False)
class Stored:
    """An outcome as it lies in the index."""

    stamp: str
    subject: str
    outcome: Mapping[str, Any]
    thumbnail: bytes


def peek_root(path: Path) -> str | None:
    """Return what ``Index.read_root`` does as far as can be told without a change on the disk."""
    address = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as connection:
            row = connection.execute("SELECT folder FROM root").fetchone()
    except sqlite3.Error:  # missing, damaged, or changed at this moment
        return None
    return None if row is None else str(row[0])


def _explained() -> AbstractContextManager[None]:
    return explain_storage(
        "the index of the cohort",
        mend="remove index.sqlite, index.sqlite-wal and index.sqlite-shm from the cohort's folder: "
        "the next intake reads everything again; mind that it is of the same folder",
    )


class Index:
    """Headers by file and outcomes by source."""

    def __init__(self, path: Path) -> None:
        """Open the index, or begin a new one; StorageError when the disk does not allow it."""
        with _explained():
            make_private_folder(path.parent)
            path.touch(mode=0o600)  # the files that SQLite puts beside it get the same rights
            self._engine = open_engine(path)
            with self._engine.begin() as connection:
                known = connection.execute(text("PRAGMA user_version")).scalar_one()
                if known == VERSION:
                    return
                if known:  # which folder it was cannot be read again from the files
                    tables = Base.metadata.tables
                    again = [tables[name] for name in tables if name != RootRow.__tablename__]
                    Base.metadata.drop_all(connection, tables=again)
                Base.metadata.create_all(connection)
                connection.execute(text(f"PRAGMA user_version = {VERSION:d}"))

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def read_root(self) -> str | None:
        """Return the code of the folder that the cohort comes from, if it was ever told."""
        with self._transaction() as session:
            row = session.get(RootRow, 1)
            return None if row is None else row.folder

    def save_root(self, folder: str) -> None:
        """Remember the folder that the cohort comes from."""
        with self._transaction() as session:
            session.merge(RootRow(id=1, folder=folder))

    def find_headers(self, files: Sequence[str]) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
        """Yield code, size, time and header of those files that are known, a few at a time."""
        row = select(HeaderRow.file, HeaderRow.size, HeaderRow.mtime_ns, HeaderRow.header)
        with self._transaction() as session:
            for at in range(0, len(files), _CHUNK):
                some = files[at : at + _CHUNK]
                for found in session.execute(row.where(HeaderRow.file.in_(some))):
                    yield found.file, found.size, found.mtime_ns, found.header

    @uninterrupted()
    def save_headers(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep headers: ``file``, ``size``, ``mtime_ns`` and ``header`` of each."""
        values = [dict(row) for row in rows]
        if not values:
            return
        with self._transaction() as session:
            statement = insert(HeaderRow)
            update = {name: statement.excluded[name] for name in ("size", "mtime_ns", "header")}
            session.execute(
                statement.on_conflict_do_update(index_elements=["file"], set_=update), values
            )

    def find_outcomes(self, sources: Sequence[str]) -> dict[str, Stored]:
        """Return what became of some sources, by their codes."""
        found: dict[str, Stored] = {}
        with self._transaction() as session:
            for at in range(0, len(sources), _CHUNK):
                some = sources[at : at + _CHUNK]
                for row in session.scalars(select(OutcomeRow).where(OutcomeRow.source.in_(some))):
                    kept = Stored(row.stamp, row.subject, row.outcome, row.thumbnail)
                    found[row.source] = kept
        return found

    @uninterrupted()
    def save_outcome(self, source: str, stored: Stored) -> None:
        """Keep what became of a source; from this moment it counts as done."""
        with self._transaction() as session:
            session.merge(
                OutcomeRow(
                    source=source,
                    stamp=stored.stamp,
                    subject=stored.subject,
                    outcome=dict(stored.outcome),
                    thumbnail=stored.thumbnail,
                )
            )

    def find_digests(self) -> set[Digest]:
        """Return the shards that were written for any source, also those of no item."""
        digest = OutcomeRow.outcome["digest"].as_string()
        with self._transaction() as session:
            rows = session.scalars(select(digest))
            return {Digest(row) for row in rows if row is not None}

    def find_subjects(self, subjects: Collection[str]) -> set[str]:
        """Return of which of some patients anything is held."""
        named = HeaderRow.header["subject"].as_string()
        with self._transaction() as session:
            found = session.scalars(
                select(OutcomeRow.subject).where(OutcomeRow.subject.in_(subjects))
            )
            return {*found, *session.scalars(select(named).where(named.in_(subjects)))}

    def forget_others(self, *, sources: Iterable[str], files: Iterable[str]) -> None:
        """Drop all outcomes and headers but those of sources and files that are there still."""
        with self._transaction() as session:
            for column, wanted in ((OutcomeRow.source, sources), (HeaderRow.file, files)):
                gone = sorted(set(session.scalars(select(column))).difference(wanted))
                for at in range(0, len(gone), _CHUNK):
                    some = gone[at : at + _CHUNK]
                    session.execute(delete(column.class_).where(column.in_(some)))

    def forget_subjects(self, subjects: Collection[str]) -> None:
        """Drop everything of some patients, and let the file itself forget it."""
        with self._transaction() as session:
            session.execute(delete(OutcomeRow).where(OutcomeRow.subject.in_(subjects)))
            own = HeaderRow.header["subject"].as_string().in_(subjects)
            session.execute(delete(HeaderRow).where(own))
        with _explained(), closing(self._engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute("PRAGMA temp_store = MEMORY")  # the copy on the way is no file elsewhere
            cursor.execute("VACUUM")  # deleted rows would leave their bytes in the file
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with _explained(), Session(self._engine) as session, session.begin():
            yield session
