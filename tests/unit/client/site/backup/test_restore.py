"""What was backed up comes back whole, and never an older state than is known."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.unit.client.site.conftest import Home
from vitrael.client.site.backup import restore as restoring
from vitrael.client.site.backup.contents import Manifest, read_counter
from vitrael.client.site.backup.heads import parse_expected
from vitrael.client.site.backup.restore import Outcome, restore_backup
from vitrael.client.site.backup.restored import confirm_restore, read_mark
from vitrael.client.site.backup.save import save_backup
from vitrael.client.site.settings import load_settings
from vitrael.client.site.steward import Steward
from vitrael.client.site.store import Store
from vitrael.core.errors import AuthError, ProcessError, StorageError, UsageError
from vitrael.core.messages import Head, Task
from vitrael.privacy.journal import Kept, Line, read_journal, verify_journal

PHRASE = b"five words are enough here"
COST = 1 << 10


def back_up(home: Home, file: Path) -> Manifest:
    return save_backup(home.settings, file, passphrase=PHRASE, clock=home.clock, cost=COST)


def restore(
    home: Home,
    file: Path,
    to: Path,
    *,
    passphrase: bytes = PHRASE,
    expected: Kept | None = None,
    dry_run: bool = False,
) -> Outcome:
    return restore_backup(
        file, to, passphrase=passphrase, expected=expected, clock=home.clock, dry_run=dry_run
    )


def answer(home: Home, steward: Steward, task: Task) -> Head:
    """Return what the coordinator is told of the site's journal in the reply to a task."""
    reply, _ = home.open(steward.answer(home.parcel(task, {})))
    assert reply.nonce == task.nonce
    assert reply.journal is not None
    return reply.journal


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def told(home: Home) -> Head:
    """What the coordinator knows of the journal of a home that has answered one task."""
    home.consent()
    steward = Steward(home.settings, clock=home.clock)
    try:
        return answer(home, steward, home.task({}, stage="consent"))
    finally:
        steward.close()


@pytest.fixture
def backup(home: Home, told: Head, tmp_path: Path) -> Path:
    assert told.lines == 1
    (home.path / "withdrawn.json").write_text('{"subjects":["a1"]}')
    (home.path / "updates").mkdir()
    (home.path / "updates" / "0a.safetensors").write_bytes(bytes(3000))
    back_up(home, tmp_path / "b")
    return tmp_path / "b"


def test_restored_home_is_the_same_home(home: Home, backup: Path, tmp_path: Path) -> None:
    restore(home, backup, tmp_path / "new")
    restored = load_settings(tmp_path / "new")
    assert restored.load_keys().public == home.keys.public
    for name in ("keys/split.key", "roster.json", "site.toml", "updates/0a.safetensors"):
        assert (tmp_path / "new" / name).read_bytes() == (home.path / name).read_bytes()
    store = Store(restored.store, updates=restored.updates)
    assert list(store.find_consents(home.study.protocol.digest))
    lines = list(read_journal(restored.journal))
    assert [line.event for line in lines] == ["consent", "sent", "restored"]
    assert lines[:2] == home.lines()
    assert verify_journal(restored.journal, kept=store.read_head()) == []
    store.close()
    assert {p.stat().st_mode & 0o077 for p in (tmp_path / "new" / "keys").iterdir()} == {0}


@pytest.mark.parametrize("made", [False, True])
def test_refused_backup_leaves_nothing(
    home: Home, backup: Path, tmp_path: Path, *, made: bool
) -> None:
    new = tmp_path / "new"
    if made:
        new.mkdir()
    data = backup.read_bytes()
    changed = bytearray(data)
    changed[-40] ^= 1
    damaged = {"cut": data[:-17], "changed": bytes(changed), "other": b"text", "none": b""}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((StorageError, AuthError)):
            restore(home, tmp_path / name, new)
    with pytest.raises(AuthError, match="the passphrase is wrong"):
        restore(home, backup, new, passphrase=b"another passphrase")
    with pytest.raises(UsageError, match="cannot be read"):
        restore(home, tmp_path / "missing", new)
    restore(home, backup, new, dry_run=True)
    assert new.exists() == made
    assert not made or list(new.iterdir()) == []
    restore(home, backup, new)


def test_older_backup_than_the_home_knows_is_refused(
    home: Home, backup: Path, tmp_path: Path
) -> None:
    home.consent(days=30)  # one more line
    before = files_of(home.path)
    with pytest.raises(StorageError, match=r"has 2 lines, and the home's has 3") as caught:
        restore(home, backup, home.path)
    for way_out in ("join in a new home", "sites rotate", "keys/split.key, withdrawn.json"):
        assert way_out in caught.value.fix
    after = files_of(home.path)
    assert {name: after[name] for name in before} == before
    back_up(home, tmp_path / "newer")
    restore(home, tmp_path / "newer", home.path)


