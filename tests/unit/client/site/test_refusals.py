"""Refusals get a line a minute at most, and none of them goes uncounted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.refusals import EVERY, Refusals
from vitrael.core.errors import StorageError

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import FakeClock


def test_line_a_minute_counts_the_others(clock: FakeClock) -> None:
    lines: list[tuple[str, int]] = []
    refusals = Refusals(lambda *line: lines.append(line), clock=clock)
    for _ in range(180):
        refusals.note("not DSSE.", 10)
        clock.advance(seconds=1)
    held = EVERY.total_seconds() - 1
    again = (f"{held:g} more since the line before, then: not DSSE.", 600)
    assert lines == [("not DSSE.", 10), again, again]
    refusals.settle()
    refusals.settle()
    assert lines[3:] == [("59 more since the line before; steward.log names the reasons", 590)]
    assert sum(size for _, size in lines) == 1800


def test_clock_that_goes_back_hides_nothing(clock: FakeClock) -> None:
    lines: list[tuple[str, int]] = []
    refusals = Refusals(lambda *line: lines.append(line), clock=clock)
    refusals.note("a", 1)
    clock.advance(days=-1)
    refusals.note("b", 1)
    assert lines == [("a", 1), ("b", 1)]


@dataclass
class Journal:
    """Takes lines unless its disk is full."""

    full: bool = False
    lines: list[tuple[str, int]] = field(default_factory=list)

    def write(self, reason: str, size: int) -> None:
        if self.full:
            raise StorageError("the journal cannot be written")
        self.lines.append((reason, size))


def test_refusal_that_could_not_be_written_is_counted_in_the_next_line(clock: FakeClock) -> None:
    journal = Journal()
    refusals = Refusals(journal.write, clock=clock)
    refusals.note("a", 1)
    refusals.note("b", 1)
    journal.full = True
    with pytest.raises(StorageError):
        refusals.settle()
    journal.full = False
    refusals.settle()
    assert journal.lines[1][0].startswith("1 more")


def test_refusal_whose_own_line_fails_is_counted_too(clock: FakeClock) -> None:
    journal = Journal(full=True)
    refusals = Refusals(journal.write, clock=clock)
    for _ in range(2):
        with pytest.raises(StorageError):
            refusals.note("a", 3)
    journal.full = False
    refusals.note("b", 4)
    assert journal.lines == [("2 more since the line before, then: b", 10)]
