"""The journal: JSON lines chained by hashes, append-only; the coordinator and each site keep one.

Each line holds the digest of the line before it. ``journal.head.json`` holds the number of lines
and the last digest, and so may a witness in another place. So a changed, dropped, reordered or cut
line is found, and a journal that was removed together with its head. The chain has no key: who can
write journal, head and witness can rewrite all three. What tells then is the other side, which has
written down the hashes that it was told (``journal_cross``). A line is on disk before the bytes
that it describes go. Appending takes the same time however long the journal is.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pydantic import Field, ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, canonical_json, write_atomically
from vitrael.core.errors import StorageError, storage_error
from vitrael.privacy.journal_line import (
    BEGINNING,
    Clock,
    Entry,
    Event,
    Fault,
    Line,
    explain_unreadable,
    parse_line,
    write_line,
)
from vitrael.privacy.journal_lock import PATIENCE_S, lock_in_time

__all__ = [
    "BEGINNING",
    "Clock",
    "Entry",
    "Event",
    "Fault",
    "Journal",
    "Kept",
    "Line",
    "Witness",
    "find_loss",
    "read_journal",
    "read_journal_from",
    "tell_faults",
    "verify_copy",
    "verify_journal",
]

_BLOCK_BYTES = 1 << 16


class _Head(Section):
    lines: int = Field(ge=0)
    bytes: int = Field(ge=0)
    hash: Digest


@dataclass(frozen=True, slots=True)
class Kept:
    """Number and digest of the last line, as they are remembered outside the journal."""

    lines: int
    hash: Digest


class Witness(Protocol):
    """Remembers, in another place than the journal's files, where the journal ends."""

    def read_head(self) -> Kept | None:
        """Return what was kept last, or None."""
        ...

    def keep_head(self, head: Kept) -> None:
        """Remember a head, durably; of two processes the one behind may come later."""
        ...


