"""The cells of the fault matrix: what is struck, with what, and when."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tests.factories.paced import DEADLINE_S, SITES, wait_until
from tests.federation.faults.live import PROCESSES, SITE, Live

Moment = Literal["before", "during", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "during", "after")
Fault = Literal["kill -9", "SIGTERM", "network cut", "cut past the deadline", "disk full"]
_SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
BROKEN_S = 8.0
"""How long a cable stays cut and a disk full."""
_SHORT_DEADLINE_S = 12.0
ONE_CABLE, ALL_CABLES = "cable of one site", "cables of all sites"
ONE_HOME, COORDINATORS_HOME = "home of one site", "home of the coordinator"


@dataclass(frozen=True)
class Cell:
    """One round, and what happens to it."""

    what: str
    fault: Fault
    moment: Moment

    @property
    def name(self) -> str:
        return f"{self.what}, {self.fault}, {self.moment}"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    result: str
    seconds: float
    reason: str = ""


def _with_moments(what: str, fault: Fault, moments: tuple[Moment, ...] = MOMENTS) -> list[Cell]:
    return [Cell(what, fault, moment) for moment in moments]


def all_cells() -> list[Cell]:
    """Return the whole matrix; a ClientApp lives during a round alone."""
    signals: tuple[Fault, ...] = ("kill -9", "SIGTERM")
    cells: list[Cell] = []
    for process, fault in itertools.product(PROCESSES, signals):
        moments: tuple[Moment, ...] = ("during",) if process == "clientapp" else MOMENTS
        cells += _with_moments(process, fault, moments)
    cells += _with_moments(ONE_CABLE, "network cut")
    cells += _with_moments(ONE_CABLE, "cut past the deadline", ("during",))
    cells += _with_moments(ALL_CABLES, "network cut")
    cells += _with_moments(ONE_HOME, "disk full")
    cells += _with_moments(COORDINATORS_HOME, "disk full")
    return cells


FEW = (
    Cell("steward", "kill -9", "during"),
    Cell("supernode", "kill -9", "during"),
    Cell("courier", "SIGTERM", "before"),
    Cell("executor", "kill -9", "before"),
    Cell("clientapp", "SIGTERM", "during"),
    Cell("serverapp", "kill -9", "during"),
    Cell("superlink", "kill -9", "during"),
    Cell("coordinator", "kill -9", "during"),
    Cell("nginx", "SIGTERM", "during"),
    Cell("enrollment", "kill -9", "after"),
    Cell("superexec", "SIGTERM", "after"),
    Cell(ONE_CABLE, "network cut", "during"),
    Cell(ONE_CABLE, "cut past the deadline", "during"),
    Cell(ONE_HOME, "disk full", "during"),
)
"""Every process and every fault, once."""


@dataclass
class Trial:
    """One cell on a live federation."""

    live: Live
    cell: Cell
    _coordinator: int = 0
    """Its process before the fault."""

    def run(self) -> Outcome:
        """Do a round with its fault and return how it ended; fail where anything was lost."""
        live, moment = self.live, self.cell.moment
        live.recover()
        began, number = time.monotonic(), len(live.paced.finished()) + 1
        live.told_failures.clear()
        self._coordinator = live.coordinator()
        try:
            if moment == "before":
                self._break()
                live.paced.order(number)
                self._stay_broken()
            elif moment == "during":
                self._break_during(number)
            else:
                live.paced.order(number)
                live.wait_for_round(number)
                self._break()
                self._stay_broken()
        finally:
            self._mend()
            live.paced.let_go(SITE)
        live.wait_for_round(number)
        live.recover()
        return self._judge(number, seconds=time.monotonic() - began)

    def _break_during(self, number: int) -> None:
        """Break something while the site is at its task."""
        live, late = self.live, self.cell.fault == "cut past the deadline"
        live.paced.hold(SITE)
        live.paced.order(number, deadline_s=_SHORT_DEADLINE_S if late else DEADLINE_S)
        wait_until(
            lambda: live.paced.is_at(SITE, number), f"{SITE} is at its task", told=live.logs()
        )
        self._break()
        if late:
            live.wait_for_round(number)  # without the site
        elif self.cell.fault not in _SIGNALS:
            live.paced.let_go(SITE)  # its answer meets the fault
        self._stay_broken()

    def _break(self) -> None:
        cell, live = self.cell, self.live
        if cell.fault in _SIGNALS:
            live.strike(cell.what, _SIGNALS[cell.fault])
        elif cell.fault == "disk full":
            live.disks[self._disk].fill()
        else:
            for site in self._cut:
                live.cables[site].cut()

    def _stay_broken(self) -> None:
        """Wait a while before what is broken is mended."""
        if self.cell.fault in _SIGNALS:
            return
        until = time.monotonic() + BROKEN_S
        wait_until(lambda: time.monotonic() >= until, "it is broken for a while")

    def _mend(self) -> None:
        if self.cell.fault == "disk full":
            self.live.disks[self._disk].empty()
        for site in self._cut:
            self.live.cables[site].mend()

    @property
    def _disk(self) -> str:
        return "coordinator" if self.cell.what == COORDINATORS_HOME else SITE

    @property
    def _cut(self) -> tuple[str, ...]:
        return {ONE_CABLE: (SITE,), ALL_CABLES: SITES}.get(self.cell.what, ())

    def _judge(self, number: int, *, seconds: float) -> Outcome:
        rounds = self.live.paced.assert_sound()
        self.live.paced.assert_journals()
        assert len(rounds) == number
        told = dict(rounds[-1].details.get("absent", {}))
        assert set(rounds[-1].participants) | told.keys() == set(SITES)
        result = f"partial: {len(SITES) - len(told)} of {len(SITES)}" if told else "complete"
        self._judge_absence(told)
        self._judge_work(number, rounds[-1].participants)
        if self.cell.fault == "disk full":
            assert self.live.coordinator() == self._coordinator, "a full disk has ended it"
        reasons = [*told.values(), *self.live.told_failures]
        if self.live.told_failures:
            assert self.cell.what == COORDINATORS_HOME, reasons
            result += ", after the study was started again"
        return Outcome(self.cell, result, seconds, "; ".join(reasons))

    def _judge_absence(self, told: dict[str, str]) -> None:
        """Assert that who was struck alone is absent, and for the very reason."""
        words = {"cut past the deadline": "did not answer within", "disk full": "disk"}
        if told:
            assert told.keys() == {SITE}, told
            assert words.get(self.cell.fault, "no other fault may cost a site") in told[SITE], told
        elif self.cell.fault == "cut past the deadline":
            raise AssertionError("the site's deadline had passed, and nothing tells")

    def _judge_work(self, number: int, there: Sequence[str]) -> None:
        """Assert that no site has trained twice; where none could be kept it may have had to."""
        for site in SITES:
            times = self.live.paced.count_computed(site, number)
            full = self.cell.what == ONE_HOME and site == SITE
            assert times >= 1 or site not in there
            assert times <= 1 or full, f"{site} has trained {times} times"


def write_report(outcomes: list[Outcome]) -> str:
    """Return a page that tells how every cell ended."""
    rows = [
        f"| {one.cell.what} | {one.cell.fault} | {one.cell.moment} | {one.result} "
        f"| {one.seconds:.0f} | {one.reason.replace('|', '/') or '-'} |"
        for one in outcomes
    ]
    return "\n".join([*_HEAD, *rows, ""])


_HEAD = (
    "# The fault matrix",
    "",
    "One federation lived through all of it: a coordinator behind nginx, two sites, a task",
    "without torch, one round a cell. `complete`: every site took part, and the weights are to",
    "the bit those of an undisturbed round. `partial`: a site was absent, for the reason that the",
    "record names, and the weights are to the bit those of the others. After every cell the",
    "journals of all sides were whole and agreed, no round was lost, and no process was left",
    "over. What a service unit starts again was started again at once. `make test-slow` runs it.",
    "",
    "| struck | fault | moment | the round | seconds until all was whole again | told |",
    "|---|---|---|---|---|---|",
)
