"""The commands of the enrollment, from the invitation to new keys, as an operator types them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.factories.site_study import STUDY
from tests.unit.client.site.enrollment.conftest import FakeCoordinator, Site
from vitrael.client.site.enrollment.home_lock import only_one_enrollment
from vitrael.core.cli import run
from vitrael.privacy.keys import KeyPair, is_protected
from vitrael.privacy.sealed_file import is_sealed

PHRASE = "five words are enough here"


@pytest.fixture
def invitation(site: Site, coordinator: FakeCoordinator, tmp_path: Path) -> Path:
    site.clock.now = datetime.now(UTC)  # the commands read the true clock
    path = tmp_path / "north.invitation.json"
    path.write_bytes(coordinator.invite().to_bytes())
    return path


@pytest.fixture
def call(site: Site, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run_site(*words: object) -> tuple[int, str, str]:
        code = run(["site", *map(str, words), "--home", str(site.home)])
        return code, *capsys.readouterr()

    return run_site


Call = Callable[..., tuple[int, str, str]]


def test_site_joins_and_fetches(
    call: Call, site: Site, coordinator: FakeCoordinator, invitation: Path
) -> None:
    code, out, err = call("join", invitation, "--yes")
    assert code == 0
    assert "Read this fingerprint" in err
    shown = out.strip()
    code, out, _ = call("fetch")
    assert (code, out.strip()) == (
        7,  # so that a script can wait for the approval
        f"site north waits for the coordinator to approve {shown}",
    )
    coordinator.approve(others=("harbour", "valley"))
    coordinator.offer(STUDY)
    code, out, _ = call("fetch")
    assert code == 0
    assert "site north is enrolled until" in out
    assert "new in studies/: site-test" in out
    assert "consent again" not in out  # none was given
    coordinator.approve(others=("harbour",))
    assert "consent again" in call("fetch")[1]  # the control
    coordinator.approve(others=("harbour", "valley"))
    code, out, _ = call("fetch", "--json")
    document = json.loads(out)
    assert (document["status"], document["fingerprint"]) == ("enrolled", shown)
    assert document["members"] == ["harbour", "north", "valley"]
    assert list(document["studies"]) == ["site-test"]


def test_dry_run_makes_and_sends_nothing(
    call: Call, site: Site, coordinator: FakeCoordinator, invitation: Path
) -> None:
    code, out, _ = call("join", invitation, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out)["address"] == coordinator.address
    assert coordinator.token not in out
    assert not site.home.exists()
    assert coordinator.joined == []


def test_join_asks_before_it_makes_anything(
    call: Call, site: Site, invitation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, _, err = call("join", invitation)
    assert code == 1
    assert "Nothing was done" in err
    assert not site.home.exists()


def test_revoked_site_exits_with_4(
    call: Call, coordinator: FakeCoordinator, invitation: Path
) -> None:
    call("join", invitation, "--yes", "--json")
    coordinator.status = "revoked"
    code, out, err = call("fetch", "--json")
    assert code == 4
    assert "has revoked the enrollment of site north" in err
    assert json.loads(out)["error"]["exit_code"] == 4


def test_study_that_is_not_taken_exits_with_7(
    call: Call, coordinator: FakeCoordinator, invitation: Path
) -> None:
    call("join", invitation, "--yes")
    coordinator.approve()
    coordinator.offer(STUDY.replace('"north"', '"hill"'))
    code, out, _ = call("fetch")
    assert code == 7
    assert "not taken: study site-test is not for site north" in out


def test_new_keys_by_commands(
    call: Call, site: Site, coordinator: FakeCoordinator, invitation: Path
) -> None:
    call("join", invitation, "--yes")
    coordinator.approve()
    call("fetch")
    old = KeyPair.load(site.home / "keys").public
    coordinator.token = "c9" * 32
    invitation.write_bytes(coordinator.invite().to_bytes())
    code, out, _ = call("rotate", invitation, "--dry-run")
    assert code == 0
    assert "every consent must be given again" in out
    assert not (site.home / "keys.next").exists()
    code, shown, _ = call("rotate", invitation, "--yes")
    assert code == 0
    code, out, _ = call("fetch")
    assert code == 7
    assert f"wait for the coordinator to approve {shown.strip()}" in out
    coordinator.approve()
    code, out, _ = call("fetch")
    assert code == 0
    assert "the new keys are in use" in out
    assert "vitrael site consent STUDY" in out
    assert KeyPair.load(site.home / "keys").public != old


def test_protected_keys_are_used_with_a_file(
    call: Call,
    site: Site,
    coordinator: FakeCoordinator,
    invitation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phrase = tmp_path / "phrase"
    phrase.touch(mode=0o600)
    phrase.write_text(PHRASE)
    monkeypatch.setenv("VITRAEL_PASSPHRASE_FILE", str(phrase))
    assert call("join", invitation, "--yes", "--passphrase")[0] == 0
    assert is_protected(site.home / "keys")
    coordinator.approve()
    assert call("fetch")[0] == 0
    phrase.write_text("another passphrase")
    code, _, err = call("fetch")
    assert code == 4
    assert "the passphrase is wrong" in err
    phrase.write_text(PHRASE)
    assert call("keys", "unprotect")[0] == 0
    assert not is_protected(site.home / "keys")
    assert call("keys", "protect")[0] == 0
    assert is_protected(site.home / "keys")


@pytest.fixture
def phrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the passphrase of the keys."""
    path = tmp_path / "phrase"
    path.touch(mode=0o600)
    path.write_text(PHRASE)
    monkeypatch.setenv("VITRAEL_PASSPHRASE_FILE", str(path))
    return path


