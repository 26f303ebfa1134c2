"""The command that runs the courier: which processes, one at a time, and their page."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import pytest
from click.testing import CliRunner, Result

from vitrael.client.site.courier import supervisor
from vitrael.client.site.courier.supervisor import Courier, Watch
from vitrael.client.site.courier_cli import courier
from vitrael.client.site.life import note_of_life
from vitrael.core.errors import ProcessError
from vitrael.server.federation.processes import free_ports

if TYPE_CHECKING:
    from vitrael.client.site.courier.children import Child


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text('name = "north"\naddress = "coordinator.test:443"\n')
    return tmp_path


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Courier]:
    """Let the courier only be looked at, and be ended as SIGTERM ends it."""
    seen: list[Courier] = []

    def run(self: Courier, *, now: datetime) -> None:
        assert now.tzinfo is not None
        seen.append(self)
        os.kill(os.getpid(), signal.SIGTERM)
        assert self.stop.wait(10)

    monkeypatch.setattr(supervisor.Courier, "run", run)
    return seen


def call(home: Path, *words: str) -> Result:
    return CliRunner().invoke(courier, ["--home", str(home), *words], catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "roles"),
    [((), ("node", "executor")), (("--only", "node"), ("node",))],
    ids=["both", "node"],
)
def test_it_runs_what_it_is_told_until_sigterm(
    home: Path, seen: list[Courier], words: tuple[str, ...], roles: tuple[str, ...]
) -> None:
    assert call(home, *words).exit_code == 0
    assert seen[0].roles == roles
    assert {path.name for path in (home / "flower").iterdir()} == set(roles)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (home / "flower" / "node").iterdir())


def test_a_second_courier_of_a_home_is_refused(home: Path, seen: list[Courier]) -> None:
    (home / "flower" / "node").mkdir(parents=True)
    with (home / "flower" / "node" / "courier.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ProcessError, match="another courier of site north runs"):
            call(home)
        assert call(home, "--only", "executor").exit_code == 0
    assert [one.roles for one in seen] == [("executor",)]


Answers = tuple[httpx.Response, httpx.Response]


@pytest.fixture
def asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answers]:
    """Return what starts the command with some words and gives what its two pages say."""
    (port,) = free_ports(1)
    with (home / "site.toml").open("a") as file:
        file.write(f"[network]\nmetrics_port = {port}\n")
    answers: list[httpx.Response] = []

    def run(self: Courier, *, now: datetime) -> None:
        del now
        self.is_connected = True
        self.watches = {
            role: Watch(child=cast("Child", Running()), starts=1) for role in self.roles
        }
        with httpx.Client(trust_env=False, base_url=f"http://127.0.0.1:{port}") as client:
            answers.extend(client.get(page) for page in ("/health", "/metrics"))

    def ask(*words: str) -> Answers:
        answers.clear()
        call(home, *words)
        return answers[0], answers[1]

    monkeypatch.setattr(supervisor.Courier, "run", run)
    return ask


class Running:
    """A child that runs."""

    pid = 1

    @staticmethod
    def exit_code() -> None:
        return None


def test_the_page_tells_of_courier_and_steward(home: Path, asked: Callable[..., Answers]) -> None:
    (home / "metrics.prom").write_text("vitrael_site_journal_lines 7.0\n")
    with note_of_life(home / "steward.json", {"pid": os.getpid()}):
        health, metrics = asked()
    assert health.status_code == 200
    assert health.json() == {
        "status": "ok",
        **dict.fromkeys(("node", "executor", "connected", "steward"), True),
    }
    assert "vitrael_site_journal_lines 7.0" in metrics.text
    assert 'vitrael_courier_up{child="node"} 1.0' in metrics.text


def test_a_killed_steward_is_not_well_though_its_number_lives(
    home: Path, asked: Callable[..., Answers]
) -> None:
    """As in a container, where a process of another one has the same number."""
    (home / "steward.json").write_text(json.dumps({"pid": os.getpid()}))
    health, _ = asked()
    assert (health.status_code, health.json()["steward"]) == (503, False)


def test_half_a_courier_tells_of_the_other_half(home: Path, asked: Callable[..., Answers]) -> None:
    (home / "flower" / "executor").mkdir(parents=True)
    with note_of_life(home / "steward.json", {}):
        health, metrics = asked("--only", "node")
        assert (health.status_code, health.json()["executor"]) == (503, False)
        assert 'vitrael_courier_up{child="executor"} 0.0' in metrics.text
        with note_of_life(home / "flower" / "executor" / "running.json", {}):
            health, metrics = asked("--only", "node")  # the control: it runs elsewhere
    assert (health.status_code, health.json()["executor"]) == (200, True)
    assert 'vitrael_courier_up{child="executor"} 1.0' in metrics.text
