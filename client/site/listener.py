"""The steward's one ear: a Unix socket, one request at a time, and the spool folder beside it.

A request is one line ``{"parcel": "<folder under spool/in>"}``; the answer is one line, either
``{"parcel": "<folder under spool/out>"}`` or ``REFUSAL``, one fixed sentence: why nothing signed
came back stands in the site's log and journal and is not for whoever carries parcels. Where the
disk fails it is ``NO_DISK``: the coordinator must hear that much, and the spool shows it anyway.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrael.client.site.courier.spool import clear_abandoned, short_name, write_parcel
from vitrael.client.site.database import explain_storage
from vitrael.client.site.inbox import open_parcel
from vitrael.client.site.life import note_of_life
from vitrael.client.site.settings import STEWARD_LOCK, SiteSettings
from vitrael.core.errors import (
    ConfigError,
    ProcessError,
    StorageError,
    TaskStopped,
    UsageError,
    VitraelError,
    storage_error,
)
from vitrael.core.messages import Parcel

logger = logging.getLogger(__name__)

Answer = Callable[[Parcel], dict[str, bytes]]

Note = Callable[[str, int], object]
"""Writes a reason and a count of bytes into the journal, or counts both for its next line."""

REFUSAL = b'{"error": "the steward took no task from this parcel; its log tells why"}\n'
NO_DISK = b'{"error": "the steward cannot use its disk or its journal; nothing leaves before"}\n'

_LONGEST_LINE = 4096
_PATIENCE_S = 10.0
_POLL_S = 0.25
"""How often the ear looks whether it is to end."""
_MOST_WAITING = 128
"""Who may stand before the ear: couriers that ended while a task ran for hours stand there too."""
_MOST_REPLIES = 4
"""In the spool at a time: who asks again and again, and fetches nothing, fills no disk."""
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def serve(
    settings: SiteSettings,
    answer: Answer,
    *,
    ready: Callable[[Path], object],
    note: Note | None = None,
    stopping: Callable[[], bool] = lambda: False,
    rest: Callable[[], object] = lambda: None,
) -> None:
    """Answer one request after another until ``stopping()`` holds, which is looked at all the time.

    ``ready`` is called with the socket's path once it listens, ``note`` with the reason whenever
    ``REFUSAL`` is about to go; without it the log alone tells the reason. ``rest`` is called after
    each request, when nobody waits for an answer. Raises ProcessError when another steward serves
    this home.
    """
    with _only_one(settings), _listening(settings) as (listener, path):
        laid: deque[Path] = deque()
        ready(path)
        listener.settimeout(_POLL_S)
        while not stopping():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                _serve_one(connection, settings, answer, note=note, laid=laid)
            clear_abandoned(settings.inbox)
            rest()


def _serve_one(
    connection: socket.socket,
    settings: SiteSettings,
    answer: Answer,
    *,
    note: Note | None,
    laid: deque[Path],
) -> None:
    """Answer one request; ``laid`` holds the replies that may still be in the spool."""
    folder = None
    try:
        name = read_request(connection)
        most = settings.document.limits.parcel_bytes
        with open_parcel(settings.inbox / name, most=most) as parcel:
            reply = answer(parcel)
        while len(laid) >= _MOST_REPLIES:
            shutil.rmtree(laid.popleft(), ignore_errors=True)
        folder = settings.outbox / uuid.uuid4().hex
        write_parcel(folder, reply)
        laid.append(folder)
        line = json.dumps({"parcel": folder.name}).encode() + b"\n"
    except TaskStopped as error:
        logger.info("no answer: %s", error)
        return  # the courier hears nothing, and its message is sent again
    except StorageError as error:
        line = _refuse(error.sentence(), note, said=NO_DISK)
    except VitraelError as error:
        line = _refuse(error.sentence(), note)
    except OSError as error:
        line = _refuse(storage_error("the spool", error).sentence(), note, said=NO_DISK)
    except Exception as error:  # noqa: BLE001 - the process boundary: no request ends the steward
        # The type alone: the text may tell data.
        line = _refuse(f"the steward failed unexpectedly: {type(error).__name__}.", note)
    try:
        connection.settimeout(_PATIENCE_S)
        connection.sendall(line)
    except OSError:
        logger.warning("the courier hung up before its answer")
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse(reason: str, note: Note | None, *, said: bytes = REFUSAL) -> bytes:
    """Return what the courier is told, a fixed sentence, once the reason is noted."""
    logger.warning("request refused: %s", reason, extra={"reason": reason})
    if note is not None:
        try:
            note(reason, len(said))
        except VitraelError as error:
            logger.error("the refusal stands in no journal: %s", error)  # noqa: TRY400
    return said


def read_request(connection: socket.socket, *, clock: Callable[[], float] = time.monotonic) -> str:
    """Return the name of the folder that a request asks about.

    The whole line must come within ten seconds: this is the steward's one ear, and who sends a
    byte now and then would keep it. Raises UsageError for anything else than such a line.
    """
    until = clock() + _PATIENCE_S
    data = b""
    while b"\n" not in data:
        if len(data) > _LONGEST_LINE:
            raise UsageError("the request is longer than a line may be")
        left_s = until - clock()
        try:
            if left_s <= 0:
                raise TimeoutError  # noqa: TRY301 - as the socket says it
            connection.settimeout(left_s)
            block = connection.recv(_LONGEST_LINE)
        except TimeoutError as error:
            raise UsageError(f"the request did not come within {_PATIENCE_S:g} s") from error
        if not block:
            raise UsageError("the request ends before its line does")
        data += block
    try:
        name = json.loads(data.partition(b"\n")[0])["parcel"]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError("the request is not a line of JSON that names a parcel") from error
    if not isinstance(name, str) or not _FOLDER.fullmatch(name):
        raise UsageError("the request names a parcel that cannot be in the spool")
    return name


@contextmanager
def _only_one(settings: SiteSettings) -> Iterator[None]:
    """Hold the home's lock, so that two stewards never share a store and a device.

    Nor does a cohort change under the steward that holds it: see ``ingest.places``.
    """
    with explain_storage("the home folder"):
        handle = os.open(settings.home / STEWARD_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _explain_lock(handle, settings) from error
        yield
    finally:
        os.close(handle)


def _explain_lock(handle: int, settings: SiteSettings) -> ProcessError:
    """Return who holds the lock: another steward alone, or commands that share it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return ProcessError(
            f"another steward runs for site {settings.name}",
            why=f"it holds {STEWARD_LOCK} in the home folder",
            fix="end it first",
        )
    return ProcessError(
        f"a cohort of site {settings.name} is being changed by another command",
        why="a steward must not see it change",
        fix="wait until it has ended",
    )


