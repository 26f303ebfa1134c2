"""The socket takes one bounded line, the spool one bounded folder; both fail with a sentence."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.courier.spool import call_steward, write_parcel
from vitrael.client.site.listener import LONGEST_PATH, REFUSAL, read_bounded, serve
from vitrael.core.errors import DataError, EnvelopeError, ProcessError, StorageError
from vitrael.core.messages import Parcel

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home
    from vitrael.client.site.listener import Answer, Note

Listen = Callable[["Answer", int], "contextmanager[Path]"]


@contextmanager
def listening(
    home: Home, answer: Answer, *, requests: int, note: Note | None = None
) -> Iterator[Path]:
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
        kwargs={"ready": announce, "note": note, "keep_on": lambda: next(left, None) is not None},
    )
    thread.start()
    assert ready.wait(10)
    yield paths[0]
    thread.join(10)
    assert not thread.is_alive()


def echo(parcel: Parcel) -> dict[str, bytes]:
    return dict(parcel)


def hear(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(4096)


def test_courier_and_steward_understand_each_other(home: Home) -> None:
    with listening(home, echo, requests=1):
        assert call_steward(home.path, {"envelope": b"x"}, wait_s=10) == {"envelope": b"x"}
    assert list(home.settings.inbox.iterdir()) == list(home.settings.outbox.iterdir()) == []


def test_error_is_noted_and_the_next_request_is_served(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Exception] = [EnvelopeError("not for us"), ValueError("patient p-17")]
    notes: list[tuple[str, int]] = []

    def refuse(_parcel: Parcel) -> dict[str, bytes]:
        raise answers.pop(0)

    with listening(home, refuse, requests=2, note=lambda *note: notes.append(note)):
        for said in ("not for us", "ValueError"):
            with pytest.raises(ProcessError, match="its log tells why") as caught:
                call_steward(home.path, {"envelope": b"x"}, wait_s=10)
            assert said not in str(caught.value)
            assert said in notes[-1][0]
            assert said in caplog.text
    assert {size for _, size in notes} == {len(REFUSAL)}
    assert "p-17" not in f"{notes} {caplog.text}"


def test_refusal_stands_in_the_journal_with_its_bytes(home: Home) -> None:
    write_parcel(home.settings.inbox / "a", {"envelope": b"no envelope"})
    with closing(home.steward()) as steward:
        told = listening(home, steward.answer, requests=1, note=steward.note_refusal)
        with told as path:
            assert hear(path, b'{"parcel": "a"}\n') == REFUSAL
    line = home.lines()[-1]
    assert (line.event, line.bytes) == ("refused", len(REFUSAL))
    assert "not DSSE" in line.reason


def test_refusal_without_a_journal_is_the_same_sentence(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_reason: str, _size: int) -> None:
        raise StorageError("the journal cannot be written")

    with listening(home, echo, requests=1, note=full) as path:
        assert hear(path, b"no JSON\n") == REFUSAL
    assert "in no journal: the journal cannot be written" in caplog.text


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
    reasons: list[str] = []
    with listening(home, echo, requests=1, note=lambda why, _: reasons.append(why)) as path:
        assert hear(path, data) == REFUSAL
    assert said in reasons[0]


def test_full_spool_leaves_no_half_reply(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parcel(home.settings.inbox / "a", {"envelope": b"x"})

    def full(folder: Path, _parcel: Parcel) -> None:
        folder.with_name(f".partial-{folder.name}").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitrael.client.site.listener.write_parcel", full)
    reasons: list[str] = []
    with listening(home, echo, requests=1, note=lambda why, _: reasons.append(why)) as path:
        assert hear(path, b'{"parcel": "a"}\n') == REFUSAL
    assert "no disk space left" in reasons[0]
    assert list(home.settings.outbox.iterdir()) == []


def test_second_steward_is_refused(home: Home) -> None:
    with listening(home, echo, requests=1) as path:
        with pytest.raises(ProcessError, match="another steward"):
            serve(home.settings, echo, ready=lambda _: None)
        hear(path, b"\n")
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
