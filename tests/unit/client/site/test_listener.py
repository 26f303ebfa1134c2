"""The socket takes one bounded line, the spool one bounded folder; both fail with a sentence."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.factories.courier import wait_for
from vitrael.client.site import inbox
from vitrael.client.site.courier import spool
from vitrael.client.site.courier.spool import LONGEST_PATH, call_steward, write_parcel
from vitrael.client.site.life import is_alive
from vitrael.client.site.listener import NO_DISK, REFUSAL, read_request, serve
from vitrael.client.site.tasks import TaskResult
from vitrael.core.errors import (
    ConfigError,
    EnvelopeError,
    ProcessError,
    StorageError,
    UsageError,
)
from vitrael.core.messages import Parcel
from vitrael.privacy.keys import KeyPair

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home
    from vitrael.client.site.listener import Answer, Note

Listen = Callable[["Answer", int], "contextmanager[Path]"]


@contextmanager
def listening(home: Home, answer: Answer, *, note: Note | None = None) -> Iterator[Path]:
    """Serve in a thread for as long as the block takes."""
    ready, stopping = threading.Event(), threading.Event()
    paths: list[Path] = []

    def announce(path: Path) -> None:
        paths.append(path)
        ready.set()

    thread = threading.Thread(
        target=serve,
        args=(home.settings, answer),
        kwargs={"ready": announce, "note": note, "stopping": stopping.is_set},
        daemon=True,  # a failed test must not wait for the request that it never made
    )
    thread.start()
    assert ready.wait(10)
    try:
        yield paths[0]
    finally:
        stopping.set()
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
    with listening(home, echo):
        assert call_steward(home.path, {"envelope": b"x"}, wait_s=10) == {"envelope": b"x"}
    assert list(home.settings.inbox.iterdir()) == list(home.settings.outbox.iterdir()) == []


def test_error_is_noted_and_the_next_request_is_served(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Exception] = [EnvelopeError("not for us"), ValueError("patient p-17")]
    notes: list[tuple[str, int]] = []

    def refuse(_parcel: Parcel) -> dict[str, bytes]:
        raise answers.pop(0)

    with listening(home, refuse, note=lambda *note: notes.append(note)):
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
        told = listening(home, steward.answer, note=steward.note_refusal)
        with told as path:
            assert hear(path, b'{"parcel": "a"}\n') == REFUSAL
    line = home.lines()[-1]
    assert (line.event, line.bytes) == ("refused", len(REFUSAL))
    assert "not DSSE" in line.reason


def test_bad_parcel_is_noted_once(home: Home) -> None:
    write_parcel(home.settings.inbox / "a", {"envelope": b"no envelope"})
    with closing(home.steward()) as steward:
        told = listening(home, steward.answer, note=steward.note_refusal)
        with told as path:
            hear(path, b'{"parcel": "a"}\n')
    (line,) = home.lines()
    assert line.event == "refused"


def test_rubbish_does_not_fill_the_journal(home: Home) -> None:
    with closing(home.steward()) as steward:
        told = listening(home, steward.answer, note=steward.note_refusal)
        with told as path:
            for _ in range(50):
                assert hear(path, b"rubbish\n") == REFUSAL
        assert len(home.lines()) == 1
    first, last = home.lines()
    assert last.reason.startswith("49 more")
    assert first.bytes + last.bytes == 50 * len(REFUSAL)


class SlowConnection:
    """Sends one byte each nine seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def settimeout(self, seconds: float) -> None:
        self.waits.append(seconds)

    def recv(self, _most: int) -> bytes:
        self.now += min(9.0, self.waits[-1])
        if self.waits[-1] < 9:
            raise TimeoutError
        return b"x"


def test_whole_line_has_one_deadline() -> None:
    slow = SlowConnection()
    with pytest.raises(UsageError, match="did not come within 10 s"):
        read_request(cast("socket.socket", slow), clock=lambda: slow.now)
    assert slow.now == 10
    assert slow.waits == [10, 1]