@pytest.mark.usefixtures("phrase")
def test_keys_that_are_kept_aside_are_protected_too(
    call: Call, site: Site, invitation: Path
) -> None:
    call("join", invitation, "--yes")
    for name in ("keys.old", "keys.unused-1"):
        KeyPair.create().save(site.home / name)
    (site.home / "keys.unused-1" / "sealing.pem").unlink()  # of a command that was killed
    assert call("keys", "protect")[0] == 0
    pems = sorted(site.home.glob("keys*/*.pem"))
    assert len(pems) == 5
    assert all(is_sealed(pem.read_bytes()) for pem in pems)


@pytest.mark.usefixtures("phrase")
@pytest.mark.parametrize("word", ["protect", "unprotect"])
def test_keys_are_not_written_while_another_command_changes_them(
    call: Call, site: Site, invitation: Path, word: str
) -> None:
    call("join", invitation, "--yes", *(["--passphrase"] if word == "unprotect" else []))
    before = is_protected(site.home / "keys")
    with only_one_enrollment(site.home):
        code, _, err = call("keys", word)
    assert (code, "another command changes the keys" in err) == (1, True)
    assert is_protected(site.home / "keys") == before
    assert call("keys", word)[0] == 0
    assert is_protected(site.home / "keys") != before


def test_backup_and_restore_by_commands(
    call: Call,
    site: Site,
    invitation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    phrase = tmp_path / "phrase"
    phrase.touch(mode=0o600)
    phrase.write_text(PHRASE)
    monkeypatch.setenv("VITRAEL_BACKUP_PASSPHRASE_FILE", str(phrase))
    call("join", invitation, "--yes")
    code, out, _ = call("backup", tmp_path / "b", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["journal"].startswith("1:sha256:")
    new = ["--home", str(tmp_path / "new")]
    assert run(["site", "restore", str(tmp_path / "b"), *new, "--dry-run"]) == 0
    assert not (tmp_path / "new").exists()
    assert run(["site", "restore", str(tmp_path / "b"), *new, "--yes"]) == 0
    assert "no task is answered before" in capsys.readouterr().err
    assert run(["site", "restore", *new]) == 2
    assert run(["site", "restore", *new, "--expect-journal", told["journal"]]) == 1
    assert "not the reply that told line 1" in capsys.readouterr().err
    assert run(["site", "restore", *new, "--expect-journal", "0"]) == 0
    assert KeyPair.load(tmp_path / "new" / "keys").public == site.settings.load_keys().public
    phrase.write_text("another passphrase")
    assert (
        run(["site", "restore", str(tmp_path / "b"), "--home", str(tmp_path / "c"), "--yes"]) == 4
    )
    assert not (tmp_path / "c").exists()
