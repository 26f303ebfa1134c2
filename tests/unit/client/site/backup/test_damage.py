"""A damaged journal has one remedy, and what was taken away in the meantime stays away."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.client.site.backup.test_restore import answer, back_up, restore
from vitrael.client.site.backup import restore as restoring
from vitrael.client.site.steward import Steward
from vitrael.client.site.store import Store
from vitrael.core.errors import StorageError
from vitrael.privacy.journal import Journal, verify_journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.site.conftest import Home
    from vitrael.core.messages import Head


@pytest.fixture
def told(home: Home) -> Head:
    """What the coordinator knows of a home that has answered two tasks."""
    home.consent()
    with closing(Steward(home.settings, clock=home.clock)) as steward:
        answer(home, steward, home.task({}, stage="consent"))
        return answer(home, steward, home.task({}, stage="consent"))


@pytest.fixture
def backup(home: Home, told: Head, tmp_path: Path) -> Path:
    assert told.lines == 2
    back_up(home, tmp_path / "b")
    return tmp_path / "b"


def remove(home: Home) -> None:
    home.settings.journal.unlink()


def cut(home: Home) -> None:
    lines = home.settings.journal.read_bytes().splitlines(keepends=True)
    home.settings.journal.write_bytes(b"".join(lines[:-1]))


def lose_head(home: Home) -> None:
    (home.path / "journal.head.json").unlink()


def change_head(home: Home) -> None:
    (home.path / "journal.head.json").write_text("{}")


def change_old_line(home: Home) -> None:
    lines = home.settings.journal
    lines.write_bytes(lines.read_bytes().replace(b'"event":"consent"', b'"event":"rotated"', 1))


def drop_old_line(home: Home) -> None:
    lines = home.settings.journal.read_bytes().splitlines(keepends=True)
    home.settings.journal.write_bytes(b"".join(lines[1:]))


DAMAGES = (remove, cut, lose_head, change_head, change_old_line, drop_old_line)


def standing(home: Home) -> tuple[bool, bool, bool, bool]:
    """Return whether the site is paused, has left, has taken its consent back, owes lines."""
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        (stored,) = store.list_consents()
        site, owed = store.decisions.standing(), store.decisions.owed()
    return bool(site.paused_utc), bool(site.left_utc), bool(stored.withdrawn_utc), bool(owed)


def full(*_: Any) -> None:
    raise StorageError("the journal cannot be written")


def take_away(home: Home) -> None:
    home.control().pause()
    home.control().stop(home.study.protocol.digest)
    home.control().leave()


@pytest.mark.parametrize("damage", DAMAGES)
def test_act_that_takes_away_outlives_damage_and_restore(
    home: Home, backup: Path, damage: Callable[[Home], None]
) -> None:
    damage(home)
    take_away(home)
    with pytest.raises(StorageError, match="not whole"):
        Steward(home.settings, clock=home.clock)
    restore(home, backup, home.path)
    assert standing(home)[:3] == (True, True, True)
    with closing(Steward(home.settings, clock=home.clock)):
        assert standing(home)[3] is False, "each line was written down after the fact"
    events = [line.event for line in home.lines()]
    assert {"paused", "withdrawn", "left", "restored"} <= {*events}
    assert verify_journal(home.settings.journal) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_journal_that_was_mended_answers_again(
    home: Home, told: Head, backup: Path, damage: Callable[[Home], None]
) -> None:
    damage(home)
    restore(home, backup, home.path)
    with closing(Steward(home.settings, clock=home.clock)) as steward:
        task = home.task({}, stage="consent", yours=told)
        reply, _ = home.open(steward.answer(home.parcel(task, {})))
    assert (reply.status, reply.reason) == ("done", "")


def test_lines_behind_a_damaged_one_stay(home: Home, told: Head, backup: Path) -> None:
    assert told.lines
    with closing(Steward(home.settings, clock=home.clock)) as steward:
        change_old_line(home)  # seen by no line that follows
        last = answer(home, steward, home.task({}, stage="consent"))
    (home.path / "standing.json").write_text("newer")
    later = home.settings.journal.read_bytes().splitlines()[3:]
    assert restore(home, backup, home.path).stays == "all"
    assert (home.path / "standing.json").read_text() == "newer"
    assert home.settings.journal.read_bytes().splitlines()[3 : 3 + len(later)] == later
    with closing(Steward(home.settings, clock=home.clock)) as steward:
        answer(home, steward, home.task({}, stage="consent", yours=last))


def test_damaged_line_that_the_backup_has_not_is_not_mended(home: Home, backup: Path) -> None:
    home.consent(days=30)
    *before, last = home.settings.journal.read_bytes().splitlines(keepends=True)
    changed = last.replace(b" rounds", b" routes")
    assert changed != last
    home.settings.journal.write_bytes(b"".join([*before, changed]))
    with pytest.raises(StorageError, match="older than what is known") as caught:
        restore(home, backup, home.path)
    assert "join in a new home" in caught.value.fix


def test_act_without_its_line_outlives_the_loss_of_the_keys(
    home: Home, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        take_away(home)
    for path in (home.path / "keys").iterdir():
        path.unlink()
    assert restore(home, backup, home.path).stays == "store"
    assert standing(home) == (True, True, True, True)
    assert home.settings.load_keys().public == home.keys.public


def test_act_in_a_home_that_is_half_restored_is_not_undone(
    home: Home, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "_note", killed)
        with pytest.raises(KeyboardInterrupt):
            restore(home, backup, home.path)
    take_away(home)
    restore(home, backup, home.path)
    assert standing(home) == (True, True, True, False)
    assert verify_journal(home.settings.journal) == []


def test_damaged_store_is_not_replaced_unseen(home: Home, backup: Path) -> None:
    for path in home.path.glob("store.sqlite-*"):
        path.unlink()
    home.settings.store.write_bytes(home.settings.store.read_bytes()[:5000])
    with pytest.raises(StorageError, match="may hold decisions that the backup does not") as caught:
        restore(home, backup, home.path)
    assert caught.value.fix.startswith("move store.sqlite away, restore")
    home.settings.store.unlink()
    assert restore(home, backup, home.path).stays == "nothing"


def test_store_that_was_begun_anew_gives_way_unless_it_holds_a_decision(
    home: Home, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> None:
        for path in home.path.glob("store.sqlite*"):
            path.unlink()
        Store(home.settings.store, updates=home.settings.updates).close()

    begin()
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        home.control().pause()
    with pytest.raises(StorageError, match="decisions that stand in no journal"):
        restore(home, backup, home.path)
    begin()
    assert restore(home, backup, home.path).stays == "nothing"
