"""The database opens fast, at the newest revision, and refuses what it does not know."""

from __future__ import annotations

import io
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from vitrael.core.errors import StorageError
from vitrael.server.db import engine as engine_module
from vitrael.server.db.engine import HEAD, alembic_config, explain_failures, open_database
from vitrael.server.db.types import Base


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "server.sqlite"


def test_head_is_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


def test_models_and_migrations_agree(file: Path) -> None:
    with open_database(file).connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
        connection.rollback()
        # The control: a column that no migration makes is noticed.
        connection.exec_driver_sql("ALTER TABLE stages DROP COLUMN reason")
        differences = compare_metadata(context, Base.metadata)
        assert [kind for kind, *_ in differences] == ["add_column"]


def test_constraints_of_models_and_migrations_agree(file: Path) -> None:
    """Alembic compares neither checks nor the condition of a partial index."""
    migrated = open_database(file)
    built = sa.create_engine("sqlite://")
    Base.metadata.create_all(built)

    def facts(engine: sa.Engine) -> tuple[dict[str | None, str], dict[str | None, str]]:
        inspector = sa.inspect(engine)
        checks = {
            c["name"]: c["sqltext"]
            for table in Base.metadata.tables
            for c in inspector.get_check_constraints(table)
        }
        with engine.connect() as connection:
            query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
            indexes = dict(tuple(row) for row in connection.exec_driver_sql(query))
        return checks, indexes

    assert facts(migrated) == facts(built)
    assert len(facts(built)[0]) == 8


def test_migrations_write_postgresql() -> None:
    config = alembic_config()
    config.attributes["dialect"] = "postgresql"
    config.output_buffer = io.StringIO()
    command.upgrade(config, "head", sql=True)
    printed = config.output_buffer.getvalue()
    assert "details JSONB NOT NULL" in printed
    assert "TIMESTAMP WITH TIME ZONE" in printed
    assert "WHERE status <> 'failed'" in printed


def test_sqlite_runs_in_wal_with_foreign_keys_and_patience(file: Path) -> None:
    with open_database(file).connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "busy_timeout": 10_000,
        "synchronous": 2,
    }


def test_database_at_head_opens_without_alembic(file: Path) -> None:
    open_database(file).dispose()
    script = (
        "import sys; from pathlib import Path; from vitrael.server.db.engine import open_database;"
        "open_database(Path(sys.argv[1])); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(file)], check=False).returncode == 0
    # The control: a database that must be made imports it.
    new = str(file.with_name("new.sqlite"))
    assert subprocess.run([sys.executable, "-c", script, new], check=False).returncode == 1


def test_database_from_the_future_is_refused(file: Path) -> None:
    engine = open_database(file)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0099'")
    engine.dispose()
    with pytest.raises(StorageError, match=r"revision 0099.*newer version wrote it.*To do: inst"):
        open_database(file)


def test_file_that_is_no_database_is_refused(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"no database at all " * 100)
    with pytest.raises(StorageError, match="damaged"):
        open_database(file)


def test_locked_database_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_BUSY_MS", 1)
    file.parent.mkdir()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="database is locked"):
        open_database(file)
    other.execute("ROLLBACK")
    other.close()
    open_database(file)


def test_record_that_another_process_wrote_first_is_told(file: Path) -> None:
    engine = open_database(file)
    insert = "INSERT INTO alembic_version SELECT version_num FROM alembic_version"
    with (
        pytest.raises(StorageError, match="another process wrote the same one"),
        explain_failures(),
        engine.begin() as connection,
    ):
        connection.exec_driver_sql(insert)


def test_downgrade_undoes_the_upgrade(file: Path) -> None:
    engine = open_database(file)
    assert len(sa.inspect(engine).get_table_names()) > 1
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