@pytest.mark.parametrize("lost", ["journal.jsonl", "store.sqlite"])
def test_home_that_has_lost_some_still_knows(home: Home, backup: Path, lost: str) -> None:
    home.consent(days=30)
    for path in home.path.glob(f"{lost}*"):
        path.unlink()
    with pytest.raises(StorageError, match="older than what is known"):
        restore(home, backup, home.path)


def test_newer_backup_is_known_by_its_number(home: Home, backup: Path, tmp_path: Path) -> None:
    back_up(home, tmp_path / "newer")
    for name in ("journal.jsonl", "journal.head.json"):
        (home.path / name).unlink()
    for path in home.path.glob("store.sqlite*"):
        path.unlink()
    with pytest.raises(StorageError, match="it is number 1, and number 2 was made since"):
        restore(home, backup, home.path)
    restore(home, tmp_path / "newer", home.path)
    assert read_counter(home.path).number == 2  # type: ignore[union-attr]


def test_home_that_has_lost_its_keys_gets_them_back(home: Home, backup: Path) -> None:
    cohort = files_of(home.path / "cohorts")
    shutil.rmtree(home.path / "keys")
    restore(home, backup, home.path)
    assert home.settings.load_keys().public == home.keys.public
    assert files_of(home.path / "cohorts") == cohort


def test_who_has_withdrawn_since_stays_withdrawn(home: Home, backup: Path) -> None:
    (home.path / "withdrawn.json").write_text('{"subjects":["a1","b2"]}')
    restore(home, backup, home.path)
    assert json.loads((home.path / "withdrawn.json").read_text()) == {"subjects": ["a1", "b2"]}


def test_backup_of_another_home_is_refused(home: Home, backup: Path, tmp_path: Path) -> None:
    (home.path / "keys" / "split.key").write_bytes(bytes(31) + b"1")
    with pytest.raises(UsageError, match="patients would not be the same"):
        restore(home, backup, home.path)


def test_nothing_is_restored_under_a_steward(home: Home, backup: Path) -> None:
    from vitrael.client.site.listener import _only_one

    with _only_one(home.settings), pytest.raises(ProcessError, match="while a steward runs"):
        restore(home, backup, home.path)


