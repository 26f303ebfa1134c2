from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.factories.courier import wait_for
from vitrael.client.site.courier import spool
from vitrael.client.site.courier.spool import (
    LONGEST_PATH,
    call_steward,
    clear_abandoned,
    read_parcel,
    steward_socket,
    write_parcel,
)
from vitrael.core.errors import DataError, ProcessError, StorageError

PARCEL = {"envelope": b"{}", "weights": bytes(range(256))}


def _answer_one(
    connection: socket.socket, answer: Callable[[str], bytes | None], over: threading.Event
) -> None:
    with connection, connection.makefile("rb") as stream:
        said = answer(json.loads(stream.readline())["parcel"])
        if said is None:
            over.wait(10)
        else:
            connection.sendall(said)


@contextmanager
def steward(path: Path, answer: Callable[[str], bytes | None]) -> Iterator[None]:
    """Listen on ``path`` and answer each request; None: keep the caller waiting."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(0.05)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                _answer_one(listener.accept()[0], answer, over)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)
        listener.close()


def test_a_parcel_is_open_to_the_group_of_the_spool_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_parcel(tmp_path / "x", PARCEL)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "x").iterdir()}
    assert modes == dict.fromkeys(PARCEL, 0o660)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o770


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


def echo(home: Path) -> Callable[[str], bytes]:
    def answer(name: str) -> bytes:
        shutil.copytree(home / "spool" / "in" / name, home / "spool" / "out" / "back")
        return b'{"parcel": "back"}\n'

    return answer


def left_in_spool(home: Path) -> list[str]:
    return [p.name for box in ("in", "out") for p in (home / "spool" / box).glob("*")]


def test_a_parcel_goes_to_the_steward_and_its_answer_comes_back(home: Path) -> None:
    with steward(home / "steward.sock", echo(home)):
        assert call_steward(home, PARCEL, wait_s=5) == PARCEL
    assert left_in_spool(home) == []


def age(folder: Path, seconds: float) -> None:
    """Let a folder look as if it was touched last so long ago."""
    then = folder.stat().st_mtime - seconds
    os.utime(folder, (then, then))


def test_the_steward_may_listen_on_another_path(home: Path, tmp_path: Path) -> None:
    short = home / "short"
    (tmp_path / "steward.json").write_text(json.dumps({"socket": str(short), "pid": 1}))
    assert steward_socket(tmp_path) == short
    with steward(short, echo(tmp_path)):
        assert call_steward(tmp_path, PARCEL, wait_s=5) == PARCEL


def test_a_parcel_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_parcel(tmp_path / "in" / "a", PARCEL)
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["a"]
    assert read_parcel(tmp_path / "in" / "a") == PARCEL


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_parcel_that_cannot_be_written_whole_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def stop(_file: int, _mode: int) -> None:
        raise error  # an entry is written already

    monkeypatch.setattr(os, "fchmod", stop)
    with pytest.raises((StorageError, KeyboardInterrupt)) as caught:
        write_parcel(tmp_path / "in" / "a", PARCEL)
    assert list((tmp_path / "in").iterdir()) == []
    if isinstance(error, OSError):
        assert "no disk space left" in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("what", ["folder", "entry"])
def test_a_link_put_in_the_way_of_a_parcel_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    box, private = tmp_path / "out", tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "weights").write_bytes(b"a key")
    (private / "weights").chmod(0o600)
    write = spool._write_entry

    def swap(place: int, name: str, *, data: bytes) -> None:
        write(place, name, data=data)
        if what == "folder" and name == "envelope":
            (box / ".partial-a").rename(box / "stolen")
            (box / ".partial-a").symlink_to(private)
        elif name == "envelope":
            (box / ".partial-a" / "weights").symlink_to(private / "weights")

    monkeypatch.setattr(spool, "_write_entry", swap)
    with suppress(StorageError):
        write_parcel(box / "a", PARCEL)
    assert (private / "weights").read_bytes() == b"a key"
    assert [path.name for path in private.iterdir()] == ["weights"]
    modes = [path.stat().st_mode & 0o777 for path in (private, private / "weights")]
    assert modes == [0o700, 0o600]
    if what == "folder":  # the control: the swap happened while the parcel was written
        assert (box / "stolen").is_dir()
    else:
        assert not (box / "a").exists()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "A", "a" * 49, "a\n"])
def test_an_entry_that_is_no_plain_name_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="not allowed"):
        write_parcel(tmp_path / "in" / "a", {name: b""})
    assert not (tmp_path / "in").exists()


def test_a_folder_with_a_link_is_no_parcel(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "weights").symlink_to(secret)
    with pytest.raises(DataError):
        read_parcel(folder)
    with pytest.raises(DataError):
        read_parcel(tmp_path / "missing")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b'{"error": "no consent"}\n', "refused the parcel: no consent"),
        (b'{"parcel": "../../keys"}\n', "cannot be in the spool"),
        (b'{"parcel": "nowhere"}\n', "no such parcel"),
        (b"", "without an answer"),
        (b"[1]\n", "no answer"),
        (b'{"parcel": "ba', "without an answer"),
        (b"no json\n", "no answer"),
    ],
)
def test_what_is_no_parcel_is_told(home: Path, said: bytes, message: str) -> None:
    with (
        steward(home / "steward.sock", lambda _: said),
        pytest.raises((ProcessError, DataError), match=message),
    ):
        call_steward(home, PARCEL, wait_s=5)
    assert left_in_spool(home) == []


def test_a_steward_that_ends_in_the_middle_is_asked_again(home: Path) -> None:
    asked: list[str] = []

    def answer(name: str) -> bytes:
        asked.append(name)
        return b"" if len(asked) < 3 else echo(home)(name)

    with steward(home / "steward.sock", answer):
        assert call_steward(home, PARCEL, wait_s=5) == PARCEL
    assert len(asked) == 3
    assert len(set(asked)) == 1
    assert left_in_spool(home) == []


def test_a_courier_that_waits_touches_its_parcel(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_TOUCH_S", 0.02)
    ages: list[bool] = []

    def answer(name: str) -> bytes:
        folder = home / "spool" / "in" / name
        age(folder, 3600)
        old = folder.stat().st_mtime
        wait_for(lambda: folder.stat().st_mtime > old, seconds=10)
        clear_abandoned(folder.parent)
        ages.append(folder.exists())
        if len(ages) == 2:
            return echo(home)(name)
        age(folder, 3600)  # and so it is when it asks again
        return b""

    with steward(home / "steward.sock", answer):
        assert call_steward(home, PARCEL, wait_s=30) == PARCEL
    assert ages == [True, True]


def test_what_nobody_waits_for_is_cleared_by_the_next_courier(home: Path) -> None:
    box = home / "spool" / "in"
    for name in ("left-over", ".partial-x", "waits", "from-tomorrow"):
        write_parcel(box / name, PARCEL)
    (box / "file").touch()
    (box / "link").symlink_to(home)
    (box / ".partial-x").chmod(0o700)
    for name in ("left-over", ".partial-x", "file"):
        age(box / name, 3600)
    age(box / "from-tomorrow", -3600)
    os.utime(box / "link", (0, 0), follow_symlinks=False)
    with steward(home / "steward.sock", echo(home)):
        assert call_steward(home, PARCEL, wait_s=5) == PARCEL
    assert left_in_spool(home) == ["waits"]
    clear_abandoned(home / "nowhere")


def test_a_home_with_a_long_path_is_served_in_its_place(home: Path) -> None:
    deep = home / ("x" * LONGEST_PATH)
    deep.mkdir()
    with (
        spool.short_name(deep / "steward.sock") as name,
        steward(Path(name), echo(deep)),
    ):
        assert call_steward(deep, PARCEL, wait_s=5) == PARCEL
    assert (deep / "steward.sock").is_socket()


def test_a_parcel_over_which_every_steward_ends_is_given_up(home: Path) -> None:
    asked: list[str] = []

    def answer(name: str) -> bytes:
        asked.append(name)
        return b""

    with (
        steward(home / "steward.sock", answer),
        pytest.raises(ProcessError, match="ended without an answer"),
    ):
        call_steward(home, PARCEL, wait_s=60)
    assert len(asked) == 5


def test_a_steward_that_says_nothing_is_not_waited_for_longer_than_told(home: Path) -> None:
    with (
        steward(home / "steward.sock", lambda _: None),
        pytest.raises(ProcessError, match="did not answer in time"),
    ):
        call_steward(home, PARCEL, wait_s=0.2)
    assert left_in_spool(home) == []


def test_a_steward_that_does_not_listen_is_tried_for_a_minute_at_most(tmp_path: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with pytest.raises(ProcessError, match="does not listen"):
        call_steward(tmp_path, PARCEL, wait_s=3600, clock=lambda: now[0], sleep=sleep)
    assert 60 <= now[0] < 61
    with pytest.raises(ProcessError, match="does not listen"):
        call_steward(tmp_path, PARCEL, wait_s=5, clock=lambda: now[0], sleep=sleep)
    assert now[0] < 67
