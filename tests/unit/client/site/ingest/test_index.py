"""The index can be thrown away, is looked at without a change, and forgets without a trace."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.factories.intake import files_below, take_in, write_brains
from vitrael.client.site import database
from vitrael.client.site.ingest.index import Index, Stored, peek_root
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.ingest.withdraw import find_patient, remove_patient
from vitrael.core.errors import StorageError, UsageError
from vitrael.core.rng import stream


@pytest.fixture
def home(home: Home, scans: Path) -> Home:
    take_in(scans, home)
    return home


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_damaged_index_is_told_with_a_remedy_that_works(
    kept: float, scans: Path, home: Home
) -> None:
    path = home.cohort("main").index
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)] or b"no database at all" * 100)
    with pytest.raises(StorageError, match="index of the cohort is damaged") as refusal:
        take_in(scans, home)
    with pytest.raises(StorageError, match="index of the cohort is damaged"):
        remove_patient(home, find_patient(home, "sub-01"))
    assert "remove index.sqlite" in refusal.value.fix
    path.unlink()
    report = take_in(scans, home)
    assert (report.items, report.anew) == (2, 2), "and whoever has withdrawn stays out"


def test_index_of_another_version_is_thrown_away_but_for_its_folder(
    scans: Path, home: Home, tmp_path: Path
) -> None:
    path = home.cohort("main").index
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("ALTER TABLE outcomes RENAME COLUMN stamp TO seal")
    write_brains(tmp_path / "others", range(5, 7))
    with pytest.raises(UsageError, match="another folder"):
        take_in(tmp_path / "others", home)
    report = take_in(scans, home)
    assert (report.anew, report.changed) == (3, False)
    assert take_in(scans, home).anew == 0


def test_root_is_told_without_a_change_on_the_disk(home: Home, tmp_path: Path) -> None:
    path = home.cohort("main").index
    with closing(Index(path)) as index:
        root = index.read_root()
    before = files_below(home.folder)
    assert root is not None
    assert peek_root(path) == root
    assert peek_root(tmp_path / "nowhere" / "index.sqlite") is None
    assert files_below(home.folder) == before
    assert not (tmp_path / "nowhere").exists()
    path.write_bytes(b"no database at all" * 100)
    assert peek_root(path) is None


def test_what_is_gone_from_the_folder_leaves_no_bytes_in_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = database._prepare

    def prepare(connection: Any, record: object) -> None:
        connection.execute("PRAGMA secure_delete = OFF")  # as some builds of SQLite begin
        real(connection, record)

    monkeypatch.setattr(database, "_prepare", prepare)
    path = tmp_path / "index.sqlite"
    with closing(Index(path)) as index:
        for name in ("stays", "goes"):
            picture = f"picture that {name}".encode() * 500
            index.save_outcome(name, Stored("stamp", "p-1", {"reason": "none"}, picture))
    assert b"picture that goes" in path.read_bytes()
    with closing(Index(path)) as index:
        index.forget_others(sources=["stays"], files=[])
    data = path.read_bytes()
    assert (b"picture that goes" in data, b"picture that stays" in data) == (False, True)


@pytest.mark.parametrize("is_guarded", [True, False])
def test_forgetting_writes_no_copy_of_the_others_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_guarded: bool
) -> None:
    """To make a file smaller, SQLite copies all of it: that copy must not lie in /var/tmp."""
    opened: set[str] = set()

    def look() -> int:
        for handle in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                opened.add(str(handle.readlink()))
        return 0

    real = database._prepare

    def watch(connection: Any, record: object) -> None:
        real(connection, record)
        connection.set_progress_handler(look, 1)  # with every step of every statement

    monkeypatch.setattr(database, "_prepare", watch)
    rng = stream(1, "thumbnails")
    with closing(Index(tmp_path / "index.sqlite")) as index:
        for number in range(40):
            stored = Stored("stamp", f"p-{number % 2}", {"reason": "none"}, rng.bytes(200_000))
            index.save_outcome(f"{number}", stored)
        if is_guarded:
            index.forget_subjects(["p-1"])
        else:
            with closing(index._engine.raw_connection()) as connection:
                connection.cursor().execute("VACUUM")
    temporary = {name for name in opened if "etilqs_" in name}
    assert (temporary == set()) is is_guarded
