"""A child that ends is started again, ever more slowly, and not for ever."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.ticker import Ticker
from vitrael.core.errors import ProcessError
from vitrael.server import supervisor as module
from vitrael.server.federation import processes
from vitrael.server.federation.processes import SERVER_MARK, ProcessGroup, is_alive
from vitrael.server.supervisor import MOST_FALLS, STEADY_S, ChildPlan, Supervisor

SLEEPS = "import time; time.sleep(600)"


@pytest.fixture
def ticker() -> Ticker:
    return Ticker()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[ProcessGroup]:
    group = ProcessGroup(tmp_path, mark=SERVER_MARK)
    yield group
    group.end(grace_s=0.5)


@pytest.fixture
def supervisor(group: ProcessGroup, ticker: Ticker) -> Supervisor:
    return Supervisor(group, ticker)


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., ChildPlan]:
    def make(code: str, *, vital: bool = True, ends: bool = False) -> ChildPlan:
        environment = {"PATH": os.defpath, SERVER_MARK: str(tmp_path)}
        command = (sys.executable, "-S", "-c", code)
        log = tmp_path / "child.log"
        return ChildPlan("child", command, environment, log, vital=vital, ends=ends)

    return make


def wait_for_end(group: ProcessGroup) -> None:
    group.children["child"].process.wait(timeout=10)


def test_child_that_was_killed_comes_back_after_a_pause_and_the_status_says_so(
    supervisor: Supervisor, group: ProcessGroup, ticker: Ticker, plan: Callable[..., ChildPlan]
) -> None:
    supervisor.start(plan(SLEEPS))
    first = group.children["child"].pid
    assert supervisor.tend() == []
    os.kill(first, signal.SIGKILL)
    wait_for_end(group)
    assert supervisor.tend() == []
    (state,) = supervisor.states()
    assert (state.status, state.falls, state.why, state.pid) == ("waiting", 1, "signal 9", None)
    assert not supervisor.is_up("child")
    ticker.move(0.9)
    assert supervisor.tend() == []
    ticker.move(0.2)
    assert supervisor.tend() == ["child"]
    assert supervisor.is_up("child")
    assert group.children["child"].pid != first


def test_pauses_double_and_a_vital_child_is_given_up_with_its_last_words(
    supervisor: Supervisor, group: ProcessGroup, ticker: Ticker, plan: Callable[..., ChildPlan]
) -> None:
    supervisor.start(plan("raise SystemExit('no such file')"))
    pauses = []
    for _ in range(MOST_FALLS - 1):
        wait_for_end(group)
        supervisor.tend()
        began = ticker()
        while not supervisor.tend():
            ticker.move(0.5)
        pauses.append(ticker() - began)
    assert pauses == [1, 2, 4, 8, 16, 32, 60]
    wait_for_end(group)
    with pytest.raises(ProcessError, match="8 times in a row: exit code 1: no such file"):
        supervisor.tend()


def test_child_that_is_not_vital_is_given_up_and_the_rest_goes_on(
    supervisor: Supervisor, group: ProcessGroup, ticker: Ticker, plan: Callable[..., ChildPlan]
) -> None:
    supervisor.start(plan("raise SystemExit(1)", vital=False))
    for _ in range(MOST_FALLS):
        wait_for_end(group)
        supervisor.tend()
        ticker.move(61)
        supervisor.tend()
    (state,) = supervisor.states()
    assert state.status == "given up"
    assert supervisor.tend() == []
    assert supervisor.down() == []  # nothing that is needed
    assert not supervisor.start(plan("raise SystemExit(1)", vital=False))
    supervisor.forgive("child")
    assert supervisor.start(plan(SLEEPS))
    supervisor.forgive("child")
    assert supervisor.is_up("child")  # the control: it was not given up


def test_child_that_hangs_is_ended_and_counts_as_one_that_fell(
    supervisor: Supervisor, group: ProcessGroup, ticker: Ticker, plan: Callable[..., ChildPlan]
) -> None:
    supervisor.start(plan(SLEEPS))
    process = group.children["child"].process
    supervisor.restart("child")
    supervisor.restart("child")  # once more before it is seen to have ended
    assert process.poll() is not None
    assert supervisor.tend() == []
    assert supervisor.states()[0].falls == 1
    assert supervisor.down() == ["child"]
    ticker.move(1.1)
    assert supervisor.tend() == ["child"]
    assert supervisor.down() == []


def test_full_disk_keeps_no_child_from_coming_back(
    supervisor: Supervisor,
    group: ProcessGroup,
    plan: Callable[..., ChildPlan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left on device", str(path))

    monkeypatch.setattr(processes, "write_atomically", refuse)
    supervisor.start(plan(SLEEPS))
    assert supervisor.is_up("child")
    group.end(grace_s=0.5)
    assert not is_alive(supervisor._watched["child"].child.pid)


def test_child_that_was_long_up_begins_anew(
    supervisor: Supervisor, group: ProcessGroup, ticker: Ticker, plan: Callable[..., ChildPlan]
) -> None:
    supervisor.start(plan(SLEEPS))
    for _ in range(MOST_FALLS + 2):
        ticker.move(STEADY_S + 1)
        os.kill(group.children["child"].pid, signal.SIGKILL)
        wait_for_end(group)
        supervisor.tend()
        ticker.move(1.1)
        assert supervisor.tend() == ["child"]
    assert supervisor.states()[0].falls == MOST_FALLS + 2


@pytest.mark.parametrize(("code", "left"), [(0, 0), (1, 1)])
def test_natural_end_is_no_fall(
    supervisor: Supervisor,
    group: ProcessGroup,
    plan: Callable[..., ChildPlan],
    code: int,
    left: int,
) -> None:
    supervisor.start(plan(f"raise SystemExit({code})", ends=True))
    wait_for_end(group)
    supervisor.tend()
    assert len(supervisor.states()) == left


def test_child_that_is_stopped_is_gone(
    supervisor: Supervisor, group: ProcessGroup, plan: Callable[..., ChildPlan]
) -> None:
    supervisor.start(plan(SLEEPS))
    pid = group.children["child"].pid
    supervisor.start(plan(SLEEPS))  # of that name there is one
    assert group.children["child"].pid == pid
    supervisor.stop("child")
    assert not is_alive(pid)
    assert supervisor.states() == ()


def test_log_that_is_too_large_is_laid_aside_and_written_on(
    supervisor: Supervisor,
    plan: Callable[..., ChildPlan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor.start(plan(SLEEPS))
    log = tmp_path / "child.log"
    log.write_text("much\n" * 10)
    supervisor.trim_logs()
    assert log.stat().st_size == 50
    monkeypatch.setattr(module, "_LOG_BYTES", 20)
    supervisor.trim_logs()
    assert log.stat().st_size == 0
    assert (tmp_path / "child.log.1").read_text().count("much") == 10
