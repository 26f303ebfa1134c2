"""Who only reads changes no table: the steward of another version may be at work on them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from alembic.config import Config
from click.testing import CliRunner
from sqlalchemy import create_engine, text

from vitrael.client.site import store as store_module
from vitrael.client.site.checks import check_consents, check_journal
from vitrael.client.site.cli import site
from vitrael.client.site.store import Store
from vitrael.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.site.conftest import Home


def call(home: Home, *words: str) -> Any:
    return CliRunner().invoke(site, [*words, "--home", str(home.path)], catch_exceptions=False)


def dry_consent(home: Home) -> Any:
    study = home.path.parent / "study.toml"
    return call(home, "consent", str(study), "--dry-run")


READERS: dict[str, Callable[[Home], Any]] = {
    "journal": lambda home: call(home, "journal"),
    "consents": lambda home: call(home, "consents"),
    "held": lambda home: call(home, "held", "--all"),
    "consent --dry-run": dry_consent,
    "doctor, journal": lambda home: check_journal(home.settings),
    "doctor, consents": lambda home: check_consents(home.settings, now=home.clock()),
}


def revision(path: Path, *, change: str = "") -> str:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        if change:
            connection.execute(
                text("UPDATE alembic_version SET version_num = :new"), {"new": change}
            )
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    engine.dispose()
    return str(found)


def downgrade(path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(store_module.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
    engine.dispose()


def test_readers_leave_an_older_store_as_it_is_and_say_so(home: Home) -> None:
    home.consent()
    downgrade(home.settings.store)
    for read in READERS.values():
        with pytest.raises(StorageError, match="store is of an older version"):
            read(home)
        assert revision(home.settings.store) == "0003"
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        assert len(store.list_consents()) == 1  # the control: who writes brings it up to date
    for read in READERS.values():
        read(home)


def test_readers_refuse_a_newer_store(home: Home) -> None:
    home.consent()
    revision(home.settings.store, change="9999")
    for read in READERS.values():
        with pytest.raises(StorageError, match="store is of a newer version"):
            read(home)


def test_readers_make_no_store(home: Home) -> None:
    for read in READERS.values():
        read(home)
    assert not home.settings.store.exists()


def test_store_that_is_read_takes_no_change(home: Home) -> None:
    home.consent()
    settings = home.settings
    with (
        closing(Store(settings.store, updates=settings.updates, read_only=True)) as reader,
        closing(Store(settings.store, updates=settings.updates)) as writer,
    ):
        task = home.task()
        with pytest.raises(StorageError, match="cannot be read or written"):
            reader.claim_nonce(task, now=home.clock())
        assert writer.claim_nonce(task, now=home.clock())
        assert len(reader.list_consents()) == len(writer.list_consents()) == 1


def test_path_with_signs_of_an_address_is_read(home: Home, tmp_path: Path) -> None:
    home.consent()
    folder = tmp_path / "a?b#c%20d"
    folder.mkdir()
    moved = home.settings.store.rename(folder / "store.sqlite")
    with closing(Store(moved, updates=home.settings.updates, read_only=True)) as store:
        assert len(store.list_consents()) == 1
