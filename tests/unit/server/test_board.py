"""What the coordinator shows of its study: counted from the journal, followed from the progress."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.clock import START, FakeClock
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import NetworkError
from vitrael.privacy.journal import Entry, Journal
from vitrael.server.board import STATE, Board, ServerState, read_server_state
from vitrael.server.federation.processes import free_ports
from vitrael.server.metrics import serving_metrics
from vitrael.server.runs import StudyState
from vitrael.server.supervisor import ChildState

PROTOCOL = digest_bytes(b"a protocol")
RUNNING = StudyState(
    study="tiny", protocol=PROTOCOL, order=PROTOCOL, status="running", run_id="1", runs=2
)


@dataclass
class Bench:
    """A home with a journal and a progress file, and the board over them."""

    home: Path
    clock: FakeClock
    board: Board
    journal: Journal

    def ask(self, site: str, nonce: str, *, number: int) -> None:
        self.journal.append(Entry(event="asked", to=site, nonce=nonce, bytes=number))

    def hear(self, site: str, nonce: str, *, number: int, event: Any = "received") -> None:
        self.journal.append(Entry(event=event, origin=site, nonce=nonce, bytes=number))

    def tell(
        self, stage: str, round_index: int, event: str, *, done: int = 0, **about: str
    ) -> None:
        line = {
            "utc": self.clock().isoformat(),
            "stage": stage,
            "round": round_index,
            "event": event,
            "done": done,
            "total": 2,
            **about,
        }
        with (self.home / "progress.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def refresh(self, study: StudyState | None = RUNNING, **online: bool) -> ServerState:
        child = ChildState(name="superlink", status="running", pid=7, falls=1)
        return self.board.refresh(children=(child,), online=online, study=study, trouble="")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    clock = FakeClock()
    board = Board(tmp_path, "1.2", "localhost:443", clock)
    return Bench(tmp_path, clock, board, Journal(tmp_path / "journal.jsonl", clock=clock))


def test_bytes_and_seconds_are_those_of_the_journal(bench: Bench) -> None:
    bench.ask("north", "a" * 32, number=100)
    bench.ask("south", "b" * 32, number=50)
    bench.clock.advance(seconds=12)
    bench.hear("north", "a" * 32, number=30)
    state = bench.refresh(north=True, south=False)
    north, south = state.sites["north"], state.sites["south"]
    assert (north.asked_bytes, north.received_bytes, north.answer_s) == (100, 30, 12.0)
    assert north.answered_utc == (START + timedelta(seconds=12)).isoformat()
    assert (south.asked_bytes, south.received_bytes, south.answered_utc) == (50, 0, None)
    bench.hear("south", "b" * 32, number=7, event="refused")
    assert bench.refresh(north=True, south=False).sites["south"].received_bytes == 7
    assert bench.refresh(north=True, south=False).sites["north"].asked_bytes == 100  # once


def test_task_that_was_never_answered_is_forgotten(bench: Bench) -> None:
    bench.ask("north", "a" * 32, number=100)
    bench.ask("south", "b" * 32, number=100)
    bench.refresh(north=True, south=True)
    bench.journal.append(Entry(event="failed", to="north", nonce="a" * 32))
    bench.refresh(north=True, south=True)
    assert set(bench.board._asked) == {("south", "b" * 32)}


def test_site_that_is_gone_keeps_when_it_was_seen(bench: Bench) -> None:
    seen = bench.refresh(north=True).sites["north"].seen_utc
    bench.clock.advance(hours=1)
    north = bench.refresh(north=False).sites["north"]
    assert (north.online, north.seen_utc) == (False, seen)
    assert bench.refresh().sites == {}  # who is not enrolled is not shown


def test_stage_and_answers_follow_the_progress(bench: Bench) -> None:
    assert bench.refresh().stage is None
    bench.tell("codec", 0, "begun")
    bench.tell("codec", 0, "answer", done=1)
    bench.tell("teacher", 9, "answer", done=2)  # of another stage
    stage = bench.refresh().stage
    assert stage is not None
    assert (stage.stage, stage.round, stage.answered, stage.asked) == ("codec", 0, 1, 2)
    bench.tell("codec", 1, "begun")
    stage = bench.refresh().stage
    assert stage is not None
    assert (stage.round, stage.answered) == (1, 0)
    ended = RUNNING.model_copy(update={"status": "finished"})
    assert bench.refresh(ended).stage is None


def test_round_in_work_tells_who_was_asked_and_who_will_not_answer(bench: Bench) -> None:
    bench.tell("codec", 1, "begun")
    bench.tell("codec", 1, "absent", site="valley", reason="it withdrew its consent")
    for site in ("north", "harbour", "north"):  # one is sent again
        bench.tell("codec", 1, "asked", site=site)
    bench.tell("codec", 0, "absent", site="north", reason="of another round")
    bench.tell("codec", 1, "absent", site="harbour", reason="refused: it is paused")
    stage = bench.refresh().stage
    assert stage is not None
    assert (stage.answered, stage.asked) == (0, 2)
    assert stage.absent == {"valley": "it withdrew its consent", "harbour": "refused: it is paused"}
    bench.tell("codec", 2, "begun")
    stage = bench.refresh().stage
    assert stage is not None
    assert (stage.asked, stage.absent) == (0, {})


def test_state_is_read_as_it_was_written_and_damage_is_no_state(bench: Bench) -> None:
    assert read_server_state(bench.home) is None
    state = bench.refresh(north=True)
    bench.board.write()
    assert read_server_state(bench.home) == state
    (bench.home / STATE).write_text("{")
    assert read_server_state(bench.home) is None


@pytest.fixture
def fetch() -> Callable[[int, str], tuple[int, str]]:
    def get(port: int, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return get


def test_metrics_tell_numbers_and_names_of_sites_alone(
    bench: Bench, fetch: Callable[[int, str], tuple[int, str]]
) -> None:
    bench.ask("north", "a" * 32, number=100)
    bench.hear("north", "a" * 32, number=30)
    bench.tell("codec", 3, "begun")
    bench.refresh(north=True, south=False)
    (port,) = free_ports(1)
    with serving_metrics(port, lambda: bench.board.state):
        code, text = fetch(port, "/metrics")
        assert fetch(port, "/anything")[0] == 404
    assert code == 200
    lines = set(text.splitlines())
    assert lines >= {
        'vitrael_server_build_info{version="1.2"} 1.0',
        "vitrael_server_sites_online 1.0",
        'vitrael_server_site_online{site="south"} 0.0',
        'vitrael_server_site_asked_bytes_total{site="north"} 100.0',
        'vitrael_server_site_received_bytes_total{site="north"} 30.0',
        'vitrael_server_run_status{status="running"} 1.0',
        'vitrael_server_run_status{status="failed"} 0.0',
        'vitrael_server_round{stage="codec"} 3.0',
        'vitrael_server_child_falls_total{child="superlink"} 1.0',
        "vitrael_server_runs 2.0",
    }
    assert "tiny" not in text


def test_health_is_what_the_state_says(
    bench: Bench, fetch: Callable[[int, str], tuple[int, str]]
) -> None:
    (port,) = free_ports(1)
    with serving_metrics(port, lambda: bench.board.state):
        bench.refresh()
        assert fetch(port, "/health") == (200, '{"status": "ok", "trouble": ""}')
        bench.board.refresh(children=(), online={}, study=None, trouble="not running: superlink")
        code, text = fetch(port, "/health")
        assert (code, json.loads(text)["trouble"]) == (503, "not running: superlink")
        with pytest.raises(NetworkError, match=f"port {port} .* in use"):  # noqa: SIM117
            with serving_metrics(port, lambda: bench.board.state):
                pass


def test_line_that_cannot_be_read_is_passed_over(bench: Bench) -> None:
    odd = (
        {"event": "asked", "to": "north", "nonce": "x"},
        {"event": "asked", "to": "north", "utc": "2031-05-01T12:00:00+00:00", "bytes": "many"},
        {"event": "asked", "to": "north", "utc": "2031-05-01T12:00:00+00:00", "bytes": [1]},
    )
    (bench.home / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in odd))
    (bench.home / "progress.jsonl").write_text('{"event": "begun", "stage": "codec"}\n')
    state = bench.refresh(north=True)
    assert (state.sites["north"].asked_bytes, state.stage) == (0, None)
    bench.tell("codec", 0, "begun")
    with (bench.home / "journal.jsonl").open("a") as file:  # the control: what can is counted
        file.write(json.dumps(odd[1] | {"bytes": 7}) + "\n")
    state = bench.refresh(north=True)
    assert state.sites["north"].asked_bytes == 7
    assert state.stage is not None