def _demand_own(folder: Path) -> None:
    """Raise ConfigError unless this user alone may put or remove what stands in a folder.

    The courier, another user in the same group, could otherwise put a link in the place of
    ``spool/out`` or of a reply, and the steward would write and remove where that leads.
    """
    found = folder.lstat()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not own or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"the folder {folder} can be changed by other users",
            why="they could lead the steward to another place",
            fix="give it to the steward's user with mode 0750; nobody but spool/in takes parcels",
        )


@contextmanager
def _listening(settings: SiteSettings) -> Iterator[tuple[socket.socket, Path]]:
    settings.outbox.parent.mkdir(exist_ok=True, mode=0o750)
    settings.inbox.mkdir(exist_ok=True, mode=0o770)
    settings.outbox.mkdir(exist_ok=True, mode=0o750)
    for folder in (settings.outbox.parent, settings.outbox):
        _demand_own(folder)
    for left_over in settings.outbox.iterdir():
        shutil.rmtree(left_over, ignore_errors=True)  # nobody fetched it; the store has it
    clear_abandoned(settings.inbox)
    with contextlib.ExitStack() as stack:
        path = settings.home / "steward.sock"
        path.unlink(missing_ok=True)
        stack.callback(path.unlink, missing_ok=True)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        with short_name(path) as name:
            listener.bind(name)
        path.chmod(0o660)
        listener.listen(_MOST_WAITING)
        note = {"socket": str(path), "pid": os.getpid()}
        stack.enter_context(note_of_life(settings.steward, note))
        yield listener, path
