"""A journal that another process holds is waited for, but not without end, and its holder named."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.clock import FakeClock
from vitrael.core.errors import StorageError
from vitrael.privacy import journal_lock
from vitrael.privacy.journal import Entry, Journal, verify_copy, verify_journal
from vitrael.privacy.journal_lock import lock_in_time

ENTRY = Entry(event="sent")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    Journal(path, clock=FakeClock()).append(ENTRY)
    return path


@pytest.fixture
def held(path: Path) -> Iterator[Path]:
    """Hold the journal as a process that is stuck does: an own open file has a lock of its own."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path


@pytest.mark.parametrize("act", ["append", "head", "demand_whole"])
def test_journal_that_is_held_is_refused_after_a_bounded_wait(held: Path, act: str) -> None:
    journal = Journal(held, clock=FakeClock(), patience_s=0)
    with pytest.raises(StorageError, match="the journal is locked") as caught:
        journal.append(ENTRY) if act == "append" else getattr(journal, act)()
    assert f"process {os.getpid()}" in caught.value.why
    assert len(held.read_bytes().splitlines()) == 1


def test_reader_of_a_journal_that_is_held_is_refused_too(held: Path) -> None:
    for verify in (verify_journal, verify_copy):
        with pytest.raises(StorageError, match="the journal is locked"):
            verify(held, patience_s=0)


def test_journal_that_is_let_go_in_time_is_written(path: Path) -> None:
    now_s = [0.0]
    with path.open("rb") as holder, path.open("rb") as file:
        fcntl.flock(holder, fcntl.LOCK_EX)

        def sleep(seconds: float) -> None:
            now_s[0] += seconds
            if now_s[0] > 1:
                fcntl.flock(holder, fcntl.LOCK_UN)

        lock_in_time(
            file.fileno(), fcntl.LOCK_EX, patience_s=5, clock=lambda: now_s[0], sleep=sleep
        )
    assert 1 < now_s[0] < 5


def test_wait_ends_when_patience_does(held: Path) -> None:
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    with held.open("rb") as file, pytest.raises(StorageError, match="has held it for 5 s"):
        lock_in_time(
            file.fileno(), fcntl.LOCK_EX, patience_s=5, clock=lambda: now_s[0], sleep=sleep
        )
    assert now_s[0] == pytest.approx(5, abs=0.1)


def test_holder_that_the_system_does_not_tell_is_another_process(
    held: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for table in (tmp_path / "none", tmp_path / "empty"):
        monkeypatch.setattr(journal_lock, "_LOCKS", table)
        with pytest.raises(StorageError) as caught:
            Journal(held, clock=FakeClock(), patience_s=0).head()
        assert "another process" in caught.value.why
        (tmp_path / "empty").write_text("1: POSIX  ADVISORY  WRITE 1 08:01:1 0 EOF\n")
