"""Folders that a command is given are looked at first: nothing is made for a mistyped one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.factories.intake import files_below, make_home, take_in, write_brains
from vitrael.core.cli import run

BRAIN = ("--recipe", "brain-t1", "--grid", "16x16x16", "--spacing-mm", "12")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_brains(tmp_path / "scans")
    return tmp_path / "scans"


def wrong_path(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nope"
    if kind == "a file":
        path.touch()
    elif kind == "closed":
        path.mkdir()
        may = os.access

        def close(asked: Any, mode: int, **options: Any) -> bool:
            return os.fspath(asked) != str(path) and may(asked, mode, **options)

        monkeypatch.setattr(os, "access", close)
    return path


@pytest.mark.parametrize("command", ["ingest", "deidentify"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [("nothing", "does not exist"), ("a file", "is a file"), ("closed", "is not readable")],
)
def test_path_that_is_no_folder_is_told_before_a_home_is_made(
    command: str,
    kind: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, home = wrong_path(kind, tmp_path, monkeypatch), tmp_path / "home"
    rest = BRAIN if command == "ingest" else (str(tmp_path / "out"),)
    code = run(["site", command, str(path), *rest, "--home", str(home), "--json"])
    out, err = capsys.readouterr()
    assert code == json.loads(out)["error"]["exit_code"] == 2
    assert f"{path}' {said}" in err
    assert not home.exists()


def test_mistyped_path_is_not_taken_for_another_folder(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(tmp_path / "home")
    take_in(scans, home)
    before = files_below(home.folder)
    assert run(["site", "ingest", f"{scans}x", *BRAIN, "--home", str(home.folder)]) == 2
    said = capsys.readouterr().err
    assert ("does not exist" in said, "--replace" in said) == (True, False)
    assert files_below(home.folder) == before


@pytest.mark.parametrize(
    ("command", "home", "said"),
    [
        ("ingest PATH", "PATH/home", "home may not lie in the folder of the scans"),
        ("ingest PATH", "PATH", "home may not lie in the folder of the scans"),
        ("deidentify PATH OUT", "PATH/home", "home may not lie in the folder of the scans"),
        ("deidentify PATH PATH/out", "HOME", "copies may not lie in the folder of the scans"),
        ("deidentify PATH PATH", "HOME", "copies may not lie in the folder of the scans"),
        ("deidentify PATH HOME/out", "HOME", "copies may not lie in the site's home"),
        ("deidentify PATH HOME", "HOME", "copies may not lie in the site's home"),
        ("deidentify PATH LINK/out", "HOME", "copies may not lie in the site's home"),
    ],
)
def test_scans_copies_and_home_lie_apart(
    command: str,
    home: str,
    said: str,
    scans: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"PATH": scans, "HOME": tmp_path / "home", "OUT": tmp_path / "out"}
    (tmp_path / "link").symlink_to(tmp_path / "home")
    places["LINK"] = tmp_path / "link"

    def fill(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, str(path))
        return text

    options = BRAIN if command.startswith("ingest") else ()
    assert run(["site", *fill(command).split(), "--home", fill(home), *options]) == 2
    assert said in capsys.readouterr().err
    assert len(files_below(tmp_path)) == 3, "nothing was made"


@pytest.mark.parametrize("command", ["consent study.toml", "run", "journal"])
def test_home_that_is_not_enrolled_is_told_as_such(
    command: str, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = make_home(tmp_path / "home")
    take_in(scans, home)
    assert run(["site", *command.split(), "--home", str(home.folder)]) == 2
    said = capsys.readouterr().err
    assert f"the home {home.folder} is not enrolled yet: it holds no site.toml" in said
    assert run(["site", *command.split(), "--home", str(scans)]) == 2
    assert f"{scans} is no home of a site" in capsys.readouterr().err, "control"


def test_help_names_the_intake_first_and_where_a_home_is_looked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["site", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.index("Take scans in") < said.index("consent")
    for command in ("ingest", "withdraw", "cache ls", "cache gc", "deidentify", "run", "journal"):
        run(["site", *command.split(), "--help"])
        said = capsys.readouterr().out
        assert "VITRAEL_SITE_HOME" in said
        assert "a new one is made" not in said
