"""A step tells by tenths in a log, and how long it takes on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vitrael.core.workbench.progress import Progress


@pytest.fixture
def lines() -> list[str]:
    return []


def clock(step_s: float) -> Callable[[], float]:
    def tick() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += step_s

    return tick().__next__


def test_log_has_a_line_for_each_tenth(lines: list[str]) -> None:
    progress = Progress(terminal=False, write=lines.append)
    for done in range(1001):
        progress("train", done, 1000)
    assert lines == [f"train: {tenth * 100} of 1000\n" for tenth in range(1, 11)]


def test_short_step_is_told_once(lines: list[str]) -> None:
    progress = Progress(terminal=False, write=lines.append)
    progress("draw", 3, 3)
    assert lines == ["draw: 3 of 3\n"]


def test_terminal_shows_the_time_that_is_left(lines: list[str]) -> None:
    progress = Progress(terminal=True, clock=clock(1.0), write=lines.append)
    progress("train", 0, 130)
    progress("train", 10, 130)
    progress("train", 130, 130)
    assert lines[0].rstrip() == "\rtrain: 10 of 130, 0:12 left"
    assert lines[1].startswith("\rtrain: 130 of 130")
    assert lines[1].endswith("\n")