def test_attachments_are_not_read_before_the_signature_holds(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.consent()
    read: list[str] = []
    plain = inbox._read_entry

    def spy(place: int, name: str, *, most: int) -> bytes:
        read.append(name)
        return plain(place, name, most=most)

    monkeypatch.setattr(inbox, "_read_entry", spy)
    task = home.task()
    more = {**home.parcel(task), "more": b"not named"}
    for name, parcel in (
        ("unsigned", home.parcel(task, signer=KeyPair.create())),
        ("more", more),
        ("signed", home.parcel(task)),
    ):
        write_parcel(home.settings.inbox / name, parcel)
    entries = []
    with closing(home.steward({"codec": lambda *_: TaskResult()})) as steward:
        told = listening(home, steward.answer, note=steward.note_refusal)
        with told as path:
            for name in ("unsigned", "more", "signed"):
                hear(path, json.dumps({"parcel": name}).encode() + b"\n")
                entries.append((*read,))
                read.clear()
    assert entries == [("envelope",), ("envelope",), ("envelope", "codec")]


def test_parcel_of_a_killed_courier_is_cleared_and_one_that_waits_is_kept(home: Home) -> None:
    def lay(*names: str) -> None:
        for name in names:
            write_parcel(home.settings.inbox / name, {"envelope": b"x"})
            if name != "waits":
                long_ago = (home.settings.inbox / name).stat().st_mtime - 3600
                os.utime(home.settings.inbox / name, (long_ago, long_ago))

    def left() -> list[str]:
        return [folder.name for folder in home.settings.inbox.iterdir()]

    lay("left-over", ".partial-x", "waits")
    with listening(home, echo) as path:
        assert left() == ["waits"]
        lay("killed-while-it-served")
        assert b"error" not in hear(path, b'{"parcel": "waits"}\n')
        wait_for(lambda: left() == ["waits"], seconds=10)


def test_a_task_of_hours_outlives_its_steward(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The courier waits all the time; the steward is killed and starts again."""
    monkeypatch.setattr(spool, "_TOUCH_S", 0.02)
    answers: list[dict[str, bytes]] = []
    caller = threading.Thread(
        target=lambda: answers.append(call_steward(home.path, {"envelope": b"x"}, wait_s=30)),
        daemon=True,
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as killed:
        killed.bind(str(home.path / "steward.sock"))
        killed.listen()
        caller.start()
        connection, _ = killed.accept()
        with connection:
            (parcel,) = home.settings.inbox.iterdir()
            os.utime(parcel, (0, 0))  # hours ago
            wait_for(lambda: parcel.stat().st_mtime > 0, seconds=10)
    (home.path / "steward.sock").unlink()
    with listening(home, echo):
        caller.join(30)
    assert answers == [{"envelope": b"x"}]


def test_refusal_without_a_journal_is_the_same_sentence(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_reason: str, _size: int) -> None:
        raise StorageError("the journal cannot be written")

    with listening(home, echo, note=full) as path:
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
    with listening(home, echo, note=lambda why, _: reasons.append(why)) as path:
        assert hear(path, data) == REFUSAL
    assert said in reasons[0]


def test_full_spool_leaves_no_half_reply(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parcel(home.settings.inbox / "a", {"envelope": b"x"})

    def full(_place: int, _name: str, *, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "_write_entry", full)
    reasons: list[str] = []
    with listening(home, echo, note=lambda why, _: reasons.append(why)) as path:
        assert hear(path, b'{"parcel": "a"}\n') == NO_DISK
    assert "no disk space left" in reasons[0]
    assert list(home.settings.outbox.iterdir()) == []


def test_replies_that_nobody_fetches_do_not_fill_the_spool(home: Home) -> None:
    write_parcel(home.settings.inbox / "a", {"envelope": b"x"})
    with listening(home, echo) as path:
        laid = [json.loads(hear(path, b'{"parcel": "a"}\n'))["parcel"] for _ in range(7)]
        left = {folder.name for folder in home.settings.outbox.iterdir()}
    assert left == set(laid[-4:])


@pytest.mark.parametrize("name", ["spool", "spool/out"])
def test_a_spool_in_which_others_may_put_links_is_refused(home: Home, name: str) -> None:
    folder, private = home.path / name, home.path / "cohorts"
    home.settings.outbox.mkdir(parents=True)
    folder.chmod(0o770)
    with pytest.raises(ConfigError, match="can be changed by other users"):
        serve(home.settings, echo, ready=lambda _: None)
    folder.chmod(0o750)
    home.settings.outbox.rmdir()
    home.settings.outbox.symlink_to(private)
    with pytest.raises(ConfigError, match="can be changed by other users"):
        serve(home.settings, echo, ready=lambda _: None)
    assert list(private.iterdir()) != []  # nothing was tidied away there
    home.settings.outbox.unlink()
    with listening(home, echo):  # the control
        assert call_steward(home.path, {"envelope": b"x"}, wait_s=10) == {"envelope": b"x"}


def test_second_steward_is_refused(home: Home) -> None:
    with listening(home, echo) as path:
        with pytest.raises(ProcessError, match="another steward"):
            serve(home.settings, echo, ready=lambda _: None)
        hear(path, b"\n")
    assert not home.settings.steward.exists()
    assert not path.exists()


def test_long_home_is_served_in_its_place(make_home: Callable[[str], Home]) -> None:
    home = make_home("x" * LONGEST_PATH)
    with listening(home, echo) as path:
        assert path == home.path / "steward.sock"
        assert path.stat().st_mode & 0o777 == 0o660  # a courier under another user reaches it
        assert call_steward(home.path, {"envelope": b"x"}, wait_s=10) == {"envelope": b"x"}
    assert not path.exists()


def test_a_steward_that_serves_is_known_to_live(home: Home) -> None:
    assert not is_alive(home.settings.steward)
    with listening(home, echo):
        assert is_alive(home.settings.steward)
        assert home.settings.steward.stat().st_mode & 0o777 == 0o640
    assert not is_alive(home.settings.steward)


def test_socket_of_a_killed_steward_is_no_hindrance(home: Home) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_over:
        left_over.bind(str(home.path / "steward.sock"))
    home.settings.outbox.mkdir(parents=True)
    write_parcel(home.settings.outbox / "unfetched", {"envelope": b"x"})
    with listening(home, echo):
        assert list(home.settings.outbox.iterdir()) == []
        call_steward(home.path, {"envelope": b"x"}, wait_s=10)