class Journal:
    """Appends lines to one file; several processes may do so in turn."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        witness: Witness | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Take the file (made when missing), the time, and who remembers the last line.

        ``patience_s`` is how long another process may hold the journal.
        """
        self._path = path
        self._clock = clock
        self._witness = witness
        self._patience_s = patience_s

    @property
    def path(self) -> Path:
        """The file of lines."""
        return self._path

    def append(self, entry: Entry) -> Line:
        """Return the line that now stands on disk.

        Raises StorageError when the disk is full, the journal is not whole, or another process
        holds it for too long; what the line describes must then not leave.
        """
        with self._opened("make room on the disk; nothing leaves without a line") as file:
            head = self._recover(file)
            self._check_witness(head)
            line = self._write(file, head, entry)
        if self._witness is not None:  # it may wait for who waits for the journal
            self._witness.keep_head(Kept(line.line, line.hash))
        return line

    def head(self) -> Kept:
        """Return number and hash of the last line; 0 and ``BEGINNING`` before the first.

        Raises StorageError as ``append`` does.
        """
        with self._opened("make room on the disk; nothing leaves without a line") as file:
            head = self._recover(file)
            self._check_witness(head)
            return Kept(head.lines, head.hash)

    def has_answered(self, head: Kept) -> bool:
        """Return whether the journal has that line with that hash and, behind it, one of a reply.

        A reply tells the line before its own. What stands behind ``restored`` counts for nothing:
        whoever wrote it may have forgotten that reply. It is looked for from the end, which takes
        as long as what was written since is.
        """
        replied = False
        with self._opened("make it readable; nothing leaves before") as file:
            self._recover(file)
            for line in _backwards(file):
                if line.line <= head.lines:
                    return replied and (line.line, line.hash) == (head.lines, head.hash)
                replied = line.event != "restored" and (replied or bool(line.nonce))
        return replied and head == Kept(0, BEGINNING)

    def demand_whole(self) -> None:
        """Raise StorageError, which names the first fault, unless every line is as it was written.

        An unfinished last line of a killed process is settled first: that is no fault.
        """
        with self._opened("make room and make it readable; nothing leaves before") as file:
            self._recover(file)
            faults = _find_faults(self._path, kept=self._remembered())
        if faults:
            raise tell_faults(faults)

    def _check_witness(self, head: _Head) -> None:
        """Raise StorageError when the journal ends before the line that is remembered.

        It may end after it: a process was killed between the line and the memory of it.
        """
        kept = self._remembered()
        if kept is None or head.lines > kept.lines:
            return
        if (head.lines, head.hash) != (kept.lines, kept.hash):
            raise tell_faults(_find_faults(self._path, kept=kept))

    def _remembered(self) -> Kept | None:
        return None if self._witness is None else self._witness.read_head()

    def _write(self, file: BinaryIO, head: _Head, entry: Entry) -> Line:
        line = Line(
            **entry.model_dump(),
            line=head.lines + 1,
            utc=self._clock().isoformat(timespec="milliseconds"),
            previous=head.hash,
        )
        line = line.model_copy(update={"hash": line.chained()})
        data = write_line(line)
        file.seek(head.bytes)
        rest = memoryview(data)
        try:
            while rest:  # the file has no buffer: a full disk takes a part and then none
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(head.bytes)
            raise
        _save_head(self._path, _Head(lines=line.line, bytes=head.bytes + len(data), hash=line.hash))
        return line

    def _recover(self, file: BinaryIO) -> _Head:
        """Return the head, having settled what a killed process left behind it."""
        head = _load_head(self._path)
        file.seek(0, os.SEEK_END)
        size = file.tell()
        if head is None:
            if size:
                raise tell_faults(_verify_chain(self._path))
            head = _Head(lines=0, bytes=0, hash=BEGINNING)
            _save_head(self._path, head)
        if size < head.bytes:
            raise tell_faults(_verify_chain(self._path))
        if size == head.bytes:
            return head
        file.seek(head.bytes)
        tail = file.read()
        line = parse_line(tail)
        follows = line is not None and (line.previous, line.line) == (head.hash, head.lines + 1)
        if line is not None and follows and line.chained() == line.hash:
            head = _Head(lines=line.line, bytes=size, hash=line.hash)
            _save_head(self._path, head)
            return head
        if b"\n" in tail:
            raise tell_faults(_verify_chain(self._path))
        file.truncate(head.bytes)  # a line that was cut while it was written: nothing left for it
        repaired = Entry(event="repaired", reason=f"{len(tail)} bytes of an unfinished line")
        line = self._write(file, head, repaired)
        return _Head(lines=line.line, bytes=file.tell(), hash=line.hash)

    @contextmanager
    def _opened(self, fix: str) -> Iterator[BinaryIO]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            with os.fdopen(handle, "r+b", buffering=0) as file:
                lock_in_time(handle, fcntl.LOCK_EX, patience_s=self._patience_s)
                yield file
        except OSError as error:
            raise storage_error("the journal", error, fix=fix) from error


def read_journal(path: Path) -> Iterator[Line]:
    """Yield the lines of a journal; raise StorageError at one that is no line.

    A last one that was cut while it was written is left out: nothing left for it.
    """
    for line, _ in read_journal_from(path, 0):
        yield line


