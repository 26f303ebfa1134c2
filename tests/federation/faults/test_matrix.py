"""Each process, cable and disk fails before, during and after a round, and nothing is lost.

One federation lives through all cells; they depend on each other as little as rounds do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation.faults import disk
from tests.federation.faults.cells import FEW, Cell, Outcome, Trial, all_cells, write_report
from tests.federation.faults.live import PROCESSES, Live, running
from vitrael.server.federation.layout import network_guard
from vitrael.server.proxy import find_nginx

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed"),
    pytest.mark.skipif(not network_guard(), reason="this machine allows no network namespace"),
]

_NO_DISK = disk.missing()
_REPORT = "VITRAEL_FAULTS_REPORT"


def _name(cell: Cell) -> str:
    return cell.name


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(tmp_path_factory.mktemp("faults"), disks=not _NO_DISK) as one:
        yield one


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """What the cells have come to."""
    return []


def _try(live: Live, cell: Cell, outcomes: list[Outcome]) -> None:
    """Try a cell, and write down all that were tried where the environment names a file."""
    if cell.fault == "disk full" and _NO_DISK:
        pytest.skip(_NO_DISK)
    outcomes.append(Outcome(cell, "NOT SOUND", math.nan))
    try:
        outcomes[-1] = Trial(live, cell).run()
    finally:
        if path := os.environ.get(_REPORT):
            Path(path).write_text(write_report(outcomes), encoding="utf-8")


@pytest.mark.faults
@pytest.mark.parametrize("cell", FEW, ids=_name)
def test_a_fault_of_the_few_loses_nothing(live: Live, cell: Cell, outcomes: list[Outcome]) -> None:
    _try(live, cell, outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("cell", all_cells(), ids=_name)
def test_no_fault_loses_anything(live: Live, cell: Cell, outcomes: list[Outcome]) -> None:
    _try(live, cell, outcomes)


def test_the_few_have_every_process_and_every_fault() -> None:
    assert {cell.what for cell in FEW} >= set(PROCESSES)
    assert {cell.fault for cell in FEW} == {cell.fault for cell in all_cells()}
    assert {cell.moment for cell in FEW} == {cell.moment for cell in all_cells()}
    assert set(FEW) < set(all_cells())
    assert len(all_cells()) >= 30
