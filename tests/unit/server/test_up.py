"""One beat of the coordinator: what fails is told until it succeeds, and what hangs is ended."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.factories.enrollment import enroll, found
from tests.fakes.ticker import Ticker
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import NetworkError, ProcessError
from vitrael.server.federation.control import NodeState
from vitrael.server.runs import StudyState, StudyStatus
from vitrael.server.supervisor import ChildPlan, ChildState
from vitrael.server.up import HUNG_S, SILENT_S, Coordinator


@dataclass
class FakeLink:
    """A SuperLink that answers or does not, and knows whoever registers."""

    up: bool = True
    broken: bool = False
    known: list[NodeState] = field(default_factory=list)

    def is_up(self) -> bool:
        return self.up

    def nodes(self) -> list[NodeState]:
        if self.broken:
            raise NetworkError("the SuperLink refused a request")
        return self.known

    def register(self, name: str, *, public_key: bytes) -> int:
        self.known.append(NodeState(7, name, public_key, online=True))
        return 7

    def unregister(self, node_id: int) -> None:
        self.known = [node for node in self.known if node.node_id != node_id]


@dataclass
class FakeChildren:
    """A supervisor of nothing."""

    watched: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    fatal: bool = False

    def tend(self) -> None:
        if self.fatal:
            raise ProcessError("the process superlink ended 8 times in a row")

    def start(self, plan: ChildPlan) -> bool:
        if plan.name in self.watched:
            return False
        self.watched.append(plan.name)
        return True

    def forgive(self, name: str) -> None:
        if name in self.given_up:
            self.given_up.remove(name)
            self.watched.remove(name)

    def restart(self, name: str) -> None:
        self.restarted.append(name)

    def states(self) -> tuple[ChildState, ...]:
        return ()

    def down(self) -> list[str]:
        return []

    def is_up(self, name: str) -> bool:
        return name not in self.given_up

    def trim_logs(self) -> None: ...


@dataclass
class FakeRuns:
    """A study that is as it is told to be."""

    state: StudyState | None = None
    error: Exception | None = None

    def tend(self) -> None:
        if self.error is not None:
            raise self.error

    def be(self, order: str, status: StudyStatus) -> None:
        name = digest_bytes(order.encode())
        self.state = StudyState(study="tiny", protocol=name, order=name, status=status, runs=1)


@dataclass
class Bench:
    """A coordinator whose processes are pretended."""

    coordinator: Coordinator
    ticker: Ticker
    link: FakeLink = field(default_factory=FakeLink)
    children: FakeChildren = field(default_factory=FakeChildren)
    runs: FakeRuns = field(default_factory=FakeRuns)

    def __post_init__(self) -> None:
        own: Any = self.coordinator
        own._link, own._children, own._runs = self.link, self.children, self.runs

    def pass_time(self, seconds: float) -> str:
        """Let time pass, a beat every second; return the trouble."""
        for _ in range(int(seconds)):
            self.ticker.move(1.0)
            self.coordinator._tick()
        return self.coordinator._board.state.trouble

    def online(self) -> dict[str, bool]:
        return {s: one.online for s, one in self.coordinator._board.state.sites.items()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    settings, ticker = found(tmp_path / "home"), Ticker()
    enroll(settings, "north", settings.home / "sites" / "north")
    return Bench(Coordinator(settings, ticker=ticker), ticker)


def test_silent_superlink_is_told_and_no_site_is_said_to_be_connected(bench: Bench) -> None:
    assert bench.pass_time(3) == ""
    assert bench.online() == {"north": True}
    bench.link.up = False
    assert bench.pass_time(SILENT_S - 10) == ""  # the control: a moment is no trouble
    assert "the SuperLink does not answer" in bench.pass_time(20)
    assert bench.online() == {"north": False}
    assert bench.children.restarted == []
    bench.link.up = True
    assert bench.pass_time(3) == ""
    assert bench.online() == {"north": True}


def test_superlink_that_hangs_is_ended_and_the_next_one_has_its_time(bench: Bench) -> None:
    bench.pass_time(3)
    bench.link.up = False
    bench.pass_time(HUNG_S - 5)
    assert bench.children.restarted == []
    bench.pass_time(10)
    assert bench.children.restarted == ["superlink"]  # also when nobody saw that it was down
    bench.children.given_up.append("superlink")  # it is down, and waits to be started again
    bench.pass_time(10)
    bench.children.given_up.remove("superlink")
    bench.pass_time(HUNG_S - 5)
    assert bench.children.restarted == ["superlink"]
    bench.pass_time(10)
    assert bench.children.restarted == ["superlink"] * 2  # the control: its time is over


def test_trouble_with_the_sites_stays_until_it_is_over(bench: Bench) -> None:
    bench.pass_time(3)
    bench.link.broken = True
    bench.pass_time(2)
    assert {bench.pass_time(1) for _ in range(8)} == {"the SuperLink refused a request."}
    bench.link.broken = False
    assert bench.pass_time(2) == ""


def test_full_disk_is_told_and_does_not_end_the_coordinator(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("vitrael.server.board.write_atomically", refuse)
        assert "there is no disk space left" in bench.pass_time(5)
    bench.runs.error = OSError(errno.ENOSPC, "no space left on device")
    assert "there is no disk space left" in bench.pass_time(5)
    bench.runs.error = None
    assert bench.pass_time(2) == ""
    bench.children.fatal = True
    with pytest.raises(ProcessError):  # the control: this does
        bench.pass_time(1)


def test_study_that_ended_unrecorded_is_recorded_once_by_the_next_coordinator(
    bench: Bench,
) -> None:
    bench.runs.be("first", "finished")
    bench.pass_time(3)
    assert bench.children.watched == ["recorder"]
    bench.children.watched.clear()  # it has come to its natural end
    bench.pass_time(3)
    assert bench.children.watched == []


def test_recorder_that_was_given_up_is_tried_again_for_the_next_order(bench: Bench) -> None:
    bench.runs.be("first", "running")
    bench.pass_time(2)
    bench.children.given_up.append("recorder")
    assert bench.pass_time(2) == ""  # nothing is wrong but the record
    assert bench.children.given_up == ["recorder"]
    bench.runs.be("second", "running")
    bench.pass_time(2)
    assert bench.children.given_up == []
    assert bench.children.watched == ["recorder"]


def test_order_that_comes_while_the_old_recorder_ends_has_its_own(bench: Bench) -> None:
    bench.runs.be("first", "running")
    bench.pass_time(2)
    bench.runs.be("second", "finished")
    bench.pass_time(2)
    bench.children.watched.clear()
    bench.pass_time(2)
    assert bench.children.watched == ["recorder"]
