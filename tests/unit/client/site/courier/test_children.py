"""One Flower process: its lines are heard, and it ends with all that it started."""

from __future__ import annotations

import pytest

from vitrael.client.site.courier.children import start_child
from vitrael.core.errors import ProcessError


def test_a_child_s_lines_are_heard_and_all_that_it_started_ends() -> None:
    heard: list[str] = []
    child = start_child(
        "SuperNode",
        ("/bin/sh", "-c", "printf '\\033[92mINFO\\033[0m : up\\n\\n'; sleep 100 & wait"),
        environment={"PATH": "/usr/bin:/bin"},
        now=0.0,
        on_line=heard.append,
    )
    while not heard:
        assert child.exit_code() is None
    child.end()
    assert heard == ["INFO : up"]
    assert child.last_words() == "INFO : up"  # its pipe is closed: nobody else holds it
    assert child.exit_code() == -15


def test_a_full_disk_does_not_stop_a_child() -> None:
    heard: list[str] = []

    def fail(line: str) -> None:
        heard.append(line)
        raise OSError(28, "No space left on device")

    child = start_child(
        "SuperNode",
        ("/bin/sh", "-c", "for i in 1 2 3; do echo $i; done"),
        environment={"PATH": "/usr/bin:/bin"},
        now=0.0,
        on_line=fail,
    )
    assert child.last_words() == "1\n2\n3"
    child.end()
    assert heard == ["1", "2", "3"]


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ProcessError, match="the SuperNode cannot be started"):
        start_child("SuperNode", ("/no/such",), environment={}, now=0.0, on_line=print)
