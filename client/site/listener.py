"""The steward's one ear: a Unix socket, one request at a time, and the spool folder beside it.

A request is one line ``{"parcel": "<folder under spool/in>"}``; the answer is one line, either
``{"parcel": "<folder under spool/out>"}`` or ``REFUSAL``, one fixed sentence: why nothing signed
came back stands in the site's log and journal and is not for whoever carries parcels.
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
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vitrael.client.site.courier.spool import write_parcel
from vitrael.client.site.settings import SiteSettings
from vitrael.client.site.store import explain_storage
from vitrael.core.digest import write_atomically
from vitrael.core.errors import DataError, ProcessError, UsageError, VitraelError
from vitrael.core.messages import Parcel

logger = logging.getLogger(__name__)

Answer = Callable[[Parcel], dict[str, bytes]]

Note = Callable[[str, int], object]
"""Writes a reason and a count of bytes into the journal, before these bytes go."""

REFUSAL = b'{"error": "the steward took no task from this parcel; its log tells why"}\n'

LONGEST_PATH = 100
"""Bytes of a socket's path that every Unix takes."""

_LONGEST_LINE = 4096
_MOST_ENTRIES = 64
_PATIENCE_S = 10.0
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ENTRY = re.compile(r"[a-z][a-z0-9_-]{0,47}")


def serve(
    settings: SiteSettings,
    answer: Answer,
    *,
    ready: Callable[[Path], object],
    note: Note | None = None,
    keep_on: Callable[[], bool] = lambda: True,
) -> None:
    """Answer one request after another for as long as ``keep_on()`` holds.

    ``ready`` is called with the socket's path once it listens, ``note`` with the reason whenever
    ``REFUSAL`` is about to go; without it the log alone tells the reason. Raises ProcessError
    when another steward serves this home.
    """
    with _only_one(settings), _listening(settings) as (listener, path):
        ready(path)
        while keep_on():
            connection, _ = listener.accept()
            with connection:
                _serve_one(connection, settings, answer, note=note)


def _serve_one(
    connection: socket.socket, settings: SiteSettings, answer: Answer, *, note: Note | None
) -> None:
    folder = None
    try:
        name = _read_request(connection)
        parcel = read_bounded(settings.inbox / name, most=settings.document.limits.parcel_bytes)
        reply = answer(parcel)
        folder = settings.outbox / uuid.uuid4().hex
        _lay_out(folder, reply)
        line = json.dumps({"parcel": folder.name}).encode() + b"\n"
    except VitraelError as error:
        line = _refuse(error.sentence(), note)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        line = _refuse(f"the spool cannot be used: {reason}.", note)
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


def _refuse(reason: str, note: Note | None) -> bytes:
    """Return what the courier is told, the same whatever the reason, once the reason is noted."""
    logger.warning("request refused: %s", reason)
    if note is not None:
        try:
            note(reason, len(REFUSAL))
        except VitraelError as error:
            logger.error("the refusal stands in no journal: %s", error.sentence())  # noqa: TRY400
    return REFUSAL


def _read_request(connection: socket.socket) -> str:
    connection.settimeout(_PATIENCE_S)
    data = b""
    while b"\n" not in data:
        if len(data) > _LONGEST_LINE:
            raise UsageError("the request is longer than a line may be")
        block = connection.recv(_LONGEST_LINE)
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


def read_bounded(folder: Path, *, most: int) -> dict[str, bytes]:
    """Return the parcel of a spool folder that another user may have written.

    Only plain files count, links are not followed, and no more than ``most`` bytes are read.
    Raises DataError for anything else.
    """
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise DataError("the spool has no such parcel", why=error.strerror or "") from error
    try:
        names = sorted(os.listdir(place))  # noqa: PTH208 - a descriptor, so that no link is followed
        if len(names) > _MOST_ENTRIES or not all(_ENTRY.fullmatch(name) for name in names):
            raise DataError("the parcel holds entries that are not allowed")
        parcel, left = {}, most
        for name in names:
            parcel[name] = _read_entry(place, name, most=left)
            left -= len(parcel[name])
        return parcel
    finally:
        os.close(place)


def _read_entry(place: int, name: str, *, most: int) -> bytes:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    except OSError as error:
        raise DataError("the parcel holds an entry that cannot be read") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError("the parcel holds an entry that is no plain file")
    with os.fdopen(handle, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(
            "the parcel is larger than this site takes",
            fix="raise limits.parcel_bytes in site.toml if that is intended",
        )
    return data


def _lay_out(folder: Path, reply: Parcel) -> None:
    """Write the reply whole or not at all."""
    try:
        with explain_storage("the reply"):
            write_parcel(folder, reply)
    except BaseException:
        shutil.rmtree(folder.with_name(f".partial-{folder.name}"), ignore_errors=True)
        raise


@contextmanager
def _only_one(settings: SiteSettings) -> Iterator[None]:
    """Hold the home's lock, so that two stewards never share a store and a device."""
    with explain_storage("the home folder"):
        handle = os.open(settings.home / "steward.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ProcessError(
                f"another steward runs for site {settings.name}",
                why="it holds steward.lock in the home folder",
                fix="end it first",
            ) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def _listening(settings: SiteSettings) -> Iterator[tuple[socket.socket, Path]]:
    for folder in (settings.inbox, settings.outbox):
        folder.mkdir(parents=True, exist_ok=True, mode=0o770)
    for left_over in settings.outbox.iterdir():
        shutil.rmtree(left_over, ignore_errors=True)  # replies nobody fetched; the store has them
    with contextlib.ExitStack() as stack:
        path = settings.home / "steward.sock"
        if len(os.fsencode(path)) > LONGEST_PATH:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitrael-"))) / "s"
        path.unlink(missing_ok=True)
        stack.callback(path.unlink, missing_ok=True)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(str(path))
        path.chmod(0o660)
        listener.listen(8)
        note = {"socket": str(path), "pid": os.getpid()}
        write_atomically(settings.steward, json.dumps(note).encode())
        stack.callback(settings.steward.unlink, missing_ok=True)
        yield listener, path
