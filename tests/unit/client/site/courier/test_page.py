from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from vitrael.client.site.courier.children import process_of, start_child
from vitrael.client.site.courier.page import serve_page
from vitrael.core.errors import NetworkError, ProcessError


def get(port: int, page: str) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=10) as client:
        return client.get(f"http://127.0.0.1:{port}{page}")


@pytest.mark.parametrize(("is_up", "code"), [(True, 200), (False, 503)])
def test_health_is_well_where_everything_is(*, is_up: bool, code: int) -> None:
    told = {"node": True, "steward": is_up}
    with serve_page(0, health=lambda: told, metrics=lambda: b"a 1\n") as port:
        answer = get(port, "/health")
        assert answer.status_code == code
        assert answer.json() == {"status": "ok" if is_up else "degraded", **told}
        assert get(port, "/metrics").text == "a 1\n"
        assert get(port, "/keys/node").status_code == 404
        assert get(port, "/").status_code == 404
    with pytest.raises(httpx.ConnectError):
        get(port, "/health")


def test_a_port_in_use_is_named() -> None:
    with (
        serve_page(0, health=dict, metrics=bytes) as port,
        pytest.raises(NetworkError, match=f"port {port} "),
        serve_page(port, health=dict, metrics=bytes),
    ):
        pytest.fail("two pages on one port")


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


@pytest.mark.parametrize("note", ["", "[]", '{"pid": "x"}', '{"pid": 4194999}'])
def test_a_note_of_nobody_who_lives_is_none(tmp_path: Path, note: str) -> None:
    (tmp_path / "steward.json").write_text(note)
    assert process_of(tmp_path / "steward.json") is None
    assert process_of(tmp_path / "missing") is None


def test_a_note_of_one_who_lives_is_his_number(tmp_path: Path) -> None:
    (tmp_path / "steward.json").write_text('{"pid": 1}')
    assert process_of(tmp_path / "steward.json") == 1
