"""Saying no needs neither a whole journal nor a key, and leaves nothing that was learned."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from vitrael.client.site.cli import site
from vitrael.client.site.enrollment import words
from vitrael.client.site.store import Store
from vitrael.core.errors import StorageError, UsageError
from vitrael.privacy.keys import KeyPair

if TYPE_CHECKING:
    from click.testing import Result

    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.client.site.steward import Steward


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the coordinator hears."""
    said: list[str] = []

    def send_word(_settings: object, kind: str, **_: Any) -> None:
        said.append(kind)

    monkeypatch.setattr(words, "send_word", send_word)
    return said


@pytest.fixture
def given(home: Home) -> Home:
    home.clock.now = datetime.now(UTC)  # the commands read the true clock
    home.consent()
    return home


def call(home: Home, *arguments: str) -> Result:
    command = [*arguments, "--home", str(home.path)]
    return CliRunner().invoke(site, command, catch_exceptions=False)


def ask(home: Home, steward: Steward, number: int) -> str:
    reply, _ = home.open(steward.answer(home.parcel(home.task(round=number))))
    return reply.status


def damage_first_line(home: Home) -> None:
    lines = home.settings.journal
    lines.write_bytes(lines.read_bytes().replace(b'"event":"consent"', b'"event":"rotated"', 1))


@pytest.mark.parametrize("act", [("stop", "site-test", "--yes"), ("leave", "--yes"), ("pause",)])
def test_damaged_old_line_stops_no_act_that_takes_away(
    given: Home, counting: CountingTask, act: tuple[str, ...]
) -> None:
    with closing(given.steward({"codec": counting})) as steward:
        assert ask(given, steward, 0) == "done"
        damage_first_line(given)
        done = call(given, *act)
        assert done.exit_code == 0
        assert "the journal is not whole: line 1" in done.stderr
        assert ask(given, steward, 1) == "refused"


@pytest.mark.parametrize("act", [("resume",), ("release", "--all", "--yes")])
def test_damaged_old_line_stops_an_act_that_gives(given: Home, act: tuple[str, ...]) -> None:
    call(given, "pause")
    assert call(given, *act).exit_code == 0
    damage_first_line(given)
    with pytest.raises(StorageError, match="not whole: line 1"):
        call(given, *act)


def test_act_that_holds_without_its_line_says_so(given: Home) -> None:
    given.settings.journal.unlink()
    done = call(given, "stop", "site-test", "--yes")
    assert done.exit_code == 0
    assert "It holds, but the journal lacks its line so far" in done.stderr


@pytest.mark.parametrize("change", ["rotated", "gone"])
def test_stop_needs_no_key_that_signed_the_consent(
    given: Home, heard: list[str], change: str
) -> None:
    for path in (given.path / "keys").glob("*.pem"):
        path.unlink()
    if change == "rotated":
        KeyPair.create().save(given.path / "keys")
    done = call(given, "stop", "site-test", "--yes", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["protocol"] == given.study.protocol.digest
    with closing(Store(given.settings.store, updates=given.settings.updates)) as store:
        (stored,) = store.list_consents()
    assert stored.withdrawn_utc
    assert heard == ["withdraw"]


@pytest.fixture
def learned(given: Home) -> list[Path]:
    """What trainings of this protocol, of another roster of it, and of another one have left."""
    settings, protocol = given.settings, given.study.protocol
    other = protocol.model_copy(update={"version": 2}).digest
    folders = [
        settings.records_of(protocol=named, roster=roster)
        for named, roster in (
            (protocol.digest, given.task().roster),
            (protocol.digest, other),
            (other, given.task().roster),
        )
    ]
    states = [folder / "training" / "codec-1-0123456789abcdef" / "state" for folder in folders]
    for state in states:
        state.parent.mkdir(parents=True)
        state.write_bytes(b"weights")
        (state.parents[2] / "point.json").write_text("{}")
    return states


def test_stop_removes_what_a_training_for_the_study_has_learned(
    given: Home, learned: list[Path]
) -> None:
    call(given, "stop", "site-test", "--dry-run")
    assert [state.exists() for state in learned] == [True, True, True]
    call(given, "stop", "site-test", "--yes")
    assert [state.exists() for state in learned] == [False, False, True]
    assert all((state.parents[2] / "point.json").exists() for state in learned)


def test_leave_removes_what_any_training_has_learned(given: Home, learned: list[Path]) -> None:
    call(given, "leave", "--dry-run")
    assert [state.exists() for state in learned] == [True, True, True]
    call(given, "leave", "--yes")
    assert [state.exists() for state in learned] == [False, False, False]


COMMANDS = (
    *(("pause",), ("resume",), ("stop", "site-test", "--yes"), ("leave", "--yes")),
    *(("release", "--all", "--yes"), ("consents",), ("held",), ("run",)),
    *(("consent", "site-test", "--yes"), ("ingest", "SCANS"), ("withdraw", "who", "--yes")),
    *(("cache", "gc"), ("fetch",), ("rotate", "FILE"), ("keys", "protect"), ("keys", "unprotect")),
    *(("backup", "COPY"), ("restore", "FILE")),
)


def test_commands_of_another_user_are_refused_before_they_write(
    given: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "FILE").write_text("{}")
    (tmp_path / "SCANS").mkdir()
    before = {path: path.stat().st_mtime_ns for path in given.path.rglob("*")}
    user = given.path.stat().st_uid
    monkeypatch.setattr("vitrael.client.site.options.os.geteuid", lambda: user + 1)
    for command in COMMANDS:
        words = [str(tmp_path / one) if one.isupper() else one for one in command]
        with pytest.raises(UsageError, match=r"the home .* is of the user") as caught:
            call(given, *words)
        assert "sudo -u" in caught.value.fix
    assert {path: path.stat().st_mtime_ns for path in given.path.rglob("*")} == before


def test_folder_of_the_keys_tells_whose_a_home_is(
    given: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home itself may be root's, as the service files have it."""
    keys, owner = given.path / "keys", given.path.stat().st_uid + 1
    stat = Path.stat

    def owned(path: Path, **options: Any) -> Any:
        found = stat(path, **options)
        return type(found)((*found[:4], owner, *found[5:])) if path == keys else found

    assert call(given, "pause").exit_code == 0
    monkeypatch.setattr(Path, "stat", owned)
    with pytest.raises(UsageError, match="is of the user"):
        call(given, "resume")
    monkeypatch.setattr("vitrael.client.site.options.os.geteuid", lambda: owner)
    assert call(given, "resume").exit_code == 0
