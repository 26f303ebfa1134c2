"""The root command: lazy, one sentence for each failure, documented exit codes."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import click
import pytest

from vitrael.core import cli
from vitrael.core.errors import StudyError, VitraelError


@pytest.fixture
def command_that(monkeypatch: pytest.MonkeyPatch) -> object:
    """Return a function that puts a failing or returning body behind ``vitrael study``."""

    def put(body: object) -> None:
        @click.command("study")
        @click.option("--json", "as_json", is_flag=True)
        def study(*, as_json: bool) -> object:
            del as_json
            if isinstance(body, BaseException):
                raise body
            return body

        monkeypatch.setattr(cli, "load_command", lambda _name: study)

    return put


def run(put: object, body: object, *arguments: str) -> int:
    assert callable(put)
    put(body)
    return cli.run(["study", *arguments])


def test_table_and_entry_points_name_the_same_commands(root: Path) -> None:
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    listed = [name for commands in cli.COMMANDS.values() for name in commands]
    assert sorted(listed) == sorted(document["project"]["entry-points"][cli.ENTRY_POINTS])


def test_help_shows_every_command_without_loading_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(cli, "load_command", loaded.append)
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for commands in cli.COMMANDS.values() for name in commands)
    assert loaded == []


def test_version_is_that_of_the_project(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"vitrael {document['project']['version']}\n"


@pytest.mark.parametrize(("outcome", "code"), [(None, 0), (0, 0), (6, 6), (7, 7)])
def test_command_returns_its_exit_code(
    outcome: int | None, code: int, command_that: object
) -> None:
    assert run(command_that, outcome) == code


def test_error_is_one_sentence_on_stderr_with_its_exit_code(
    command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    error = StudyError("study a.toml: key", why="it is unknown", fix="remove it")
    assert run(command_that, error) == 3
    shown = capsys.readouterr()
    assert shown.err == "Error: study a.toml: key: it is unknown. To do: remove it.\n"
    assert shown.out == ""


def test_error_is_json_on_stdout_when_asked(
    command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    error = StudyError("study a.toml: key", why="it is unknown", fix="remove it")
    assert run(command_that, error, "--json") == 3
    assert json.loads(capsys.readouterr().out)["error"] == {
        "kind": "StudyError",
        "what": "study a.toml: key",
        "why": "it is unknown",
        "fix": "remove it",
        "exit_code": 3,
    }


def test_foreign_exception_is_told_without_its_text(
    command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_that, RuntimeError("patient 4711")) == 1
    shown = capsys.readouterr().err
    assert "RuntimeError" in shown
    assert "4711" not in shown
    assert "Traceback" not in shown


def test_debug_shows_the_traceback(
    command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(command_that)
    command_that(RuntimeError("where"))
    assert cli.run(["--debug", "study"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_refusal_of_the_system_is_told_without_a_file_name(
    command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_that, OSError(28, "No space left on device", "/scans/4711.nii")) == 1
    shown = capsys.readouterr().err
    assert "No space left on device" in shown
    assert "4711" not in shown


@pytest.mark.parametrize(("module", "extra"), [("torch.nn", "site"), ("mlflow", "server")])
def test_missing_extra_is_named(
    module: str, extra: str, command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ModuleNotFoundError(f"No module named '{module}'", name=module)
    assert run(command_that, error) == 3
    told = capsys.readouterr().err
    assert f"pip install -c deploy/constraints.txt '.[{extra}]'" in told
    assert f"'FILE.whl[{extra}]'" in told


def test_no_missing_extra_sends_to_a_public_index(root: Path) -> None:
    assert (root / "deploy" / "constraints.txt").is_file()
    sources = [
        path for floor in ("core", "client", "server") for path in (root / floor).rglob("*.py")
    ]
    asks = re.compile(r"pip install '?vitrael\b")
    assert asks.search("pip install 'vitrael[site]'")
    assert [path for path in sources if asks.search(path.read_text(encoding="utf-8"))] == []


def test_missing_module_of_ours_is_a_defect() -> None:
    told = cli.explain(ModuleNotFoundError("no", name="vitrael.core.nothing"))
    assert type(told) is VitraelError


def test_extras_are_those_of_the_project(root: Path) -> None:
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = document["project"]["optional-dependencies"]
    names = {"PIL": "pillow"}
    for module, extra in cli.EXTRAS.items():
        name = names.get(module, module.replace("_", "-"))
        assert any(line.startswith(name) for line in extras[extra]), module


def test_interruption_ends_with_130(
    command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_that, KeyboardInterrupt()) == 130
    assert "Interrupted." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (KeyboardInterrupt, 130, "Interrupted."),
        (EOFError, 1, "no terminal to answer it. To do: run it in a terminal, or give --yes"),
    ],
)
def test_ctrl_c_at_a_question_ends_with_130_and_no_answer_with_1(
    answer: type[BaseException],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ask(*_: object) -> str:
        raise answer

    @click.command("study")
    def study() -> None:
        click.confirm("Sign this consent?", abort=True, err=True)

    monkeypatch.setattr("click.termui.visible_prompt_func", ask)
    monkeypatch.setattr(cli, "load_command", lambda _name: study)
    assert cli.run(["study"]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (click.Abort(), {"what": "Nothing was done", "exit_code": 1}),
        (KeyboardInterrupt(), {"what": "Interrupted", "exit_code": 130}),
        (VitraelError("it broke"), {"what": "it broke", "exit_code": 1}),
        (VitraelError("it broke", fix="mend"), {"what": "it broke", "fix": "mend", "exit_code": 1}),
    ],
)
def test_json_tells_every_end_and_no_empty_part(
    body: BaseException,
    error: dict[str, object],
    command_that: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(command_that, body, "--json") == error["exit_code"]
    assert json.loads(capsys.readouterr().out)["error"] == {"kind": "VitraelError", **error}
    assert run(command_that, body) == error["exit_code"]
    assert capsys.readouterr().out == ""


def test_declined_question_ends_with_1(command_that: object) -> None:
    assert run(command_that, click.Abort()) == 1


def test_unknown_command_and_option_are_usage_errors(
    command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["nothing"]) == 2
    assert run(command_that, None, "--nothing") == 2
    assert "No such command 'nothing'" in capsys.readouterr().err


def test_usage_error_is_json_when_asked(
    command_that: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command_that, None, "--json", "--nothing") == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_command_outside_the_table_is_never_loaded() -> None:
    assert cli.vitrael.get_command(click.Context(cli.vitrael), "rogue") is None


def test_entry_point_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "ENTRY_POINTS", "vitrael.nothing")
    with pytest.raises(VitraelError, match="install vitrael again"):
        cli.load_command("study")
