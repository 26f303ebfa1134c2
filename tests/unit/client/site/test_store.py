"""What is finished is kept bit for bit; what is half written never counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from vitrael.client.site import store as store_module
from vitrael.client.site.store import Finished, Store
from vitrael.client.site.tables import Base
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import StorageError
from vitrael.core.weights import pack_tensors
from vitrael.privacy.journal import Kept

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home

RESULT = Finished(
    body={"curve_loss": [0.1, 0.2]},
    tensors={"codec": {"w": np.array([[1.5, -0.0]], np.float32)}},
    num_examples=7,
)


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store(home.settings.store, updates=home.settings.updates)
    yield opened
    opened.close()


def test_finished_update_comes_back_bit_for_bit(home: Home, store: Store) -> None:
    task = home.task()
    assert store.find_finished(task) is None
    store.finish(task, RESULT, now=home.clock())
    again = Store(home.settings.store, updates=home.settings.updates)
    found = again.find_finished(home.task())  # another nonce, the same work
    again.close()
    assert found is not None
    assert pack_tensors(found.tensors["codec"]) == pack_tensors(RESULT.tensors["codec"])
    assert (found.body, found.num_examples) == (RESULT.body, 7)


@pytest.mark.parametrize("changes", [{"round": 1}, {"stage": "teacher"}, {"inputs": {}}])
def test_other_work_finds_nothing(home: Home, store: Store, changes: dict[str, object]) -> None:
    store.finish(home.task(), RESULT, now=home.clock())
    assert store.find_finished(home.task(**changes)) is None


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"inputs": {}}, True),
        ({}, False),
        ({"inputs": {}, "round": 1}, False),
        ({"inputs": {}, "stage": "teacher"}, False),
        ({"inputs": {}, "roster": digest_bytes(b"other")}, False),
        ({"inputs": {}, "protocol": digest_bytes(b"other")}, False),
    ],
)
def test_other_answer_is_one_of_the_same_round_with_other_inputs(
    home: Home, store: Store, changes: dict[str, object], *, found: bool
) -> None:
    store.finish(home.task(), RESULT, now=home.clock())
    assert store.has_other_answer(home.task(**changes)) is found


def test_signature_is_one_for_a_protocol_whatever_the_roster(home: Home, store: Store) -> None:
    store.finish(home.task(stage="signing"), RESULT, now=home.clock())
    other = home.task(stage="signing", roster=digest_bytes(b"other"))
    assert store.has_other_answer(other)
    assert not store.has_other_answer(home.task(stage="signing"))


@pytest.mark.parametrize("consents", [0, 1, 2])
def test_update_of_the_first_version_keeps_its_round(home: Home, consents: int) -> None:
    config = Config()
    config.set_main_option("script_location", str(store_module.MIGRATIONS))
    config.set_main_option("path_separator", "os")
    task = home.task()
    engine = create_engine(f"sqlite:///{home.settings.store}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for roster in (task.roster, digest_bytes(b"other"))[:consents]:
            consent = text("INSERT INTO consents VALUES (:protocol, :roster, x'00', '{}', '')")
            connection.execute(consent, {"protocol": task.protocol, "roster": roster})
        connection.execute(
            text("INSERT INTO finished VALUES (:protocol, 'codec', 0, :input, 7, '{}', '{}', '')"),
            {"protocol": task.protocol, "input": task.input_digest},
        )
    engine.dispose()
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        assert store.find_finished(task) is not None
        assert store.has_other_answer(home.task(inputs={}))
        another = home.task(inputs={}, roster=digest_bytes(b"third"))
        assert store.has_other_answer(another) is (consents != 1)  # unknown: better no than twice


def test_kill_between_tensors_and_row_counts_nothing(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_transaction", killed)
        with pytest.raises(KeyboardInterrupt):
            store.finish(home.task(), RESULT, now=home.clock())
    assert list(home.settings.updates.iterdir())
    assert store.find_finished(home.task()) is None
    store.finish(home.task(), RESULT, now=home.clock())
    assert store.find_finished(home.task()) is not None


@pytest.mark.parametrize("data", [None, b"", b"changed"])
def test_damaged_update_is_told_and_not_made_anew(
    home: Home, store: Store, data: bytes | None
) -> None:
    store.finish(home.task(), RESULT, now=home.clock())
    (path,) = home.settings.updates.iterdir()
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(StorageError, match="damaged") as caught:
        store.find_finished(home.task())
    assert f"updates/{path.name}" in caught.value.sentence()
    assert str(home.path) not in caught.value.sentence()  # the sentence is sent


def test_full_disk_is_told_and_leaves_nothing_half_written(
    home: Home, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vitrael.core.digest.os.fsync", full)
        with pytest.raises(StorageError, match="no disk space left"):
            store.finish(home.task(), RESULT, now=home.clock())
    assert list(home.settings.updates.iterdir()) == []
    assert store.find_finished(home.task()) is None


def test_nonce_belongs_to_one_task(home: Home, store: Store) -> None:
    task = home.task()
    assert store.claim_nonce(task, now=home.clock())
    assert store.claim_nonce(task, now=home.clock())
    other = task.model_copy(update={"round": 1})
    assert not store.claim_nonce(other, now=home.clock())


def test_end_of_the_journal_is_remembered(home: Home, store: Store) -> None:
    assert store.read_head() is None
    for lines in (1, 2, 1):  # of two processes the one behind may come later
        store.keep_head(Kept(lines, digest_bytes(bytes(lines))))
    again = Store(home.settings.store, updates=home.settings.updates)
    assert again.read_head() == Kept(2, digest_bytes(bytes(2)))
    again.close()


def test_migrations_build_the_mapped_tables(home: Home, store: Store) -> None:
    engine = create_engine(f"sqlite:///{home.settings.store}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        connection.execute(text("ALTER TABLE finished ADD COLUMN planted INTEGER"))
        assert compare_metadata(context, Base.metadata) != []
    engine.dispose()


def test_store_of_a_newer_version_is_refused(home: Home, store: Store) -> None:
    store.close()
    engine = create_engine(f"sqlite:///{home.settings.store}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StorageError, match="newer version"):
        Store(home.settings.store, updates=home.settings.updates)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(StorageError, match="damaged"):
        Store(path, updates=tmp_path)


def test_migrations_lie_beside_the_store() -> None:
    assert (store_module.MIGRATIONS / "env.py").is_file()
