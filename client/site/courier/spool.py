"""Parcels as folders, and the call that hands one to the steward.

A site's ``spool/in`` holds what came for the steward and ``spool/out`` what it answered, one
folder a parcel, one file an entry, open to the group of the spool: courier and steward may be two
users. A folder appears whole or not at all: it is written under a
hidden name and renamed. The steward listens on a Unix socket and answers one line of JSON with
another; the courier never waits longer than it is told to, and touches its parcel while it waits:
one that nobody has touched for ``ABANDONED_S`` is of a courier that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from vitrael.core.errors import DataError, ProcessError, storage_error
from vitrael.core.messages import ENTRY_NAME, Parcel

_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_LONGEST_ANSWER_BYTES = 64 * 1024
LONGEST_PATH = 100
"""Bytes of a socket's name that every Unix takes."""
CONNECT_S = 60.0
"""How long a parcel may lie in the spool for a steward that does not listen."""
ABANDONED_S = 10 * CONNECT_S
"""Who waits for the steward touches its parcel far more often than that."""
_TOUCH_S = CONNECT_S / 2
_MOST_LOOKED_AT = 1000
"""In ``spool/in`` at a time: whoever may write there could lay millions."""
_RETRY_S = 0.2
_MOST_LOSSES = 5
"""Stewards in a row, none up for ``CONNECT_S``, that may end over one parcel."""


def write_parcel(folder: Path, parcel: Parcel) -> None:
    """Write a parcel as a new folder that appears only when it is whole.

    Raises DataError for an entry whose name could not be a plain file name, and StorageError when
    the disk is full; nothing half written is left then.
    """
    for name in parcel:
        if not ENTRY_NAME.fullmatch(name):
            raise DataError("a parcel holds an entry whose name is not allowed")
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(mode=0o700)
        _fill(partial, parcel)
        partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise storage_error("a parcel in the spool", error) from error
        raise


def _fill(folder: Path, parcel: Parcel) -> None:
    """Write the entries into a folder that was just made, and open both to the spool's group.

    Whoever else may write beside it could put a link in its place, or in that of an entry: none is
    followed, and nothing but what is made here is opened to anybody.
    """
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(place).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the folder is another user's")
        for name, data in parcel.items():
            _write_entry(place, name, data=data)
        os.fchmod(place, 0o770)  # whatever the umask: the spool's own mode keeps others out
    finally:
        os.close(place)


def _write_entry(place: int, name: str, *, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=place), "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), 0o660)


def read_parcel(folder: Path) -> dict[str, bytes]:
    """Return the parcel of a folder.

    Raises DataError when there is no such folder or it holds anything but plain files, and
    StorageError when it cannot be read.
    """
    try:
        if not folder.is_dir() or folder.is_symlink():
            raise DataError("the spool has no such parcel")
        parcel: dict[str, bytes] = {}
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not path.is_file() or not ENTRY_NAME.fullmatch(path.name):
                raise DataError("a parcel folder holds something that is no parcel entry")
            parcel[path.name] = path.read_bytes()
    except OSError as error:
        raise storage_error("a parcel in the spool", error) from error
    return parcel


