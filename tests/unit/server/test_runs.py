"""A study is a sequence of Flower runs: what was lost goes on, what is wrong ends it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.fakes.ticker import Ticker
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import ConfigError, NetworkError, ProcessError
from vitrael.server import runs as module
from vitrael.server.federation.processes import is_alive
from vitrael.server.federation.run_state import RunState, read_run, taking_turn
from vitrael.server.orders import Order, give_order, read_order
from vitrael.server.runs import (
    BEGINS_S,
    MOST_RUNS,
    StudyRuns,
    StudyState,
    end_server_app,
    read_state,
)

PROTOCOL = digest_bytes(b"a protocol")
NOW = datetime(2031, 5, 1, tzinfo=UTC)


@dataclass
class FakeSuperLink:
    """Starts runs with numbers from 1 and says of each what it is told to say."""

    started: int = 0
    stopped: int = 0
    said: str = "running"
    down: bool = False

    def start_run(self, bundle: Path, *, config: dict[str, str]) -> int:
        if self.down:
            raise NetworkError("the SuperLink does not answer")
        assert bundle.parent == Path(config["home"])
        self.started += 1
        self.said = "running"
        return self.started

    def stop_runs(self) -> list[int]:
        if self.down:
            raise NetworkError("the SuperLink does not answer")
        self.stopped += 1
        return []

    def run_status(self, run_id: int) -> str:
        assert run_id == self.started
        return self.said


@dataclass
class Bench:
    """A home, its runs and what happens to them."""

    home: Path
    link: FakeSuperLink = field(default_factory=FakeSuperLink)
    ticker: Ticker = field(default_factory=Ticker)
    finished: int = 0

    def open(self) -> StudyRuns:
        return StudyRuns(self.home, self.home / "bundle", self.link, self.count, self.ticker)

    def count(self, protocol: Digest) -> int:
        assert protocol == PROTOCOL
        return self.finished

    def order(self, wanted: Literal["run", "stop"] = "run", *, hour: int = 0) -> Order:
        when = NOW.replace(hour=hour)
        return give_order(self.home, "tiny", protocol=PROTOCOL, wanted=wanted, now=when)

    def say(self, status: str, *, pid: int | None = None, **more: Any) -> None:
        said = RunState.model_validate(
            {
                "status": status,
                "run_id": str(self.link.started),
                "pid": pid or os.getpid(),
                "utc": NOW.isoformat(),
                **more,
            }
        )
        (self.home / "run.json").write_text(said.model_dump_json())

    def pass_time(self, runs: StudyRuns, seconds: float = 120) -> StudyState:
        self.ticker.move(seconds)
        runs.tend()
        assert runs.state is not None
        return runs.state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture(scope="module")
def dead() -> int:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        process.wait()
        return process.pid


@contextmanager
def idle_process(*names: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that waits; it is there under its names, and gone in the end whatever happens.

    Directly after its start the system still shows an empty command line for it.
    """
    code = "import time; print(flush=True); time.sleep(600)"
    command = [sys.executable, "-S", "-c", code, *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_nothing_runs_that_was_not_ordered(bench: Bench) -> None:
    runs = bench.open()
    runs.tend()
    assert runs.state is None
    assert bench.link.started == 0


def test_order_is_run_to_its_end(bench: Bench) -> None:
    bench.order()
    runs = bench.open()
    runs.tend()
    assert runs.state is not None
    assert (runs.state.status, runs.state.run_id, runs.state.runs) == ("running", "1", 1)
    bench.say("running")
    assert bench.pass_time(runs).status == "running"
    bench.say("finished", exit_code=6)
    state = bench.pass_time(runs)
    assert (state.status, state.exit_code) == ("finished", 6)
    bench.pass_time(runs)
    assert bench.link.started == 1


def test_partial_end_is_told_as_partial(bench: Bench) -> None:
    bench.order()
    runs = bench.open()
    runs.tend()
    bench.say("partial", sentence="partial: 2 of 3 (north: disk full)", exit_code=7)
    state = bench.pass_time(runs)
    assert (state.status, state.exit_code) == ("partial", 7)
    assert "north: disk full" in state.sentence


@pytest.mark.parametrize("loss", ["killed", "stopped", "cut off", "never spoke"])
def test_lost_run_is_followed_by_a_new_one(bench: Bench, dead: int, loss: str) -> None:
    bench.order()
    runs = bench.open()
    runs.tend()
    match loss:
        case "killed":
            bench.say("running", pid=dead)
        case "stopped":
            bench.say("failed", sentence="the ServerApp was stopped", exit_code=130)
        case "cut off":
            bench.say("failed", sentence="the SuperLink was lost: ConnectError", exit_code=5)
        case _:
            bench.link.said = "finished:failed"
    assert bench.pass_time(runs).status == "waiting"
    state = bench.pass_time(runs)
    assert (state.status, state.run_id, state.runs) == ("running", "2", 2)


def test_study_that_is_wrong_is_not_run_again(bench: Bench) -> None:
    bench.order()
    runs = bench.open()
    runs.tend()
    bench.say("failed", sentence="the round failed: site north is away", exit_code=1)
    state = bench.pass_time(runs)
    assert (state.status, state.exit_code) == ("failed", 1)
    bench.pass_time(runs)
    assert bench.link.started == 1
    bench.order(hour=1)  # the operator mends it and starts it again
    assert bench.pass_time(runs).status == "running"


def test_runs_that_finish_no_round_end_the_study(bench: Bench, dead: int) -> None:
    bench.order()
    runs = bench.open()
    for _ in range(MOST_RUNS):
        assert bench.pass_time(runs).status == "running"
        bench.say("running", pid=dead)
        state = bench.pass_time(runs)
    assert (state.status, state.exit_code) == ("failed", 1)
    assert "5 runs in a row finished no round, the last because the ServerApp" in state.sentence


def test_runs_that_each_finish_a_round_go_on(bench: Bench, dead: int) -> None:
    bench.order()
    runs = bench.open()
    for _ in range(2 * MOST_RUNS):
        assert bench.pass_time(runs).status == "running"
        bench.say("running", pid=dead)
        bench.finished += 1
        assert bench.pass_time(runs).status == "waiting"


def test_coordinator_that_was_itself_lost_knows_its_run(bench: Bench) -> None:
    bench.order()
    bench.open().tend()
    bench.say("running")
    again = bench.open()
    assert bench.pass_time(again).run_id == "1"
    bench.say("finished")
    assert bench.pass_time(again).status == "finished"
    assert read_state(bench.home) == again.state
    assert bench.link.started == 1


def test_stop_ends_the_run_and_a_new_order_goes_on(bench: Bench) -> None:
    bench.order()
    runs = bench.open()
    runs.tend()
    bench.say("running")
    before = bench.link.stopped
    bench.order("stop", hour=1)
    state = bench.pass_time(runs)
    assert (state.status, state.exit_code) == ("stopped", 130)
    assert bench.link.stopped == before + 1
    bench.pass_time(runs)
    assert bench.link.started == 1
    bench.order(hour=2)
    assert bench.pass_time(runs).run_id == "2"


def test_superlink_that_does_not_answer_is_asked_again(bench: Bench) -> None:
    bench.order()
    bench.link.down = True
    runs = bench.open()
    runs.tend()
    assert runs.state is not None
    assert runs.state.status == "waiting"
    bench.link.down = False
    assert bench.pass_time(runs).status == "running"


def test_run_that_never_begins_is_lost_after_a_while(bench: Bench) -> None:
    bench.order()
    runs = bench.open()
    runs.tend()
    bench.link.said = "pending"
    assert bench.pass_time(runs, BEGINS_S - 1).status == "running"  # the control: it has time
    state = bench.pass_time(runs, 2)
    assert (state.status, state.in_vain) == ("waiting", 1)
    assert state.sentence == "its ServerApp did not begin within 180 s"
    again = bench.open()  # another coordinator gives the next run its time too
    assert bench.pass_time(again, BEGINS_S - 1).status == "running"
    bench.say("running")
    assert bench.pass_time(again, 3600).run_id == "2"
    assert bench.link.started == 2


def test_word_of_another_version_is_none(bench: Bench) -> None:
    bench.order()
    runs = bench.open()
    runs.tend()
    (bench.home / "run.json").write_text('{"x": 1}')
    assert bench.pass_time(runs, 4).status == "running"
    assert read_run(bench.home) is None
    bench.say("finished")  # the control
    assert bench.pass_time(runs, 4).status == "finished"


def test_state_that_a_full_disk_did_not_take_is_written_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left on device", str(path))

    bench.order()
    runs = bench.open()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", refuse)
        for _ in range(3):
            with pytest.raises(OSError, match="no space left"):
                runs.tend()
    runs.tend()
    bench.say("running")
    assert bench.pass_time(runs).status == "running"
    assert read_state(bench.home) == runs.state
    assert bench.link.started == 1


def test_stop_ends_the_server_app_also_while_the_superlink_is_silent(bench: Bench) -> None:
    bench.order()
    runs = bench.open()
    runs.tend()
    with idle_process("flwr-serverapp") as ours:
        bench.say("running", pid=ours.pid)
        bench.link.down = True
        bench.order("stop", hour=1)
        assert bench.pass_time(runs).status == "waiting"  # and is tried again
        assert not is_alive(ours.pid)
        bench.link.down = False
        assert bench.pass_time(runs).status == "stopped"


def test_server_app_that_obeys_no_signal_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with idle_process("flwr-serverapp") as ours:
        bench.say("running", pid=ours.pid)
        with monkeypatch.context() as patch:
            patch.setattr(module, "is_alive", lambda _: True)
            patch.setattr(module, "_END_S", 0.1)
            with pytest.raises(ProcessError, match="does not end"):
                end_server_app(bench.home)
        end_server_app(bench.home)  # the control: it ended, and only its parent has not looked


def test_one_server_app_of_a_home_is_at_work(bench: Bench) -> None:
    with (
        taking_turn(bench.home, run_id="1"),
        pytest.raises(ProcessError, match="run 2 does not begin"),
        taking_turn(bench.home, run_id="2", seconds=0.2),
    ):
        pytest.fail("two are at work")
    with taking_turn(bench.home, run_id="2", seconds=0.2):  # the control
        pass


def test_server_app_of_a_run_that_was_given_up_does_not_begin(bench: Bench) -> None:
    bench.order()
    bench.open().tend()
    with taking_turn(bench.home, run_id="1", seconds=0.2):  # the control
        pass
    with (
        pytest.raises(ProcessError, match="run 0 does not begin: it was given up"),
        taking_turn(bench.home, run_id="0", seconds=0.2),
    ):
        pytest.fail("it began")


def test_damaged_files_are_named(bench: Bench) -> None:
    (bench.home / "order.json").write_text('{"study": "tiny"}')
    with pytest.raises(ConfigError, match=r"order\.json cannot be used"):
        read_order(bench.home)
    (bench.home / "runs.json").write_text("[")
    with pytest.raises(ConfigError, match=r"runs\.json cannot be used"):
        bench.open()


def test_no_process_is_ended_that_is_no_server_app(bench: Bench) -> None:
    with idle_process() as other:
        bench.say("running", pid=other.pid)
        end_server_app(bench.home)
        assert other.poll() is None
    with idle_process("flwr-serverapp") as ours:
        bench.say("running", pid=ours.pid)
        end_server_app(bench.home)  # the control
        assert not is_alive(ours.pid)
