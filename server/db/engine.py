"""The database engine: opened, brought to the newest revision, refused if from the future.

A database that is already at ``HEAD`` opens without importing Alembic, which keeps the start of
every process short.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError, IntegrityError, OperationalError

from vitrael.core.digest import canonical_json
from vitrael.core.errors import StorageError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0002"
"""Newest revision in ``migrations/versions``; a test holds the two together."""

MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_MS = 10_000
_MIGRATION_LOCK = 7_405_113_902
"""Key of the PostgreSQL advisory lock under which one process migrates; an arbitrary constant."""


def open_database(where: Path | str) -> Engine:
    """Return an engine on a SQLite file or a database URL, with every migration applied.

    SQLite runs in WAL mode, waits up to 10 s for a lock, enforces foreign keys and syncs each
    commit. A write transaction takes its lock when it begins, so that what it read stays true.

    Raises StorageError when the file cannot be opened, is no database, or is newer than this
    version of Vitrael.
    """
    if isinstance(where, Path):
        where.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{where}"
    else:
        url = where
    engine = create_engine(url, json_serializer=_to_json)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    try:
        with explain_failures():
            _migrate(engine)
    except BaseException:
        engine.dispose()
        raise
    return engine


@contextmanager
def explain_failures() -> Iterator[None]:
    """Turn what the database driver raises into a StorageError that names cause and remedy."""
    try:
        yield
    except OperationalError as error:
        reason = str(error.orig)
        fix = "free disk space or end the process that holds the database, then start again"
        raise StorageError("the database cannot be used", why=reason, fix=fix) from error
    except IntegrityError as error:
        raise StorageError(
            "a record cannot be written",
            why="another process wrote the same one at the same moment",
            fix="let one coordinator at a time run the study",
        ) from error
    except DatabaseError as error:
        if "not a database" not in str(error.orig) and "malformed" not in str(error.orig):
            raise
        raise StorageError(
            "the database is damaged", why=str(error.orig), fix="restore it from a copy"
        ) from error


def alembic_config() -> Config:
    """Return Alembic's configuration for these migrations; there is no ini file."""
    from alembic.config import Config  # noqa: PLC0415 - only a database that must change needs it

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def _to_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return canonical_json(value).decode()


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own
        connection.isolation_level = None  # the driver must not begin transactions behind our back
        for pragma in (
            f"busy_timeout = {_BUSY_MS}",
            "journal_mode = WAL",
            "foreign_keys = ON",
            "synchronous = FULL",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _migrate(engine: Engine) -> None:
    with engine.connect().execution_options(read_only=True) as connection:
        if _revision(connection) == HEAD:
            return
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        found = _revision(connection)  # another process may have migrated while we waited
        if found != HEAD:
            _upgrade(connection, found)


def _upgrade(connection: Connection, found: str | None) -> None:
    from alembic import command  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = alembic_config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StorageError(
            f"the database has revision {found}, which this version of Vitrael does not know",
            why=f"a newer version wrote it; this one knows up to {HEAD}",
            fix="install that newer version, or use another home folder",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
