from __future__ import annotations

import ast
import json
import re
import threading
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vitrael.core.cli import vitrael
from vitrael.core.doctor import (
    Check,
    Finding,
    check_disk,
    check_python,
    days_left,
    doctor,
    examine,
    exit_code,
    run_checks,
)
from vitrael.core.errors import AuthError, NetworkError

GIB = 1 << 30


def raising(error: Exception) -> Check:
    def run() -> Finding:
        raise error

    return Check("x", run)


def test_an_error_is_a_failure_with_its_remedy() -> None:
    network, auth, broken = run_checks(
        [
            raising(NetworkError("no way", why="cut", fix="mend it")),
            raising(AuthError("no key")),
            raising(ValueError("DOE^JANE")),
        ]
    )
    assert network == Finding("fail", "no way: cut", "mend it", network=True)
    assert auth == Finding("fail", "no key", "")
    assert broken.sentence == "the check broke: ValueError"


def test_a_file_of_another_user_is_no_broken_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (closed,) = run_checks([raising(PermissionError(13, "Permission denied"))])
    assert "vitrael-steward" in closed.remedy

    def find(_home: Path, _now: datetime) -> list[Check]:
        raise PermissionError

    monkeypatch.setattr("vitrael.core.doctor.load_offered", lambda _: [find])
    found = dict(examine(tmp_path, now=datetime(2031, 5, 1, tzinfo=UTC)))
    assert found["home"] == closed


def test_every_command_that_a_remedy_names_is_there(root: Path) -> None:
    named = set()
    for name in ("client/site/checks.py", "server/checks.py", "core/doctor.py", "core/reach.py"):
        named |= set(re.findall(r"`?vitrael ((?:site|server|audit) [a-z -]+)", read(root / name)))
    assert len(named) > 8
    assert [words for words in named if not is_command(words)] == []
    assert not is_command("server proxy again")  # the control


def read(path: Path) -> str:
    nodes = ast.walk(ast.parse(path.read_text()))
    return "\n".join(str(node.value) for node in nodes if isinstance(node, ast.Constant))


def is_command(words: str) -> bool:
    context = click.Context(vitrael)
    command: click.Command = vitrael
    for word in words.split():
        if not isinstance(command, click.Group):
            break
        found = command.get_command(context, word)
        if found is None:
            return False
        command = found
    return not isinstance(command, click.Group)


def test_a_check_that_hangs_is_not_waited_for_and_hides_no_other() -> None:
    never = threading.Event()

    def hang() -> Finding:
        never.wait(60)
        return Finding("ok", "late")

    found = run_checks([Check("a", hang), Check("b", lambda: Finding("ok", "b"))], patience_s=1.0)
    never.set()
    assert [one.level for one in found] == ["fail", "ok"]
    assert "no answer within" in found[0].sentence


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([Finding("ok", ""), Finding("warn", "")], 0),
        ([Finding("fail", "", network=True), Finding("warn", "")], 5),
        ([Finding("fail", "", network=True), Finding("fail", "")], 1),
    ],
)
def test_the_exit_code_says_whether_the_network_alone_is_at_fault(
    findings: list[Finding], code: int
) -> None:
    assert exit_code(findings) == code


@pytest.mark.parametrize(("free_gib", "level"), [(1, "fail"), (10, "warn"), (100, "ok")])
def test_a_disk_that_runs_full_is_told_before_it_is(
    tmp_path: Path, free_gib: int, level: str
) -> None:
    assert check_disk(tmp_path / "not" / "yet", free_bytes=free_gib * GIB).level == level


@pytest.mark.parametrize(("version", "level"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok")])
def test_an_old_python_fails(version: tuple[int, ...], level: str) -> None:
    assert check_python(version).level == level


@pytest.mark.parametrize(
    ("days", "level"), [(-3.0, "fail"), (0.0, "fail"), (5, "warn"), (40, "ok")]
)
def test_what_expires_is_told_in_time(days: float, level: str) -> None:
    finding = days_left("the certificate", days, soon=30, remedy="renew it")
    assert (finding.level, bool(finding.remedy)) == (level, level != "ok")


def test_days_are_told_as_the_lists_of_sites_count_them() -> None:
    assert "holds for 824 days" in days_left("it", 824.9, soon=30, remedy="").sentence


def test_a_machine_without_a_home_can_be_asked() -> None:
    said = CliRunner().invoke(doctor, ["--json"], standalone_mode=False)
    told = json.loads(said.output)
    assert [one["name"] for one in told["findings"]] == ["python", "version", "disk"]
    assert told["exit_code"] == said.return_value


def test_a_folder_that_is_no_home_fails(tmp_path: Path) -> None:
    said = CliRunner().invoke(doctor, ["--home", str(tmp_path)], standalone_mode=False)
    assert said.return_value == 1
    assert "no home of a site or coordinator" in said.output
    assert "To do:" in said.output
