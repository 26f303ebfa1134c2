"""The command that runs the courier: which processes, one at a time, and their page."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from vitrael.client.site.courier import supervisor
from vitrael.client.site.courier.supervisor import Courier
from vitrael.client.site.courier_cli import courier
from vitrael.core.errors import ProcessError
from vitrael.server.federation.processes import free_ports


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


def test_the_page_tells_of_courier_and_steward(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    with (home / "site.toml").open("a") as file:
        file.write(f"[network]\nmetrics_port = {port}\n")
    (home / "metrics.prom").write_text("vitrael_site_journal_lines 7.0\n")
    (home / "steward.json").write_text(json.dumps({"pid": os.getpid()}))
    answers: list[httpx.Response] = []

    def run(self: Courier, *, now: datetime) -> None:
        del now
        with httpx.Client(trust_env=False, base_url=f"http://127.0.0.1:{port}") as client:
            answers.extend(client.get(page) for page in ("/health", "/metrics"))

    monkeypatch.setattr(supervisor.Courier, "run", run)
    call(home)
    health, metrics = answers
    assert health.status_code == 503
    assert health.json() == {
        "status": "degraded",
        "node": False,
        "executor": False,
        "connected": False,
        "steward": True,
    }
    assert "vitrael_site_journal_lines 7.0" in metrics.text
    assert 'vitrael_courier_up{child="node"} 0.0' in metrics.text
