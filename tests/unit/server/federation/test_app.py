from __future__ import annotations

import errno
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from vitrael.core.errors import ConfigError, QuorumError, StorageError
from vitrael.server.federation.app import StudyRunner, read_nodes, serve
from vitrael.server.federation.exchange import Exchange
from vitrael.server.federation.run_state import LOST_CODES, RunState, read_run

NOW = "2030-01-01T00:00:00+00:00"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "sites.json").write_text(json.dumps({"north": {"node_id": 2**64 - 1}}))
    return tmp_path


def run(study: StudyRunner, home: Path) -> RunState:
    grid: Any = None
    try:
        serve(study, home=home, grid=grid, run_id="7", clock=lambda: datetime.fromisoformat(NOW))
    finally:
        state = read_run(home)
        assert state is not None
        assert (state.run_id, state.pid, state.utc) == ("7", os.getpid(), NOW)
    return state


def test_a_study_that_ends_is_finished_with_its_exit_code(home: Path) -> None:
    seen: list[str] = []

    def study(where: Path, exchange: Exchange) -> int:
        state = read_run(where)
        assert state is not None
        seen.append(state.status)
        assert exchange.nodes == {"north": 2**64 - 1}  # type: ignore[attr-defined]
        return 6

    state = run(study, home)
    assert seen == ["running"]
    assert (state.status, state.exit_code) == ("finished", 6)


@pytest.mark.parametrize(("status", "code"), [("partial", 7), ("partial", 6), ("finished", 0)])
def test_a_study_that_lost_a_site_is_partial_and_says_which(
    status: str, code: int, home: Path
) -> None:
    def study(where: Path, _: Exchange) -> int:
        outcome = {"status": status, "sentence": f"{status}: 5 of 7 (north: disk full)"}
        (where / "outcome.json").write_text(json.dumps(outcome))
        return code

    state = run(study, home)
    assert (state.status, state.exit_code) == (status, code)
    assert state.sentence == f"{status}: 5 of 7 (north: disk full)"


def test_a_study_that_fails_says_why_and_with_which_code(home: Path) -> None:
    def study(_: Path, __: Exchange) -> None:
        raise QuorumError("the round codec/2 failed", why="site north did not answer")

    with pytest.raises(QuorumError):
        run(study, home)
    state = read_run(home)
    assert state is not None
    assert state.status == "failed"
    assert state.sentence == "the round codec/2 failed: site north did not answer."
    assert state.exit_code == 1


def test_an_unforeseen_failure_tells_its_kind_only_and_the_log_the_rest(home: Path) -> None:
    def study(_: Path, __: Exchange) -> None:
        raise RuntimeError("secret")

    with pytest.raises(RuntimeError):
        run(study, home)
    state = read_run(home)
    assert state is not None
    assert "RuntimeError" in state.sentence
    assert "secret" not in state.sentence
    assert "secret" in (home / "logs" / "serverapp.log").read_text()


def test_a_superlink_that_was_lost_is_no_fault_of_the_study(home: Path) -> None:
    def study(_: Path, __: Exchange) -> None:
        raise httpx.ConnectError("127.0.0.1:8100")

    with pytest.raises(httpx.ConnectError):
        run(study, home)
    state = read_run(home)
    assert state is not None
    assert (state.status, state.sentence) == ("failed", "the SuperLink was lost: ConnectError")
    assert state.exit_code in LOST_CODES


def test_a_full_disk_is_told_as_such(home: Path) -> None:
    def study(_: Path, __: Exchange) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError):
        run(study, home)
    state = read_run(home)
    assert state is not None
    assert "no disk space" in state.sentence


def test_a_study_that_is_stopped_is_not_left_running(home: Path) -> None:
    def study(_: Path, __: Exchange) -> None:
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        run(study, home)
    state = read_run(home)
    assert state is not None
    assert (state.status, state.exit_code) == ("failed", 130)


@pytest.mark.parametrize("text", ["", "[]", '{"north": {}}', '{"north": 1}'])
def test_sites_without_node_ids_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sites.json").write_text(text)
    with pytest.raises(ConfigError, match=r"sites\.json"):
        read_nodes(tmp_path)


def test_no_run_is_no_state(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
