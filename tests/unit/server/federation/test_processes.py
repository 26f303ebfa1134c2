from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from vitrael.core.errors import NetworkError, ProcessError
from vitrael.server.federation.processes import (
    HOME_MARK,
    SERVER_MARK,
    ProcessGroup,
    check_ports,
    child_environment,
    end_leftovers,
    free_ports,
    is_alive,
)

SLEEPER = "import time; time.sleep(600)"
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def until(true: Callable[[], bool], *, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessGroup]:
    monkeypatch.setattr("vitrael.server.federation.processes._GRACE_S", 0.3)
    group = ProcessGroup(tmp_path)
    yield group
    group.end()


def start(group: ProcessGroup, name: str, code: str, *, mark: bool = True) -> int:
    environment = {"PATH": os.defpath} | ({HOME_MARK: str(group.home)} if mark else {})
    log = group.home / "logs" / "child.log"
    return group.start(name, (sys.executable, "-c", code), environment=environment, log=log).pid


def test_nobody_is_called_and_nothing_is_installed(tmp_path: Path) -> None:
    base = {"PATH": "/usr/bin", "FLWR_TELEMETRY_ENABLED": "1", "https_proxy": "http://proxy:1"}
    child = child_environment(base, home=tmp_path, flower_home=tmp_path / "flower")
    assert child["FLWR_TELEMETRY_ENABLED"] == "0"
    assert child["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert child["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert child["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert child["FLWR_HOME"] == str(tmp_path / "flower")
    assert child["NO_PROXY"] == child["no_proxy"] == "127.0.0.1,localhost"
    assert child["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert child["OMP_NUM_THREADS"] == "1"


def test_flower_reads_the_switches_as_we_set_them(tmp_path: Path) -> None:
    code = (
        "import flwr.supercore.telemetry as t, flwr.supercore.utils as u;"
        "from flwr.superlink.cli.flower_superlink import _runtime_dependency_install_default as d;"
        "print(t.FLWR_TELEMETRY_ENABLED, u.get_flwr_home(), d())"
    )
    base = {"HOME": str(tmp_path / "nobody")}
    environment = child_environment(base, home=tmp_path, flower_home=tmp_path / "f")
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["0", str(tmp_path / "f"), "False"]
    assert not (tmp_path / "nobody").exists()


def test_a_port_in_use_is_named_with_a_remedy() -> None:
    (free,) = free_ports(1)
    check_ports([free])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NetworkError, match=f"port {port} .* is in use.*another port"):
            check_ports([free, port])


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20


def test_a_process_that_ended_is_named_with_its_signal(group: ProcessGroup) -> None:
    start(group, "SuperLink", SLEEPER)
    pid = start(group, "site north: steward", SLEEPER)
    group.check()
    os.kill(pid, signal.SIGKILL)
    group.children["site north: steward"].process.wait()
    with pytest.raises(ProcessError, match=r"^site north: steward ended \(signal 9\)"):
        group.check()


def test_a_process_that_failed_is_named_with_its_last_words(group: ProcessGroup) -> None:
    start(group, "SuperLink", "raise SystemExit('\\x1b[91mno such file\\x1b[0m')")
    group.children["SuperLink"].process.wait()
    with pytest.raises(ProcessError, match=r"SuperLink ended \(exit code 1\): no such file"):
        group.check()


def test_a_process_that_tells_a_remedy_is_not_told_with_a_second_one(group: ProcessGroup) -> None:
    said = "Error: another steward runs: it holds the lock. To do: end it first."
    start(group, "site north: steward", f"raise SystemExit('{said}')")
    group.children["site north: steward"].process.wait()
    with pytest.raises(ProcessError) as caught:
        group.check()
    assert str(caught.value) == (
        "site north: steward ended (exit code 1): another steward runs: it holds the lock. "
        "To do: end it first, then resume."
    )
    start(group, "site north: steward", "raise SystemExit('it fell')")  # the control
    group.children["site north: steward"].process.wait()
    with pytest.raises(ProcessError, match=r"it fell\. To do: read .*child.log, then resume"):
        group.check()


def test_a_program_that_is_missing_is_named(group: ProcessGroup, tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="site a: steward cannot be started"):
        group.start("site a: steward", ("/no/such",), environment={}, log=tmp_path / "log")


def test_the_end_reaches_the_stubborn_and_their_children(group: ProcessGroup) -> None:
    pid = start(group, "stubborn", STUBBORN)
    log = group.home / "logs" / "child.log"
    assert until(lambda: bool(log.read_text().strip()))
    grandchild = int(log.read_text())
    assert is_alive(pid)
    assert is_alive(grandchild)
    group.end()
    assert not is_alive(pid)
    assert until(lambda: not is_alive(grandchild))


def test_a_restart_runs_the_same_command_in_a_new_process(group: ProcessGroup) -> None:
    first = start(group, "x", "pass")
    group.children["x"].process.wait()
    again = group.restart(group.children["x"])
    assert again.pid != first
    assert group.children["x"] is again
    assert again.command == (sys.executable, "-c", "pass")


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts programs that carry no mark of a home; what is left of them ends with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(name: str, *arguments: str) -> int:
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        if not script.exists():  # the one that began before may not have read it yet
            script.write_text(SLEEPER)
        process = subprocess.Popen([sys.executable, str(script), *arguments], env={})
        processes.append(process)
        assert until(lambda: str(script) in " ".join(psutil.Process(process.pid).cmdline()))
        return process.pid

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_home_whose_path_begins_alike_is_another_one(
    bystander: Callable[..., int], tmp_path: Path
) -> None:
    links = {
        name: bystander("flower-superlink", "--database", str(tmp_path / name / "flower/x.sqlite"))
        for name in ("1", "10", "1-2", "1.old")
    }
    node = bystander("flower-supernode", "--node-config", f'home="{tmp_path}/10/sites/a" site="a"')
    below = bystander("flower-supernode", "--node-config", f'home="/x{tmp_path}/1" site="a"')
    assert end_leftovers(tmp_path / "1") == [links["1"]]
    assert all(is_alive(links[name]) for name in ("10", "1-2", "1.old"))
    assert is_alive(below)
    assert sorted(end_leftovers(tmp_path / "10")) == sorted([links["10"], node])


@contextmanager
def killed_at_the_end(*commands: tuple[str, dict[str, str]]) -> Iterator[list[int]]:
    """Sleepers under these titles and environments, once each can be seen as what it is."""
    processes = [
        subprocess.Popen([title, "-c", SLEEPER], executable=sys.executable, env=env)
        for title, env in commands
    ]
    try:
        for process, (title, env) in zip(processes, commands, strict=True):
            seen = psutil.Process(process.pid)
            assert until(lambda seen=seen, title=title: seen.cmdline()[:1] == [title])
            assert until(lambda seen=seen, env=env: env.items() <= seen.environ().items())
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_nginx_that_was_left_behind_is_found_by_the_title_that_it_gives_itself(
    tmp_path: Path,
) -> None:
    def titled(home: str) -> tuple[str, dict[str, str]]:
        title = f"nginx: master process nginx -e {tmp_path}/{home}/e.log -c x -g daemon off;"
        return title, {}

    with killed_at_the_end(titled("1"), titled("10")) as (ours, other):
        assert end_leftovers(tmp_path / "1") == [ours]
        assert is_alive(other)


def test_coordinator_leaves_what_is_a_rehearsal_s_alone(tmp_path: Path) -> None:
    marks = ({HOME_MARK: str(tmp_path)}, {SERVER_MARK: str(tmp_path)})
    with killed_at_the_end(*((sys.executable, mark) for mark in marks)) as (site, server):
        assert end_leftovers(tmp_path, mark=SERVER_MARK) == [server]
        assert end_leftovers(tmp_path) == [site]  # the control


def test_shell_that_exports_the_home_for_its_commands_is_left_alone(tmp_path: Path) -> None:
    told = {"VITRAEL_SERVER_HOME": str(tmp_path)}  # as `vitrael doctor` takes it
    with killed_at_the_end((sys.executable, told)) as (shell,):
        assert end_leftovers(tmp_path, mark=SERVER_MARK) == []
        assert is_alive(shell)


def test_program_that_only_reads_in_a_home_is_left_alone(
    bystander: Callable[..., int], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    reader = bystander("tail", "-f", str(home / "logs" / "north-courier.log"))
    log = home / "logs" / "flower-superlink.log"
    log.parent.mkdir(parents=True)
    log.write_text(SLEEPER)
    editor = subprocess.Popen([sys.executable, str(log)], env={})  # as ``less FILE`` would stand
    assert end_leftovers(home) == []
    assert is_alive(reader)
    assert is_alive(editor.pid)
    editor.kill()
    editor.wait()


def test_recorded_id_counts_for_the_recorded_command_alone(
    bystander: Callable[..., int], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    steward = bystander("steward", "--home", str(home / "sites" / "north"))
    reused = bystander("pager", str(home / "logs" / "steward.log"))
    command = ["unshare", "-n", "steward", "--home", str(home / "sites" / "north")]
    entries = {
        name: {"pid": pid, "command": command} for name, pid in (("a", steward), ("b", reused))
    }
    home.mkdir()
    (home / "processes.json").write_text(json.dumps(entries))
    assert end_leftovers(home) == [steward]
    assert is_alive(reused)


def test_what_a_killed_parent_left_is_ended_and_nothing_else(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    pids = {}
    processes = []
    for home in (mine, other):
        process = subprocess.Popen(
            [sys.executable, "-c", SLEEPER], env={HOME_MARK: str(home)}, start_new_session=True
        )
        processes.append(process)
        pids[home] = process.pid
    try:
        assert until(lambda: is_alive(pids[mine]) and end_leftovers(tmp_path) == [])
        assert until(lambda: pids[mine] in end_leftovers(mine))
        assert not is_alive(pids[mine])
        assert is_alive(pids[other])
    finally:
        for process in processes:
            process.kill()
            process.wait()
