from __future__ import annotations

import io

import pytest

from vitrael.client.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_than_on_a_terminal_each_tenth_has_a_line() -> None:
    stream = io.StringIO()
    progress = Progress("downloading", total=1000, stream=stream, clock=lambda: 0.0)
    for _ in range(1000):
        progress.advance(1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("downloading: 100%")


def test_terminal_line_moves_and_tells_the_time_left() -> None:
    stream, now = _Terminal(), [0.0]
    progress = Progress("verifying", total=100, stream=stream, clock=lambda: now[0])
    now[0] = 5.0
    progress.advance(50)
    assert stream.getvalue().startswith("\r\033[Kverifying:  50%")
    assert stream.getvalue().endswith("5 s left")
    progress.advance(50)
    assert stream.getvalue().endswith("MiB\n")


@pytest.mark.parametrize("stream", [io.StringIO(), _Terminal()])
def test_nothing_to_do_divides_by_nothing(stream: io.StringIO) -> None:
    Progress("checking", total=0, stream=stream, clock=lambda: 0.0).advance(0)


def test_files_are_counted_as_files() -> None:
    stream = io.StringIO()
    Progress("reading", total=4, unit="files", stream=stream, clock=lambda: 0.0).advance(2)
    assert stream.getvalue() == "reading:  50%, 2 of 4 files, 0 s left\n"
