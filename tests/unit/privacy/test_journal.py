"""The journal is whole or says where it is not, and nothing leaves without its line."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.clock import FakeClock
from vitrael.core.errors import StorageError
from vitrael.privacy.journal import (
    Entry,
    Journal,
    Kept,
    find_loss,
    read_journal,
    tell_faults,
    verify_journal,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(tmp_path: Path, clock: FakeClock) -> Path:
    path = tmp_path / "journal.jsonl"
    for number in range(4):
        clock.advance(minutes=1)
        entry = Entry(event="sent", to="coordinator", stage="codec", round=number, bytes=100)
        Journal(path, clock=clock).append(entry)
    return path


class FakeWitness:
    """Remembers in memory."""

    head: Kept | None = None

    def read_head(self) -> Kept | None:
        return self.head

    def keep_head(self, head: Kept) -> None:
        self.head = head


@pytest.fixture
def witness(journal: Path, clock: FakeClock) -> FakeWitness:
    """Return the witness of the last of five lines."""
    witness = FakeWitness()
    Journal(journal, clock=clock, witness=witness).append(Entry(event="sent", round=4))
    assert witness.head is not None
    assert witness.head.lines == 5
    return witness


def remove(path: Path) -> None:
    path.unlink()
    path.with_suffix(".head.json").unlink()


def begin_anew(path: Path, clock: FakeClock) -> None:
    remove(path)
    Journal(path, clock=clock).append(Entry(event="sent"))


def rewrite(path: Path, clock: FakeClock) -> None:
    remove(path)
    for number in range(5):
        Journal(path, clock=clock).append(Entry(event="sent", round=number, bytes=1))


@pytest.mark.parametrize(
    ("tamper", "line", "what"),
    [
        (lambda path, _: remove(path), 1, "removed: 5 lines"),
        (begin_anew, 2, "4 lines at the end are missing"),
        (rewrite, 5, "not the one remembered"),
    ],
)
def test_journal_that_was_removed_is_found_by_its_witness(
    journal: Path,
    witness: FakeWitness,
    clock: FakeClock,
    tamper: Callable[[Path, FakeClock], None],
    line: int,
    what: str,
) -> None:
    assert verify_journal(journal, kept=witness.head) == []
    tamper(journal, clock)
    assert verify_journal(journal) == []  # alone it passes for whole
    (fault,) = verify_journal(journal, kept=witness.head)
    assert (fault.line, what in fault.what) == (line, True)
    assert find_loss(journal, kept=witness.head) == [fault]
    with pytest.raises(StorageError, match="not whole"):
        Journal(journal, clock=clock, witness=witness).append(Entry(event="sent"))


def test_line_that_no_witness_could_keep_any_more_is_no_fault(
    journal: Path, witness: FakeWitness, clock: FakeClock
) -> None:
    before = witness.head
    Journal(journal, clock=clock, witness=witness).append(Entry(event="sent"))
    witness.head = before  # killed between the line and the memory of it
    assert verify_journal(journal, kept=before) == []
    Journal(journal, clock=clock, witness=witness).append(Entry(event="sent"))
    assert witness.head is not None
    assert witness.head.lines == 7


def test_whole_journal_has_no_fault(journal: Path) -> None:
    assert verify_journal(journal) == []
    lines = list(read_journal(journal))
    assert [line.round for line in lines] == [0, 1, 2, 3]
    assert lines[0].utc == "2031-05-01T12:01:00.000+00:00"
    assert [line.previous for line in lines[1:]] == [line.hash for line in lines[:-1]]


def test_missing_journal_is_empty(tmp_path: Path) -> None:
    assert verify_journal(tmp_path / "journal.jsonl") == []
    assert list(read_journal(tmp_path / "journal.jsonl")) == []


def changed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"bytes":100', b'"bytes":101'), *lines[2:]]


def changed_with_its_hash(lines: list[bytes]) -> list[bytes]:
    document = json.loads(lines[1])
    document["bytes"] = 1
    from vitrael.privacy.journal import Line

    line = Line.model_validate(document)
    document["hash"] = line.chained()
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return [lines[0], data, *lines[2:]]


def dropped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], *lines[2:]]


def reordered(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], lines[3]]


def doubled(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1], lines[1], *lines[2:]]


def first_dropped(lines: list[bytes]) -> list[bytes]:
    return lines[1:]


def last_dropped(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def all_dropped(lines: list[bytes]) -> list[bytes]:
    return lines[:0]


def cut(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1][:-10]]


@pytest.mark.parametrize(
    ("tamper", "line"),
    [
        (changed, 2),
        (changed_with_its_hash, 3),
        (dropped, 2),
        (reordered, 2),
        (doubled, 3),
        (first_dropped, 1),
        (last_dropped, 4),
        (all_dropped, 1),
        (cut, 4),
    ],
)
def test_tampered_journal_is_found(
    journal: Path, tamper: Callable[[list[bytes]], list[bytes]], line: int
) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(tamper(lines)))
    assert verify_journal(journal)[0].line == line


def keep_old_head(path: Path, clock: FakeClock) -> None:
    head = path.with_suffix(".head.json")
    before = head.read_bytes()
    for number in range(2):
        Journal(path, clock=clock).append(Entry(event="sent", round=number))
    head.write_bytes(before)


@pytest.mark.parametrize(
    "tamper",
    [
        *(changed, changed_with_its_hash, dropped, reordered, doubled, first_dropped),
        *(last_dropped, all_dropped, cut, remove, begin_anew, rewrite, keep_old_head),
    ],
)
def test_whoever_finds_a_damaged_journal_says_the_same_and_the_remedy(
    journal: Path, witness: FakeWitness, clock: FakeClock, tamper: Callable[..., list[bytes]]
) -> None:
    kept = witness.head
    keeper = Journal(journal, clock=clock, witness=witness)
    keeper.demand_whole()
    if tamper in {remove, begin_anew, rewrite, keep_old_head}:
        tamper(*(journal, clock)[: 1 if tamper is remove else 2])
    else:
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(tamper(lines)))
    told = tell_faults(verify_journal(journal, kept=kept)).sentence()
    assert "To do: restore it from a backup while nothing runs" in told
    for _ in range(2):  # the first look changes nothing
        with pytest.raises(StorageError) as caught:
            keeper.demand_whole()
        assert caught.value.sentence() == told
        assert tell_faults(verify_journal(journal, kept=kept)).sentence() == told


def test_unfinished_line_is_no_fault_and_is_not_shown(journal: Path, clock: FakeClock) -> None:
    with journal.open("ab") as file:
        file.write(b'{"bytes":3,"ev')
    assert verify_journal(journal) == []
    assert [line.round for line in read_journal(journal)] == [0, 1, 2, 3]
    Journal(journal, clock=clock).demand_whole()
    assert [line.event for line in read_journal(journal)][4:] == ["repaired"]


def test_removed_file_and_removed_head_are_found(journal: Path) -> None:
    data = journal.read_bytes()
    journal.unlink()
    assert verify_journal(journal)
    journal.write_bytes(data)
    journal.with_suffix(".head.json").unlink()
    assert verify_journal(journal)


@pytest.mark.parametrize("tamper", [last_dropped, all_dropped, cut])
def test_nothing_is_added_to_a_shortened_journal(
    journal: Path, clock: FakeClock, tamper: Callable[[list[bytes]], list[bytes]]
) -> None:
    journal.write_bytes(b"".join(tamper(journal.read_bytes().splitlines(keepends=True))))
    with pytest.raises(StorageError, match="not whole"):
        Journal(journal, clock=clock).append(Entry(event="sent"))


def test_journal_without_its_head_is_not_begun_anew(journal: Path, clock: FakeClock) -> None:
    journal.with_suffix(".head.json").unlink()
    with pytest.raises(StorageError, match=r"journal\.head\.json is missing"):
        Journal(journal, clock=clock).append(Entry(event="sent"))


def test_line_that_a_killed_process_left_unfinished_is_repaired(
    journal: Path, clock: FakeClock
) -> None:
    with journal.open("ab") as file:
        file.write(b'{"bytes":3,"ev')
    Journal(journal, clock=clock).append(Entry(event="sent"))
    assert verify_journal(journal) == []
    assert [line.event for line in read_journal(journal)][4:] == ["repaired", "sent"]


def test_line_whose_head_a_killed_process_did_not_write_is_kept(
    journal: Path, clock: FakeClock
) -> None:
    head = journal.with_suffix(".head.json")
    before = head.read_bytes()
    Journal(journal, clock=clock).append(Entry(event="sent", round=4))
    head.write_bytes(before)
    assert verify_journal(journal) == []
    Journal(journal, clock=clock).append(Entry(event="sent", round=5))
    assert verify_journal(journal) == []
    assert [line.round for line in read_journal(journal)] == [0, 1, 2, 3, 4, 5]


def test_full_disk_is_told_and_leaves_no_half_line(
    journal: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    whole = journal.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("vitrael.privacy.journal.os.fsync", full)
        with pytest.raises(StorageError, match="no disk space left"):
            Journal(journal, clock=clock).append(Entry(event="sent"))
    assert journal.read_bytes() == whole
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, hard))  # a part of a line fits
    try:
        with pytest.raises(StorageError, match="no disk space left"):
            Journal(journal, clock=clock).append(Entry(event="sent"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.read_bytes() == whole
    Journal(journal, clock=clock).append(Entry(event="sent"))
    assert verify_journal(journal) == []
    assert [line.event for line in read_journal(journal)] == ["sent"] * 5  # and none repaired


def test_last_line_whose_hash_is_not_its_own_is_not_taken_over(
    journal: Path, clock: FakeClock
) -> None:
    head = journal.with_suffix(".head.json").read_bytes()
    Journal(journal, clock=clock).append(Entry(event="sent", bytes=100))
    journal.with_suffix(".head.json").write_bytes(head)  # killed between line and head
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1].replace(b'"bytes":100', b'"bytes":101'))
    with pytest.raises(StorageError, match="was changed"):
        Journal(journal, clock=clock).append(Entry(event="sent"))
    journal.write_bytes(whole)  # the control
    assert Journal(journal, clock=clock).append(Entry(event="sent")).line == 6


def test_witness_is_told_when_the_journal_is_free_again(journal: Path, clock: FakeClock) -> None:
    class Waiting(FakeWitness):
        def keep_head(self, head: Kept) -> None:
            other = Journal(journal, clock=clock, patience_s=0.0)
            assert other.append(Entry(event="paused")).line == head.lines + 1

    Journal(journal, clock=clock, witness=Waiting()).append(Entry(event="sent"))
    assert verify_journal(journal) == []
