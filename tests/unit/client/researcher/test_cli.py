from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click import Command
from click.testing import CliRunner, Result

from vitrael.client.researcher.cli import pull, verify
from vitrael.core.cli import run
from vitrael.core.errors import ConfigError, UsageError, VerificationError
from vitrael.privacy.release.catalogue import publish_recall
from vitrael.privacy.release.manifest import Reference

Releases = Any  # ReleaseFactory of tests/unit/conftest.py
WebServer = Any  # of conftest.py


def _run(command: Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_pull_then_verify_tell_who_signed(web: WebServer, trust_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    done = _run(pull, "brain-demo@1", "--from", web.url, "--trust", trust_file, "--to", mine)
    assert done.exit_code == 0, done.output
    assert "signed by  harbour, north, valley" in done.stdout
    assert "NOT FOR PUBLICATION" in done.stdout
    assert "downloading: 100%" in done.stderr
    done = _run(verify, mine, "--trust", trust_file, "--from", web.url)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"brain-demo@1 verifies: {mine}")


def test_json_is_one_object_on_stdout(catalogue: Path, trust_file: Path, tmp_path: Path) -> None:
    arguments = ("brain-demo@1", "--from", catalogue, "--trust", trust_file, "--to", tmp_path / "m")
    dry = json.loads(_run(pull, *arguments, "--dry-run", "--json").stdout)
    assert dry["dry_run"] is True
    assert not (tmp_path / "m").exists()
    pulled = json.loads(_run(pull, *arguments, "--json").stdout)
    verified = json.loads(_run(verify, tmp_path / "m", "--trust", trust_file, "--json").stdout)
    assert pulled == verified
    assert verified["verified"] is True
    assert verified["publishable"] is False
    assert verified["signed_by"] == ["harbour", "north", "valley"]
    assert verified["manifest"] == dry["manifest"]
    assert verified["size_bytes"] == dry["size_bytes"]


def test_default_folder_is_name_and_version(
    catalogue: Path, trust_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert _run(pull, "brain-demo@1", "--from", catalogue, "--trust", trust_file).exit_code == 0
    assert (tmp_path / "work" / "brain-demo-1" / "manifest.json").is_file()


def test_refusal_comes_through_with_its_own_message(release: Path, trust_file: Path) -> None:
    (release / "card.md").write_text("changed")
    done = _run(verify, release, "--trust", trust_file)
    assert isinstance(done.exception, VerificationError)
    assert done.exception.what == "card.md was changed"


def test_verify_asks_the_catalogue_for_a_recall(
    release: Path, catalogue: Path, trust_file: Path, releases: Releases
) -> None:
    arguments = (release, "--trust", trust_file, "--from", catalogue)
    assert _run(verify, *arguments).exit_code == 0
    recall = releases.recall(release)
    publish_recall(catalogue, Reference("brain-demo", 1), recall=recall, trust=releases.trust)
    done = _run(verify, *arguments)
    assert isinstance(done.exception, VerificationError)
    assert "was recalled on" in done.exception.what
    assert _run(verify, release, "--trust", trust_file).exit_code == 0


def test_verify_refuses_another_release_than_expected(release: Path, trust_file: Path) -> None:
    done = _run(verify, release, "--trust", trust_file, "--expect", "brain-demo@2")
    assert isinstance(done.exception, VerificationError)
    assert "older version" in done.exception.what


@pytest.mark.parametrize("name", ["brain-demo", "brain-demo@", "@1", "a@0", "a@1 ", "../a@1"])
def test_name_that_is_none_is_a_usage_error(catalogue: Path, trust_file: Path, name: str) -> None:
    done = _run(pull, name, "--from", catalogue, "--trust", trust_file)
    assert isinstance(done.exception, UsageError)


def test_missing_trust_file_is_a_config_error(release: Path, tmp_path: Path) -> None:
    done = _run(verify, release, "--trust", tmp_path / "none.json")
    assert isinstance(done.exception, ConfigError)


def test_codes_of_what_is_missing_are_those_of_the_list(
    catalogue: Path, trust_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    known, here = f"--from={catalogue}", f"--trust={trust_file}"
    for code, arguments in (
        (0, ("pull", "brain-demo@1", known, here, "--dry-run")),
        (2, ("pull", "brain-demo@9", known, here)),
        (2, ("pull", "brain-demo@1", "--from=nowhere", here)),
        (5, ("pull", "brain-demo@1", "--from=empty", here)),
        (3, ("pull", "brain-demo@1", known, "--trust=none.json")),
        (3, ("pull", "brain-demo@1", known, "--trust=bad.json")),
        (4, ("verify", "nowhere", here)),
    ):
        assert run(arguments) == code, arguments


@pytest.mark.parametrize("command", [pull, verify])
def test_help_shows_examples(command: Command) -> None:
    assert f"vitrael {command.name} brain-demo" in " ".join(_run(command, "--help").stdout.split())


def test_verifying_and_pulling_reach_no_heavy_package(
    catalogue: Path, trust_file: Path, tmp_path: Path
) -> None:
    heavy = ("torch", "flwr", "mlflow", "sqlalchemy", "fastapi", "monai")
    mine, root, trust = map(str, (tmp_path / "mine", catalogue, trust_file))
    code = (
        "import sys\n"
        "from vitrael.client.researcher.cli import pull, verify\n"
        "light = [n for n in ('numpy', 'pydantic', 'httpx', 'nibabel') if n in sys.modules]\n"
        f"pull.main(['brain-demo@1', '--from', {root!r}, '--trust', {trust!r}, '--to', {mine!r}],"
        " standalone_mode=False)\n"
        f"verify.main([{mine!r}, '--trust', {trust!r}], standalone_mode=False)\n"
        f"heavy = [n for n in {heavy!r} if n in sys.modules]\n"
        "print(light, heavy, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.count("brain-demo@1 verifies") == 2
    assert done.stderr.endswith("[] []\n")
