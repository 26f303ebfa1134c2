"""``vitrael site``: consent is asked for, the journal is shown and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from vitrael.client.site.cli import site
from vitrael.client.site.consent import DEFAULT_DAYS
from vitrael.client.site.ingest.told import read_summary
from vitrael.core.cli import run
from vitrael.core.errors import AuthError, ConfigError, ConsentError, StorageError, UsageError
from vitrael.privacy.keys import KeyPair, fingerprint, load_public_keys, save_roster

if TYPE_CHECKING:
    from click.testing import Result

    from tests.unit.client.site.conftest import Home


@pytest.fixture
def study(study_file: Path) -> str:
    return str(study_file)


def call(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(site, arguments, input=answer, catch_exceptions=False)


def test_consent_is_asked_for_and_kept(home: Home, study: str) -> None:
    refused = call("consent", study, "--home", str(home.path), answer="n\n")
    assert refused.exit_code == 1
    assert home.lines() == []
    agreed = call("consent", study, "--home", str(home.path), answer="y\n")
    assert agreed.exit_code == 0
    assert home.study.protocol.digest in agreed.stdout
    assert "12 patients, scans not told" in agreed.stdout
    for words in (", ".join(home.study.roster.sites), "NOT FOR PUBLICATION", "CC-BY-4.0"):
        assert words in agreed.stdout
    assert [line.event for line in home.lines()] == ["consent"]


SAID = {
    "others see": {
        "common teacher": "current weights of codec, patient encoder and teacher",
        "unscreened candidates": "**unscreened candidates**",
        "unscreened samples": "**unscreened samples**",
        "counts and measurements that you sent for calibration": "**all** sites replied to",
        "no votes": "without attachments",
    },
    "made public": {
        "your name and signature": "each site's name",
        "in which rounds you took part": "in which stages and rounds it took part",
        "how long your answers took and their bytes": "how long its answers took and how many",
        "weight in tenths": "weight in tenths",
        "why you were absent (in words of ours)": "why a site was absent",
        "range of your number of training patients": "range into which its number of training",
        "loss curves": "**loss curves**",
        "how many candidates and samples you kept": "**how many candidates and samples each site",
        "the Evidence": "the Evidence (`evidence.json`)",
        "means and covariances of age, sex and volumes": "the pooled means and covariances of",
    },
}
"""Row of the consent -> words of it -> what the page of what leaves says of the same."""


def test_consent_says_who_sees_what_as_the_page_of_what_leaves_does(
    home: Home, study: str, root: Path
) -> None:
    page = (root / "docs/privacy/what-leaves-a-site.md").read_text(encoding="utf-8")
    page = " ".join(page.split())
    text = call("consent", study, "--home", str(home.path), "--dry-run").stdout
    rows = {line[:12].strip(): line[13:] for line in text.splitlines()}
    for row, words in SAID.items():
        missing = [word for word, same in words.items() if word not in rows[row]]
        missing += [same for same in words.values() if same not in page]
        assert missing == []
    assert "weight in tenths" not in rows["others see"]  # the control: rows are told apart


def test_dry_run_signs_nothing(home: Home, study: str) -> None:
    done = call("consent", study, "--home", str(home.path), "--yes", "--dry-run", "--json")
    assert json.loads(done.stdout)["protocol"] == home.study.protocol.digest
    assert home.lines() == []


def test_consent_by_command_covers_the_consent_task(home: Home, study: str) -> None:
    home.clock.now = datetime.now(UTC)  # the command reads the true clock
    assert call("consent", study, "--home", str(home.path), "--yes", "--rounds", "3").exit_code == 0
    reply, _ = home.open(home.steward().answer(home.parcel(home.task({}, stage="consent"), {})))
    assert reply.status == "done"
    assert set(reply.body) == {"consent", "summary"}
    summary = read_summary(home.path / "cohorts" / "main")
    assert reply.body["summary"] == summary.model_dump(mode="json")
    assert summary.patients == 12


def test_consent_without_a_summary_says_why(home: Home, study: str) -> None:
    home.clock.now = datetime.now(UTC)
    assert call("consent", study, "--home", str(home.path), "--yes").exit_code == 0
    path = home.path / "cohorts" / "main" / "summary.json"
    path.write_text(path.read_text().replace('"patients":12', '"patients":5'))
    reply, _ = home.open(home.steward().answer(home.parcel(home.task({}, stage="consent"), {})))
    assert reply.status == "failed"
    assert "summary of the cohort cannot be used" in reply.reason
    assert reply.body == {}


def test_consent_with_a_roster_of_others_is_refused(home: Home, study: str) -> None:
    (home.path / "roster.json").write_text("{}")
    with pytest.raises(ConsentError, match="roster"):
        call("consent", study, "--home", str(home.path), "--yes")


def test_what_consent_writes_is_for_its_user_alone(home: Home, study: str) -> None:
    before = os.umask(0o022)
    try:
        call("consent", study, "--home", str(home.path), "--yes")
        assert os.umask(0o022) == 0o022  # the command leaves it as it was
    finally:
        os.umask(before)
    assert home.settings.store.stat().st_mode & 0o077 == 0
    assert home.settings.journal.stat().st_mode & 0o077 == 0


def test_journal_is_shown(home: Home) -> None:
    home.consent()
    home.steward().answer(home.parcel(home.task({}, stage="consent"), {}))
    text = call("journal", "--home", str(home.path)).stdout
    assert "consent 1" in text  # rounds count from 1 for readers
    receiver = f"coordinator {fingerprint(home.coordinator.public.signing)[:19]}"
    assert text.count(receiver) == 1  # the consent itself went nowhere
    document = json.loads(call("journal", "--home", str(home.path), "--json").stdout)
    assert [line["event"] for line in document["lines"]] == ["consent", "sent"]
    assert [line["round"] for line in document["lines"]] == [0, 0]
    assert document["bytes"] == document["lines"][1]["bytes"] > 0


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_removed_journal_is_reported_with_the_remedy(
    home: Home, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("journal", "--home", str(home.path), *options).exit_code == 0  # nothing yet
    assert not home.settings.store.exists()
    home.consent()
    assert call("journal", "--home", str(home.path), *options).exit_code == 0
    home.settings.journal.unlink()
    home.settings.journal.with_suffix(".head.json").unlink()
    capsys.readouterr()
    assert run(["site", "journal", "--home", str(home.path), *options]) == 1
    told = "".join(capsys.readouterr())
    assert "the journal was removed" in told
    assert "restore it from a backup while nothing runs" in told


@pytest.mark.parametrize("days", ["1e12", "4000000", "inf", "nan", "0", "-1"])
def test_consent_without_a_sensible_end_is_a_wrong_call(home: Home, study: str, days: str) -> None:
    done = call("consent", study, "--home", str(home.path), "--yes", "--days", days)
    assert done.exit_code == 2
    assert "--days" in done.output
    assert home.lines() == []


def test_consent_says_what_will_not_work(home: Home, study: str) -> None:
    told = call("consent", study, "--home", str(home.path), "--dry-run", "--rounds", "1").stdout
    assert "FEWER than the study's 2" in told
    assert fingerprint(load_public_keys(home.settings.coordinator).signing) in told
    home.settings.coordinator.unlink()
    with pytest.raises(AuthError, match=r"coordinator\.json cannot be read"):
        call("consent", study, "--home", str(home.path), "--yes")
    assert home.lines() == []


def test_nothing_is_signed_and_no_steward_starts_beside_a_changed_journal(
    home: Home, study: str
) -> None:
    for _ in range(3):
        home.consent()
    data = home.settings.journal.read_bytes().replace(b"rounds", b"Rounds", 1)
    home.settings.journal.write_bytes(data)
    for command in (("consent", study, "--yes"), ("run",)):
        with pytest.raises(StorageError, match="not whole: line 1: the line was changed"):
            call(*command, "--home", str(home.path))
    assert home.settings.journal.read_bytes() == data
    home.settings.journal.unlink()
    home.settings.journal.mkdir()
    with pytest.raises(StorageError, match="the journal"):
        call("consent", study, "--home", str(home.path), "--yes")


@pytest.mark.parametrize("wrong", ["name", "keys"])
def test_site_that_is_not_on_its_roster_does_not_start(home: Home, wrong: str) -> None:
    if wrong == "name":
        (home.path / "site.toml").write_text('name = "elsewhere"\n')
    else:
        others = {site: KeyPair.create().public for site in home.members}
        save_roster(others, home.path / "roster.json")
    with pytest.raises(ConsentError, match="does not hold site") as caught:
        call("run", "--home", str(home.path))
    assert caught.value.exit_code == 4
    assert not home.settings.store.exists()


def test_every_command_takes_the_same_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = site.commands.values()
    groups = [command for command in commands if isinstance(command, click.Group)]
    inner = [command for group in groups for command in group.commands.values()]
    assert len(groups) > 1
    for command in (*(each for each in commands if each not in groups), *inner):
        (option,) = (each for each in command.params if each.name == "home")
        assert (option.default, option.envvar) == (Path("vitrael-site"), "VITRAEL_SITE_HOME")
    monkeypatch.setenv("VITRAEL_SITE_HOME", str(home.path))
    assert call("journal").exit_code == 0
    monkeypatch.setenv("VITRAEL_SITE_HOME", str(home.path / "elsewhere"))
    with pytest.raises(UsageError, match="--home"):
        call("journal")


@pytest.mark.parametrize("is_whole", [True, False])
def test_consent_writes_one_document_also_when_it_fails(
    home: Home, study: str, capsys: pytest.CaptureFixture[str], *, is_whole: bool
) -> None:
    if not is_whole:
        home.settings.journal.mkdir()
    code = run(["site", "consent", study, "--home", str(home.path), "--yes", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (code, "error" in document) == ((0, False) if is_whole else (1, True))


def test_consent_is_told_in_words_before_it_is_asked_for(home: Home, study: str) -> None:
    asked = call("consent", study, "--home", str(home.path), "--json", answer="n\n")
    assert (asked.exit_code, asked.stdout) == (1, "")
    assert "NOT FOR PUBLICATION" in asked.stderr


def test_help_promises_no_command_that_is_missing() -> None:
    assert f"{DEFAULT_DAYS} days by default" in call("consent", "--help").output
    said = call("--help").output
    assert "say no" not in said
    told = ("consent", "pause", "resume", "stop", "leave", "consents", "held", "release", "reject")
    assert {*told} <= {*site.commands}
    for name in told:
        assert "Example: vitrael site" in call(name, "--help").output


def test_journal_is_verified(home: Home) -> None:
    home.consent()
    whole = call("journal", "--home", str(home.path))
    assert (whole.exit_code, "the journal is whole" in whole.stderr) == (0, True)
    path = home.settings.journal
    path.write_bytes(path.read_bytes().replace(b"rounds", b"Rounds"))
    broken = call("journal", "--home", str(home.path), "--json")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["faults"] == [{"line": 1, "what": "the line was changed"}]


def dropped(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:2], *lines[3:]])


def changed(data: bytes) -> bytes:
    return data.replace(b"rounds", b"Rounds", 1)


@pytest.mark.parametrize(
    ("tamper", "fault"),
    [
        (changed, "line 1: the line was changed"),
        (dropped, "line 3: a line before this one was dropped, moved or changed"),
    ],
)
def test_damaged_journal_tells_its_fault_and_nothing_else(
    home: Home,
    tamper: Callable[[bytes], bytes],
    fault: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(4):
        home.consent()
    whole = call("journal", "--home", str(home.path))
    assert (whole.exit_code, "4 lines, 0 bytes" in whole.stdout) == (0, True)
    home.settings.journal.write_bytes(tamper(home.settings.journal.read_bytes()))
    capsys.readouterr()
    assert run(["site", "journal", "--home", str(home.path)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"Error: the journal is not whole: {fault}. To do: restore")
    assert told.err.count("\n") == 1
    capsys.readouterr()
    assert run(["site", "run", "--home", str(home.path)]) == 1
    assert capsys.readouterr().err == told.err


@pytest.mark.parametrize("place", ["option", "site.toml"])
@pytest.mark.parametrize("there", [True, False])
def test_device_that_is_not_there_is_told_before_the_steward_listens(
    home: Home, monkeypatch: pytest.MonkeyPatch, place: str, *, there: bool
) -> None:
    import torch

    listened: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda _: None)
    monkeypatch.setattr(
        "vitrael.client.site.service.serve", lambda settings, *_, **__: listened.append(settings)
    )
    options = ["--device", "cuda"] if place == "option" else []
    if place == "site.toml":
        text = 'name = "north"\n[performance]\ndevice = "cuda"\n'
        (home.path / "site.toml").write_text(text)
    if there:
        assert call("run", "--home", str(home.path), *options).exit_code == 0
    else:
        with pytest.raises(ConfigError, match="finds no CUDA device") as caught:
            call("run", "--home", str(home.path), *options)
        assert caught.value.exit_code == 3
        assert not home.settings.store.exists()
    assert len(listened) == there
