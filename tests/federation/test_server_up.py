"""`vitrael server up` over real processes: it heals, it ends in order, it leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.factories.enrollment import found
from vitrael.server.board import ServerState, read_server_state
from vitrael.server.config import ServerSettings
from vitrael.server.federation.processes import SERVER_MARK, is_alive

pytestmark = [pytest.mark.federation]

CHILDREN = {"superlink", "superexec", "enrollment"}
ONE_FALL = {"enrollment": 1}


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return found(tmp_path / "home")


def command(settings: ServerSettings) -> list[str]:
    program = Path(sys.executable).parent / "vitrael"
    return [str(program), "server", "up", "--home", str(settings.home)]


@contextmanager
def running(settings: ServerSettings) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command(settings), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(settings, lambda state: state.pid == process.pid and is_up(settings, state))
            yield process
        finally:
            process.kill()


def is_up(settings: ServerSettings, state: ServerState) -> bool:
    up = {child.name for child in state.children if child.status == "running"}
    return not state.trouble and up == CHILDREN and health(settings, "enrollment") == 200


def falls(state: ServerState) -> dict[str, int]:
    return {child.name: child.falls for child in state.children}


def health(settings: ServerSettings, port: str) -> int:
    number = settings.document.ports.model_dump()[port]
    with httpx.Client(trust_env=False, timeout=5) as client:
        try:
            return client.get(f"http://127.0.0.1:{number}/health").status_code
        except httpx.HTTPError:
            return 0


def wait_for(settings: ServerSettings, true: Callable[[ServerState], bool]) -> ServerState:
    until = time.monotonic() + 90
    while True:
        state = read_server_state(settings.home)
        if state is not None and true(state):
            return state
        assert time.monotonic() < until, state
        time.sleep(0.1)


def pids(settings: ServerSettings) -> dict[str, int]:
    entries = json.loads((settings.home / "server-processes.json").read_bytes())
    return {name: int(entry["pid"]) for name, entry in entries.items()}


def marked(settings: ServerSettings) -> list[list[str]]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(SERVER_MARK) == str(settings.home):
                found.append(process.cmdline())
        except psutil.Error:
            continue
    return found


def test_child_that_was_killed_comes_back_and_sigterm_ends_all_in_order(
    settings: ServerSettings,
) -> None:
    with running(settings) as process:
        assert health(settings, "metrics") == 200
        assert marked(settings) != []
        before = pids(settings)
        os.kill(before["enrollment"], signal.SIGKILL)
        wait_for(settings, lambda state: falls(state) == {**dict.fromkeys(CHILDREN, 0), **ONE_FALL})
        wait_for(settings, lambda state: is_up(settings, state))
        after = pids(settings)
        assert {name for name in CHILDREN if after[name] != before[name]} == ONE_FALL.keys()
        assert is_alive(after["enrollment"])
        second = subprocess.run(
            command(settings), capture_output=True, text=True, check=False, timeout=60
        )
        assert second.returncode == 2
        assert "another coordinator runs" in second.stderr
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert marked(settings) == []
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert events[0] == "the coordinator starts"
    assert "a child was started again" in events
    assert events[-1] == "the coordinator has ended"
    state = read_server_state(settings.home)
    assert state is not None
    assert state.children == ()
    assert (settings.home / "state.json").stat().st_mode & 0o077 == 0


def test_coordinator_that_was_killed_leaves_nothing_to_the_next(settings: ServerSettings) -> None:
    with running(settings) as process:
        orphans = list(pids(settings).values())
        process.kill()
    assert any(is_alive(pid) for pid in orphans)
    with running(settings) as process:
        assert not any(is_alive(pid) for pid in orphans)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert marked(settings) == []


def test_impatient_second_signal_ends_all_at_once(settings: ServerSettings) -> None:
    with running(settings) as process:
        os.kill(pids(settings)["superlink"], signal.SIGSTOP)  # it would obey no SIGTERM
        process.send_signal(signal.SIGTERM)
        wait = time.monotonic() + 30
        while is_alive(pids(settings)["enrollment"]):  # the first signal is at work
            assert time.monotonic() < wait
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert marked(settings) == []
