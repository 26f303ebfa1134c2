"""Whatever is changed, dropped, moved or cut in a journal is found, on both sides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.clock import FakeClock
from vitrael.core.digest import canonical_json, digest_json
from vitrael.core.errors import StorageError
from vitrael.privacy.journal import (
    BEGINNING,
    Entry,
    Journal,
    Kept,
    read_journal,
    verify_copy,
    verify_journal,
)
from vitrael.privacy.journal_line import Line, covers, parse_line, write_line

LINES = 7
DIGEST = "sha256:" + "0a" * 32

SITE = [
    Entry(event="consent", protocol=DIGEST, reason="until then"),
    *(
        Entry(event="sent", origin="north", to="coordinator", stage="codec", round=n, other=DIGEST)
        for n in range(5)
    ),
    Entry(event="refused", origin="north", reason="no consent covers it"),
]
COORDINATOR = [
    Entry(event="invite", to="north"),
    *(
        Entry(event=event, to="north", nonce=f"{n:032x}", bytes=7, other=DIGEST, other_lines=n)
        for n in range(3)
        for event in ("asked", "received")
    ),
]


def write(path: Path, entries: list[Entry]) -> list[bytes]:
    journal = Journal(path, clock=FakeClock())
    for entry in entries:
        journal.append(entry)
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module", params=["site", "coordinator"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[bytes]]:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    return path, write(path, {"site": SITE, "coordinator": COORDINATOR}[request.param])


def faults_of(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        return bool(verify_journal(path))
    except StorageError:
        return True


def test_untouched_journal_of_either_side_has_no_fault(whole: tuple[Path, list[bytes]]) -> None:
    path, lines = whole
    assert len(lines) == LINES
    assert not faults_of(path, b"".join(lines))


@given(place=st.integers(min_value=0), byte=st.integers(1, 255))
def test_any_changed_byte_is_found(whole: tuple[Path, list[bytes]], place: int, byte: int) -> None:
    path, lines = whole
    data = bytearray(b"".join(lines))
    data[place % len(data)] ^= byte
    assert faults_of(path, bytes(data))


@given(kept=st.sets(st.integers(0, LINES - 1), max_size=LINES - 1))
def test_any_dropped_lines_are_found(whole: tuple[Path, list[bytes]], kept: set[int]) -> None:
    path, lines = whole
    assert faults_of(path, b"".join(lines[n] for n in sorted(kept)))


@given(order=st.permutations(range(LINES)).filter(lambda order: order != list(range(LINES))))
def test_any_other_order_is_found(whole: tuple[Path, list[bytes]], order: list[int]) -> None:
    path, lines = whole
    assert faults_of(path, b"".join(lines[n] for n in order))


@given(place=st.integers(min_value=0))
def test_any_cut_is_found(whole: tuple[Path, list[bytes]], place: int) -> None:
    path, lines = whole
    data = b"".join(lines)
    assert faults_of(path, data[: place % len(data)])


@given(
    number=st.integers(0, LINES - 1),
    field=st.sampled_from(["bytes", "round", "other_lines", "reason", "utc", "event", "other"]),
)
def test_field_that_was_changed_with_its_own_hash_is_found(
    whole: tuple[Path, list[bytes]], number: int, field: str
) -> None:
    path, lines = whole
    document = json.loads(lines[number])
    others = {
        "event": "failed",
        "reason": "x",
        "utc": "2031-05-01T11:00:00.000+00:00",
        "other": "y",
    }
    document[field] = others.get(field, 9_999)
    line = Line.model_validate(document)
    changed = write_line(line.model_copy(update={"hash": line.chained()}))
    assert faults_of(path, b"".join([*lines[:number], changed, *lines[number + 1 :]]))


@pytest.mark.parametrize("place", range(LINES - 1))
def test_copy_without_head_still_shows_what_is_missing_in_its_midst(
    whole: tuple[Path, list[bytes]], place: int, tmp_path: Path
) -> None:
    _, lines = whole
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(b"".join(lines))
    assert verify_copy(copy) == []
    copy.write_bytes(b"".join([*lines[:place], *lines[place + 1 :]]))
    assert verify_copy(copy)
    copy.write_bytes(b"".join(lines[: place + 1]))
    assert verify_copy(copy) == []  # the other side alone tells that its end is missing


def first_format(path: Path, count: int) -> list[dict[str, Any]]:
    """Write lines as version 0.1.0 did, before they bore a format."""
    previous, documents = str(BEGINNING), []
    for number in range(1, count + 1):
        document: dict[str, Any] = {
            "event": "sent",
            "to": "coordinator",
            "protocol": DIGEST,
            "stage": "codec",
            "round": number,
            "nonce": f"{number:032x}",
            "bytes": 100,
            "fields": ["curve_loss"],
            "attachments": {"codec": DIGEST},
            "reason": "",
            "line": number,
            "utc": "2031-05-01T12:00:00.000+00:00",
            "previous": previous,
        }
        previous = str(digest_json(document))
        documents.append({**document, "hash": previous})
    data = b"".join(canonical_json(document) + b"\n" for document in documents)
    path.write_bytes(data)
    head = {"lines": count, "bytes": len(data), "hash": previous}
    path.with_suffix(".head.json").write_bytes(canonical_json(head) + b"\n")
    return documents


def test_journal_of_the_first_format_is_whole_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first_format(path, 3)
    assert verify_journal(path) == []
    Journal(path, clock=FakeClock()).append(SITE[1])
    assert verify_journal(path) == []
    assert [line.format for line in read_journal(path)] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: {**d, "bytes": 1},
        lambda d: {**d, "format": 1},
        lambda d: {**d, "format": 2},
        lambda d: {**d, "other": DIGEST},
        lambda d: {key: value for key, value in d.items() if key != "to"},
    ],
    ids=["value", "named format", "other format", "new field", "missing field"],
)
def test_changed_line_of_the_first_format_is_found(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    path = tmp_path / "journal.jsonl"
    documents = first_format(path, 3)
    documents[1] = spoil(documents[1])
    path.write_bytes(b"".join(canonical_json(document) + b"\n" for document in documents))
    assert verify_journal(path)[0].line == 2


def test_line_of_a_newer_format_is_named_and_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    documents = first_format(path, 2)
    documents[1]["format"] = 3
    path.write_bytes(b"".join(canonical_json(document) + b"\n" for document in documents))
    (fault,) = verify_journal(path)
    assert "a newer version of Vitrael wrote" in fault.what


def test_only_one_form_of_a_line_is_a_line(whole: tuple[Path, list[bytes]]) -> None:
    _, lines = whole
    assert parse_line(lines[0]) is not None
    pretty = json.dumps(json.loads(lines[0])).encode() + b"\n"
    for other in (pretty, lines[0][:-1], b"[]\n", b"[" * 100_000 + b"\n", b"\xff\n"):
        assert parse_line(other) is None


def test_head_is_that_of_the_last_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", clock=FakeClock())
    assert journal.head() == Kept(0, BEGINNING)
    for entry in SITE:
        line = journal.append(entry)
        assert journal.head() == Kept(line.line, line.hash)


REPLY = SITE[1].model_copy(update={"nonce": "7f" * 16})


def test_line_is_known_again_once_a_reply_stands_behind_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", clock=FakeClock())
    heads = [journal.head()]
    for entry in (SITE[0], SITE[-1]):
        journal.append(entry)
        heads.append(journal.head())
    assert not any(journal.has_answered(head) for head in heads)
    last = journal.append(REPLY)
    assert all(journal.has_answered(head) for head in heads)
    assert not journal.has_answered(journal.head())
    assert not journal.has_answered(Kept(last.line + 1, last.hash))
    others = [Kept(head.lines - 1, head.hash) for head in heads[1:]]
    assert not any(journal.has_answered(head) for head in others)


def test_reply_behind_a_restore_is_not_the_one_that_was_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", clock=FakeClock())
    journal.append(SITE[0])
    first = journal.head()
    journal.append(REPLY)
    forgotten = journal.head()
    for entry in (Entry(event="paused"), Entry(event="restored"), REPLY):
        journal.append(entry)
        assert journal.has_answered(first)
        assert not journal.has_answered(forgotten)
    restored = Kept(4, list(read_journal(tmp_path / "journal.jsonl"))[3].hash)
    assert journal.has_answered(restored)


def test_appending_and_looking_back_read_no_more_of_a_long_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, clock=FakeClock())
    counted: list[int] = []

    def count(data: bytes) -> Line | None:
        counted.append(len(data))
        return parse_line(data)

    monkeypatch.setattr("vitrael.privacy.journal.parse_line", count)
    costs = []
    for _ in range(300):
        journal.append(SITE[1])
        last = journal.head()
        counted.clear()
        journal.append(REPLY)
        assert journal.has_answered(last)
        costs.append(len(counted))
    assert set(costs) == {2}  # the line itself and the one after it


def test_lines_are_chosen_by_protocol_and_day(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", clock=FakeClock())
    line = journal.append(SITE[0])
    assert covers(line)
    assert covers(line, protocol=DIGEST, since="2031-05-01")
    assert covers(line, protocol="0a0a", since="2031-04-30")
    assert not covers(line, protocol="0b")
    assert not covers(line, since="2031-05-02")
