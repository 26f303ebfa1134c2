"""The socket takes one bounded line, the spool one bounded folder; both fail with a sentence."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.courier.spool import call_steward, write_parcel
from vitrael.client.site.listener import LONGEST_PATH, read_bounded, serve
from vitrael.core.errors import DataError, EnvelopeError, ProcessError
from vitrael.core.messages import Parcel

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home
    from vitrael.client.site.listener import Answer

Listen = Callable[["Answer", int], "contextmanager[Path]"]


@contextmanager
def listening(home: Home, answer: Answer, *, requests: int) -> Iterator[Path]:
    """Serve that many requests in a thread."""
    left = iter(range(requests))
    ready = threading.Event()
    paths: list[Path] = []

    def announce(path: Path) -> None:
        paths.append(path)
        ready.set()

    thread = threading.Thread(
        target=serve,
        args=(home.settings, answer),
        kwargs={"ready": announce, "keep_on": lambda: next(left, None) is not None},
    )
    thread.start()
    assert ready.wait(10)
    yield paths[0]
    thread.join(10)
    assert not thread.is_alive()


def echo(parcel: Parcel) -> dict[str, bytes]:
    return dict(parcel)


def say(path: Path, data: bytes) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer: dict[str, str] = json.loads(connection.recv(4096))
        return answer


def test_courier_and_steward_understand_each_other(home: Home) -> None:
    with listening(home, echo, requests=1):
        assert call_steward(home.path, {"envelope": b"x"}, wait_s=10) == {"envelope": b"x"}
    assert list(home.settings.inbox.iterdir()) == list(home.settings.outbox.iterdir()) == []


def test_error_is_told_and_the_next_request_is_served(home: Home) -> None:
    answers: list[Exception] = [EnvelopeError("not for us"), ValueError("patient p-17")]

    def refuse(_parcel: Parcel) -> dict[str, bytes]:
        raise answers.pop(0)

    with listening(home, refuse, requests=2):
        with pytest.raises(ProcessError, match="not for us"):
            call_steward(home.path, {"envelope": b"x"}, wait_s=10)
        with pytest.raises(ProcessError, match="ValueError") as caught:
            call_steward(home.path, {"envelope": b"x"}, wait_s=10)
        assert "p-17" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends before"),
        (b'{"parcel": "x"}', "ends before"),
        (b"x" * 9000, "longer than"),
        (b"no JSON\n", "not a line of JSON"),
        (b"[]\n", "not a line of JSON"),
        (b'{"parcel": "../../keys"}\n', "cannot be in the spool"),
        (b'{"parcel": ["x"]}\n', "cannot be in the spool"),
        (b'{"parcel": "nothing"}\n', "no such parcel"),
    ],
)
def test_bad_request_is_refused(home: Home, data: bytes, said: str) -> None:
    with listening(home, echo, requests=1) as path:
        assert said in say(path, data)["error"]


def test_full_spool_leaves_no_half_reply(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parcel(home.settings.inbox / "a", {"envelope": b"x"})

    def full(folder: Path, _parcel: Parcel) -> None:
        folder.with_name(f".partial-{folder.name}").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitrael.client.site.listener.write_parcel", full)
    with listening(home, echo, requests=1) as path:
        assert "no disk space left" in say(path, b'{"parcel": "a"}\n')["error"]
    assert list(home.settings.outbox.iterdir()) == []


def test_second_steward_is_refused(home: Home) -> None:
    with listening(home, echo, requests=1) as path:
        with pytest.raises(ProcessError, match="another steward"):
            serve(home.settings, echo, ready=lambda _: None)
        say(path, b"\n")
    assert not home.settings.steward.exists()
    assert not path.exists()


def test_long_home_gets_a_short_socket(make_home: Callable[[str], Home]) -> None:
    home = make_home("x" * LONGEST_PATH)
    with listening(home, echo, requests=1) as path:
        assert len(os.fsencode(path)) <= LONGEST_PATH
        assert path.parent.stat().st_mode & 0o077 == 0
        assert call_steward(home.path, {"envelope": b"x"}, wait_s=10) == {"envelope": b"x"}
    assert not path.parent.exists()


def test_socket_of_a_killed_steward_is_no_hindrance(home: Home) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_over:
        left_over.bind(str(home.path / "steward.sock"))
    home.settings.outbox.mkdir(parents=True)
    write_parcel(home.settings.outbox / "unfetched", {"envelope": b"x"})
    with listening(home, echo, requests=1):
        assert list(home.settings.outbox.iterdir()) == []
        call_steward(home.path, {"envelope": b"x"}, wait_s=10)


def test_parcel_is_read_within_bounds(tmp_path: Path) -> None:
    write_parcel(tmp_path / "a", {"envelope": b"1234", "codec": b"56"})
    assert read_bounded(tmp_path / "a", most=6) == {"envelope": b"1234", "codec": b"56"}
    with pytest.raises(DataError, match="larger"):
        read_bounded(tmp_path / "a", most=5)


def linked_file(folder: Path) -> None:
    (folder / "codec").symlink_to(folder / "envelope")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "codec")


def folder_within(folder: Path) -> None:
    (folder / "codec").mkdir()


def hidden_file(folder: Path) -> None:
    (folder / ".codec").write_bytes(b"x")


def many_files(folder: Path) -> None:
    for number in range(64):
        (folder / f"e{number}").write_bytes(b"")


@pytest.mark.parametrize("plant", [linked_file, pipe, folder_within, hidden_file, many_files])
def test_entry_that_is_no_plain_file_is_refused(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    write_parcel(tmp_path / "a", {"envelope": b"1234"})
    plant(tmp_path / "a")
    with pytest.raises(DataError, match="holds"):
        read_bounded(tmp_path / "a", most=100)


def test_linked_folder_is_refused(tmp_path: Path) -> None:
    write_parcel(tmp_path / "a", {"envelope": b"1234"})
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DataError, match="no such parcel"):
        read_bounded(tmp_path / "b", most=100)