def read_journal_from(path: Path, place_bytes: int) -> Iterator[tuple[Line, int]]:
    """Yield each line from a place on, with the place at which it ends; as ``read_journal``."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(place_bytes)
        last = 0
        for data in file:
            place_bytes += len(data)
            line = parse_line(data)
            if line is not None:
                last = line.line
                yield line, place_bytes
            elif data.endswith(b"\n"):
                raise tell_faults([Fault(last + 1, explain_unreadable(data))])


def verify_journal(
    path: Path, *, kept: Kept | None = None, patience_s: float = PATIENCE_S
) -> list[Fault]:
    """Return what is wrong with a journal; an empty list says that it is whole.

    ``kept`` is what a witness remembers; without it a journal that was removed together with its
    head passes for one that has not begun. A last line that was cut while it was written is no
    fault: nothing left for it, and the next line settles it. Raises StorageError when another
    process holds the journal for longer than ``patience_s``.
    """
    if not path.exists():
        return _find_faults(path, kept=kept)
    with path.open("rb") as file:
        # No line comes between head and lines.
        lock_in_time(file.fileno(), fcntl.LOCK_SH, patience_s=patience_s)
        return _find_faults(path, kept=kept)


def verify_copy(path: Path, *, patience_s: float = PATIENCE_S) -> list[Fault]:
    """Return what is wrong with a journal, as ``verify_journal``, or with a copy of its lines.

    A copy has no ``journal.head.json`` beside it: then a journal cut after a whole line passes.
    """
    if _head_path(path).exists():
        return verify_journal(path, patience_s=patience_s)
    return _walk_chain(path, None)


def find_loss(path: Path, *, kept: Kept | None) -> list[Fault]:
    """Return whether the journal lacks the line that a witness remembers; the chain is not read."""
    if kept is None:
        return []
    if not path.exists() or not path.stat().st_size:
        return [Fault(1, f"the journal was removed: {kept.lines} lines stood in it")]
    number = 0
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            if number == kept.lines:
                line = parse_line(data)
                same = line is not None and line.hash == kept.hash
                return [] if same else [Fault(number, "the line is not the one remembered")]
    return [Fault(number + 1, f"{kept.lines - number} lines at the end are missing")]


def _find_faults(path: Path, *, kept: Kept | None) -> list[Fault]:
    return _verify_chain(path) or find_loss(path, kept=kept)


def _verify_chain(path: Path) -> list[Fault]:
    head = _load_head(path)
    if head is None:
        return [Fault(0, "journal.head.json is missing")] if path.exists() else []
    return _walk_chain(path, head)


def _walk_chain(path: Path, head: _Head | None) -> list[Fault]:
    """Return what is wrong with the lines, and with their number where a head counts them."""
    faults: list[Fault] = []
    previous, number, size_bytes = BEGINNING, 0, 0
    as_counted = head == _Head(lines=0, bytes=0, hash=BEGINNING)
    for number, raw in enumerate(_raw_lines(path), start=1):
        line = parse_line(raw)
        if not raw.endswith(b"\n") and (head is None or number == head.lines + 1):
            break  # while it was written: the next line settles it
        if line is None:
            faults.append(Fault(number, explain_unreadable(raw)))
            break
        if line.chained() != line.hash:
            faults.append(Fault(number, "the line was changed"))
        if line.previous != previous or line.line != number:
            faults.append(Fault(number, "a line before this one was dropped, moved or changed"))
            break
        previous, size_bytes = line.hash, size_bytes + len(raw)
        as_counted |= head == _Head(lines=number, bytes=size_bytes, hash=line.hash)
    if faults or head is None:
        return faults
    if number < head.lines:
        faults.append(Fault(number + 1, f"{head.lines - number} lines at the end are missing"))
    elif not as_counted or number > head.lines + 1:
        faults.append(Fault(head.lines, "the lines are not those that journal.head.json counts"))
    return faults


def _raw_lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            yield from file


def _backwards(file: BinaryIO) -> Iterator[Line]:
    """Yield the lines from the last to the first."""
    position = file.seek(0, os.SEEK_END)
    tail = b""
    while position:
        start = max(0, position - _BLOCK_BYTES)
        file.seek(start)
        pieces = (file.read(position - start) + tail).splitlines(keepends=True)
        position = start
        tail = pieces.pop(0) if start else b""
        for raw in reversed(pieces):
            if (line := parse_line(raw)) is not None:
                yield line


def _head_path(path: Path) -> Path:
    return path.with_suffix(".head.json")


def _load_head(path: Path) -> _Head | None:
    try:
        return _Head.model_validate_json(_head_path(path).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise _not_whole("journal.head.json was changed") from error


def _save_head(path: Path, head: _Head) -> None:
    write_atomically(_head_path(path), canonical_json(head.model_dump(mode="json")) + b"\n")


def tell_faults(faults: Sequence[Fault]) -> StorageError:
    """Return the error that names the first of some faults, and how the journal is mended."""
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return _not_whole(f"line {first.line}: {first.what}{more}" if first.line else first.what)


def _not_whole(why: str) -> StorageError:
    return StorageError(
        "the journal is not whole",
        why=why,
        fix="restore it from a backup while nothing runs (at a site: `vitrael site restore FILE`): "
        "without a whole journal nothing starts",
    )