def clear_abandoned(inbox: Path) -> None:
    """Remove what lies in ``spool/in`` and nobody waits for, as far as this user may; never raises.

    Steward and courier both do it: of a courier that was killed in the middle of writing, only
    another one can remove what there is. Ages are told by the clock of the disk itself.
    """
    with contextlib.suppress(OSError):
        os.utime(inbox)
        now_s = inbox.stat().st_mtime
        with os.scandir(inbox) as found:
            some = list(islice(found, _MOST_LOOKED_AT))
        for left_over in some:
            with contextlib.suppress(OSError):  # its courier may remove it at this moment
                if abs(now_s - left_over.stat(follow_symlinks=False).st_mtime) <= ABANDONED_S:
                    continue
                if left_over.is_dir(follow_symlinks=False):
                    shutil.rmtree(left_over.path, ignore_errors=True)
                else:
                    Path(left_over.path).unlink()


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Give a name of a socket that is short enough, however long the path of its folder is.

    Raises OSError when there is no such folder.
    """
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def steward_socket(home: Path) -> Path:
    """Return where the steward of a site listens, as ``steward.json`` says."""
    try:
        note = json.loads((home / "steward.json").read_text(encoding="utf-8"))
        return Path(str(note["socket"]))
    except (OSError, ValueError, KeyError, TypeError):
        return home / "steward.sock"


def call_steward(
    home: Path,
    parcel: Parcel,
    *,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, bytes]:
    """Hand a parcel to the steward of a site and return its answer.

    Waits at most ``wait_s`` seconds in all, of these at most a minute for a steward that does
    not listen. One that ends in the middle is asked again when it is back: it goes on from what it
    has kept. At the end the parcel is removed, and the reply where this user may; where not, the
    steward does it with its next replies, and keeps what must be kept. Raises ProcessError when
    there is no answer in time, DataError when the answer is no parcel, and StorageError when the
    spool cannot be used.
    """
    until = clock() + wait_s
    incoming = home / "spool" / "in" / uuid.uuid4().hex
    clear_abandoned(incoming.parent)
    write_parcel(incoming, parcel)
    try:
        answer = _ask(home, incoming, until=until, clock=clock, sleep=sleep)
        reply = answer.get("parcel")
        if not isinstance(reply, str):
            reason = answer.get("error")
            raise ProcessError(
                "the steward refused the parcel", why=str(reason)[:500] if reason else ""
            )
        if not _FOLDER.fullmatch(reply):
            raise DataError("the steward named a parcel that cannot be in the spool")
        outgoing = home / "spool" / "out" / reply
        try:
            return read_parcel(outgoing)
        finally:
            shutil.rmtree(outgoing, ignore_errors=True)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


class _StewardEndedError(ProcessError):
    """The steward ended, or was ended, before it answered."""


def _touch(folder: Path) -> None:
    """Say that somebody waits for the answer to a parcel."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def _ask(
    home: Path,
    incoming: Path,
    *,
    until: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> dict[str, object]:
    """Return the steward's answer, asking again when it ends before it gives one."""
    losses = 0
    while True:
        began = clock()
        _touch(incoming)
        try:
            return _exchange_line(home, incoming, until=until, clock=clock, sleep=sleep)
        except _StewardEndedError:
            losses = 1 if clock() - began >= CONNECT_S else losses + 1
            if losses >= _MOST_LOSSES or clock() >= until:
                raise
            sleep(_RETRY_S)


def _exchange_line(
    home: Path,
    incoming: Path,
    *,
    until: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> dict[str, object]:
    with _connect(home, until=until, clock=clock, sleep=sleep) as connection:
        received = b""
        try:
            connection.sendall(json.dumps({"parcel": incoming.name}).encode() + b"\n")
            while b"\n" not in received and len(received) <= _LONGEST_ANSWER_BYTES:
                block = _receive(connection, incoming, until=until, clock=clock)
                if not block:
                    break
                received += block
        except TimeoutError as error:
            raise ProcessError("the steward did not answer in time") from error
        except OSError as error:
            raise _StewardEndedError("the steward hung up", why=error.strerror or "") from error
    if b"\n" not in received and len(received) <= _LONGEST_ANSWER_BYTES:
        raise _StewardEndedError("the steward ended without an answer")
    try:
        answer = json.loads(received.partition(b"\n")[0])
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ProcessError("the steward answered something that is no answer")
    return answer


def _receive(
    connection: socket.socket, incoming: Path, *, until: float, clock: Callable[[], float]
) -> bytes:
    """Return what comes next; touch the parcel while nothing does. TimeoutError: not in time."""
    while True:
        left_s = until - clock()
        connection.settimeout(max(min(left_s, _TOUCH_S), 0.001))
        try:
            return connection.recv(4096)
        except TimeoutError:
            if left_s <= _TOUCH_S:
                raise
            _touch(incoming)


def _connect(
    home: Path, *, until: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> socket.socket:
    give_up = min(until, clock() + CONNECT_S)
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(until - clock(), 0.001))
            with short_name(steward_socket(home)) as name:
                connection.connect(name)
        except OSError as error:
            connection.close()
            if clock() >= give_up:
                raise ProcessError(
                    "the steward does not listen",
                    why=error.strerror or "",
                    fix="start it with `vitrael site run`",
                ) from error
            sleep(_RETRY_S)
        else:
            return connection