def test_number_of_a_backup_that_failed_makes_no_other_one_older(
    home: Home, backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vitrael.privacy.sealed_file.SealedWriter.finish", full)
        with pytest.raises(StorageError, match="no disk space"):
            back_up(home, tmp_path / "second")
    shutil.rmtree(home.path / "keys")
    assert restore(home, backup, home.path).manifest.number == 1
    assert back_up(home, tmp_path / "third").number == 3, "no number is given twice"


def expected(head: Head | Line, *, digits: int = 64) -> Kept:
    """Return what the operator says: a line, as the coordinator knows it."""
    lines = head.line if isinstance(head, Line) else head.lines
    return parse_expected(f"{lines}:{head.hash.removeprefix('sha256:')[:digits]}")


def test_line_that_the_coordinator_knows_tells_the_newest_backup(
    home: Home, told: Head, backup: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    home.consent(days=30)
    with pytest.raises(StorageError, match=r"no line 3 with that hash"):
        restore(home, backup, new, expected=expected(home.lines()[2]))
    with pytest.raises(StorageError, match=r"no line 1 with that hash"):
        restore(home, backup, new, expected=parse_expected(f"1:{'0' * 16}"))
    with pytest.raises(StorageError, match=r"not the reply that told line 2"):
        restore(home, backup, new, expected=expected(home.lines()[1]))
    with pytest.raises(StorageError, match=r"0 is not what the coordinator knows"):
        restore(home, backup, new, expected=parse_expected("0"))
    assert not new.exists()
    assert restore(home, backup, new, expected=expected(told, digits=16)).confirmed
    assert read_mark(new) is None


def test_no_line_is_what_the_coordinator_knows_before_the_first_reply(
    home: Home, tmp_path: Path
) -> None:
    home.consent()
    back_up(home, tmp_path / "b")
    with pytest.raises(StorageError, match=r"not the reply that told line 1"):
        restore(home, tmp_path / "b", tmp_path / "new", expected=expected(home.lines()[0]))
    assert restore(home, tmp_path / "b", tmp_path / "new", expected=parse_expected("0")).confirmed


def test_coordinator_that_got_no_reply_confirms_by_name(
    home: Home, told: Head, backup: Path, tmp_path: Path
) -> None:
    assert told.lines
    restore(home, backup, tmp_path / "new")
    with pytest.raises(StorageError, match="0 is not what the coordinator knows") as caught:
        confirm_restore(tmp_path / "new", parse_expected("0"))
    assert "--expect-journal none" in caught.value.fix
    confirm_restore(tmp_path / "new", parse_expected("none"))
    with contextlib.closing(Steward(load_settings(tmp_path / "new"), clock=home.clock)) as steward:
        answer(home, steward, home.task({}, stage="consent"))


@pytest.mark.parametrize(
    "text", ["", "1", "1:abc", "x:" + "0" * 64, "-1:" + "0" * 64, "1:" + "g" * 16]
)
def test_expected_line_must_be_readable(text: str) -> None:
    with pytest.raises(UsageError, match="N:HASH"):
        parse_expected(text)


@pytest.fixture
def restored(home: Home, backup: Path, tmp_path: Path) -> Iterator[Steward]:
    """The steward of a home that nobody has confirmed."""
    restore(home, backup, tmp_path / "new")
    steward = Steward(load_settings(tmp_path / "new"), clock=home.clock)
    yield steward
    steward.close()


def test_restored_home_answers_once_a_task_quotes_its_journal(
    home: Home, told: Head, restored: Steward
) -> None:
    with pytest.raises(StorageError, match="nobody has said yet that it is the newest"):
        restored.answer(home.parcel(home.task({}, stage="consent"), {}))
    answer(home, restored, home.task({}, stage="consent", yours=told))
    answer(home, restored, home.task({}, stage="consent"))


def test_restored_home_that_forgot_a_reply_answers_nothing(
    home: Home, backup: Path, tmp_path: Path
) -> None:
    """Of the last reply that left, the coordinator quotes the line before: the backup's own end."""
    new = tmp_path / "new"
    steward = Steward(home.settings, clock=home.clock)
    last = answer(home, steward, home.task({}, stage="consent"))
    steward.close()
    assert last.lines == 2
    restore(home, backup, new)
    steward = Steward(load_settings(new), clock=home.clock)
    for _ in range(2):
        with pytest.raises(StorageError, match="not the one that the coordinator was told of"):
            steward.answer(home.parcel(home.task({}, stage="consent", yours=last), {}))
    steward.close()
    with pytest.raises(StorageError, match="not the reply that told line 2"):
        confirm_restore(new, expected(last))
    assert read_mark(new) is not None


def test_task_of_before_the_restore_confirms_nothing(
    home: Home, told: Head, restored: Steward, tmp_path: Path
) -> None:
    """Who carries parcels could lay one again, and have an answer made anew that was forgotten."""
    before = (home.clock() - timedelta(seconds=1)).isoformat()
    old = home.task({}, stage="consent", yours=told, issued_utc=before)
    with pytest.raises(StorageError, match="restored from a backup after this task was issued"):
        restored.answer(home.parcel(old, {}))
    assert read_mark(tmp_path / "new") is not None
    answer(home, restored, home.task({}, stage="consent", yours=told))
    assert read_mark(tmp_path / "new") is None


def test_restored_home_that_forgot_a_line_answers_nothing(home: Home, restored: Steward) -> None:
    home.consent(days=30)
    line = home.lines()[2]
    task = home.task({}, stage="consent", yours=Head(lines=line.line, hash=line.hash))
    with pytest.raises(StorageError, match="not the one that the coordinator was told of"):
        restored.answer(home.parcel(task, {}))
    with pytest.raises(StorageError, match="nobody has said yet"):
        restored.answer(home.parcel(home.task({}, stage="consent"), {}))


def test_operator_confirms_with_the_line_that_the_coordinator_knows(
    home: Home, told: Head, restored: Steward, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="older than what is known"):
        confirm_restore(tmp_path / "new", parse_expected("7:" + "0" * 16))
    confirm_restore(tmp_path / "new", expected(told))
    answer(home, restored, home.task({}, stage="consent"))


@pytest.mark.parametrize("step", ["_join_withdrawn", "save_counter", "_note", "_finish"])
def test_restore_that_was_killed_is_ended_by_the_same_command(
    home: Home,
    told: Head,
    backup: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    new = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(restoring, step, killed)
        with pytest.raises(KeyboardInterrupt):
            restore(home, backup, new)
    if (new / "site.toml").exists():
        with pytest.raises(StorageError, match="half restored"):
            confirm_restore(new, expected(told))
    home.clock.advance(seconds=60)
    restore(home, backup, new)
    confirm_restore(new, expected(told))
    assert load_settings(new).load_keys().public == home.keys.public
    assert verify_journal(load_settings(new).journal) == []
