"""``vitrael server``: from a founded home to an enrolled site and its end, by the commands."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.factories.enrolling import JoiningSite
from tests.fakes.clock import FakeClock
from vitrael.core import cli
from vitrael.privacy.enrollment import Invitation
from vitrael.privacy.journal import read_journal
from vitrael.privacy.keys import load_roster
from vitrael.server.config import load_server
from vitrael.server.settings import utc_now
from vitrael.server.sites.desk import Desk


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["server", "init", "--address", "vitrael.example.org:443"]) == 0
    return tmp_path / "vitrael-server"


@pytest.fixture
def north(home: Path) -> JoiningSite:
    return JoiningSite("north", FakeClock(utc_now()), load_server(home))


Capture = pytest.CaptureFixture[str]


def ask(capsys: Capture, *words: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run(["server", *words, "--json"]) == code
    return dict(json.loads(capsys.readouterr().out))


def join(home: Path, site: JoiningSite, file: str) -> None:
    """Do what the service does with what a site sends."""
    invitation = Invitation.from_bytes(Path(file).read_bytes())
    with Desk(load_server(home)) as desk:
        desk.join(site.join(invitation.token))


def test_init_says_what_it_made(tmp_path: Path, capsys: Capture) -> None:
    place = ("--home", str(tmp_path / "c"), "--address", "localhost:8443")
    dry = ask(capsys, "init", *place, "--dry-run")
    assert dry["address"] == "localhost:8443"
    assert not (tmp_path / "c").exists()
    made = ask(capsys, "init", *place, "--days", "30")
    assert len(made["fingerprint"].replace(" ", "")) == 64
    assert (made["certificate_days_left"], made["authority_days_left"]) == (824, 3649)
    assert load_server(tmp_path / "c").document.enrollment_days == 30
    assert ask(capsys, "init", *place)["fingerprint"] == made["fingerprint"]
    other = ("--home", str(tmp_path / "c"), "--address", "other:8443")
    assert ask(capsys, "init", *other, code=2)["error"]["exit_code"] == 2


@pytest.mark.parametrize("address", ["example.org", "example.org:0", "http://x:1", "a b:1"])
def test_init_refuses_what_is_no_address(tmp_path: Path, address: str) -> None:
    words = ["server", "init", "--home", str(tmp_path / "c"), "--address", address]
    assert cli.run(words) == 2
    assert not (tmp_path / "c").exists()


def test_init_names_the_next_commands_for_its_home(tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "a home"
    init = ["server", "init", "--address", "localhost:8443"]
    assert cli.run([*init, "--home", str(place)]) == 0
    said = capsys.readouterr().out
    assert f"vitrael server up --home '{place}', and vitrael server invite SITE --home '" in said


def test_a_folder_that_is_no_home_is_told(tmp_path: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert cli.run(["server", "sites", "list", "--home", str(tmp_path)]) == 2
    assert "run `vitrael server init`" in capsys.readouterr().err


def test_a_site_is_invited_approved_renewed_and_revoked(
    home: Path, north: JoiningSite, capsys: Capture
) -> None:
    given = ask(capsys, "invite", "north")
    assert given["file"] == "north.invitation.json"
    assert stat.S_IMODE(Path(given["file"]).stat().st_mode) == 0o600
    join(home, north, given["file"])

    wrong = ask(capsys, "sites", "approve", "north", "--fingerprint", "0" * 64, "--yes", code=4)
    assert "not that of the keys which came from site north" in wrong["error"]["what"]
    approve = ("sites", "approve", "north", "--fingerprint", north.fingerprint)
    assert ask(capsys, *approve, "--dry-run")["enrolled"] is False
    assert load_roster(home / "roster.json") == {}
    approved = ask(capsys, *approve, "--yes")
    assert (approved["enrolled"], approved["registered"]) == (True, False)
    assert list(load_roster(home / "roster.json")) == ["north"]

    (listed,) = ask(capsys, "sites", "list")["sites"]
    assert (listed["status"], listed["days_left"]) == ("enrolled", 364)

    renewed = north.with_new_keys()
    join(home, renewed, ask(capsys, "sites", "rotate", "north", "--out", "new.json")["file"])
    ask(capsys, "sites", "approve", "north", "--fingerprint", renewed.fingerprint, "--yes")
    assert load_roster(home / "roster.json") == {"north": renewed.keys.public}

    revoke = ("sites", "revoke", "north", "--reason", "stolen server")
    assert ask(capsys, *revoke, "--dry-run")["revoked"] is False
    assert list(load_roster(home / "roster.json")) == ["north"]
    assert [site["days"] for site in ask(capsys, "status")["sites"]] == [364]
    assert ask(capsys, *revoke, "--yes")["revoked"] is True
    assert [site["days"] for site in ask(capsys, "status")["sites"]] == [None]
    assert load_roster(home / "roster.json") == {}
    assert ask(capsys, *revoke, "--yes", code=2)["error"]["exit_code"] == 2
    events = [line.event for line in read_journal(home / "journal.jsonl")]
    assert events == ["invite", "join", "approve", "rotate", "join", "approve", "revoke"]


def test_a_question_answered_with_no_changes_nothing(
    home: Path, north: JoiningSite, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    join(home, north, ask(capsys, "invite", "north")["file"])
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    approve = ["server", "sites", "approve", "north", "--fingerprint", north.fingerprint]
    assert cli.run(approve) == 1
    assert cli.run(["server", "sites", "revoke", "north", "--reason", "x"]) == 1
    assert [site["status"] for site in ask(capsys, "sites", "list")["sites"]] == ["pending"]


def test_an_invitation_is_not_written_twice(home: Path, capsys: Capture) -> None:
    ask(capsys, "invite", "north", "--dry-run")
    assert list(Path().glob("*.json")) == []
    first = Path(ask(capsys, "invite", "north")["file"])
    before = first.read_bytes()
    told = ask(capsys, "invite", "north", code=2)["error"]
    assert (told["what"], first.read_bytes()) == ("north.invitation.json exists already", before)
    ask(capsys, "invite", "north", "--out", "other.json")
    lines = read_journal(home / "journal.jsonl")
    assert [line.event for line in lines] == ["invite", "invite"]


@pytest.mark.parametrize("site", ["North", "no rth", "../x", "n" * 49])
def test_what_is_no_name_is_refused(home: Path, site: str, capsys: Capture) -> None:
    assert "no name of a site" in ask(capsys, "invite", site, code=2)["error"]["what"]


def test_the_token_is_shown_nowhere_but_in_the_file(home: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert cli.run(["server", "invite", "north"]) == 0
    said = capsys.readouterr()
    token = Invitation.from_bytes(Path("north.invitation.json").read_bytes()).token
    assert token not in said.out + said.err
    assert "Hand it over as you would a password" in said.out
    assert cli.run(["server", "sites", "list"]) == 0
    assert token not in capsys.readouterr().out
