"""The journal: one JSON line for everything that leaves a site, chained by hashes, append-only.

Each line holds the digest of the line before it. ``journal.head.json`` holds the number of lines
and the last digest, and so does the site's store. So a changed, dropped, reordered or cut line is
found, and a journal that was removed together with its head. The chain has no key: it shows
accidents and careless hands. Who can write journal, head and store can rewrite all three, and only
a copy elsewhere would tell. A line is on disk before the bytes that it describes go; refusals of
what proves no origin are counted together (``refusals``). A line holds counts, names of fields and
digests, and never a value that was measured on a patient.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from pydantic import Field, ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, canonical_json, digest_bytes, digest_json, write_atomically
from vitrael.core.errors import StorageError, storage_error

Clock = Callable[[], datetime]
"""Returns the present time in UTC."""

Event = Literal["sent", "refused", "failed", "consent", "repaired"]
"""``sent``: a result left. ``refused`` and ``failed``: a sentence left at most."""

BEGINNING = digest_bytes(b"")
"""What the first line names as the line before it."""


class Entry(Section):
    """What one line says."""

    event: Event
    to: str = ""
    protocol: str = ""
    stage: str = ""
    round: int = 0
    nonce: str = ""
    bytes: int = Field(default=0, ge=0, description="as they left, signed and sealed")
    fields: tuple[str, ...] = ()
    """Names of the fields of the reply's body."""
    attachments: dict[str, str] = Field(default_factory=dict)
    """Digest of each attachment before it was sealed."""
    reason: str = ""


class Line(Entry):
    """An entry in its place."""

    line: int = Field(ge=1)
    utc: str
    previous: Digest
    hash: Digest = Digest("")

    def chained(self) -> Digest:
        """Return the digest of everything in the line but the digest itself."""
        return digest_json(self.model_dump(mode="json", exclude={"hash"}))


class _Head(Section):
    lines: int = Field(ge=0)
    bytes: int = Field(ge=0)
    hash: Digest


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the journal, and from which line on."""

    line: int
    what: str


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
        """Remember a head, durably."""
        ...


class Journal:
    """Appends lines to one file; several processes may do so in turn."""

    def __init__(self, path: Path, *, clock: Clock, witness: Witness | None = None) -> None:
        """Take the file (made when missing), the time, and who remembers the last line."""
        self._path = path
        self._clock = clock
        self._witness = witness

    def append(self, entry: Entry) -> Line:
        """Return the line that now stands on disk.

        Raises StorageError when the disk is full or the journal is not whole; what the line
        describes must then not leave.
        """
        try:
            with _locked(self._path) as file:
                head = self._recover(file)
                self._check_witness(head)
                line = self._write(file, head, entry)
                if self._witness is not None:
                    self._witness.keep_head(Kept(line.line, line.hash))
                return line
        except OSError as error:
            raise storage_error(
                "the journal", error, fix="make room on the disk; nothing leaves without a line"
            ) from error

    def demand_whole(self) -> None:
        """Raise StorageError, which names the first fault, unless every line is as it was written.

        An unfinished last line of a killed process is settled first: that is no fault.
        """
        try:
            with _locked(self._path) as file:
                self._recover(file)
                faults = _find_faults(self._path, kept=self._remembered())
        except OSError as error:
            raise storage_error(
                "the journal", error, fix="make room and make it readable; nothing leaves before"
            ) from error
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
        data = canonical_json(line.model_dump(mode="json")) + b"\n"
        file.seek(head.bytes)
        try:
            file.write(data)
            file.flush()
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
        line = _parse(tail)
        if line is not None and line.previous == head.hash and line.line == head.lines + 1:
            head = _Head(lines=line.line, bytes=size, hash=line.hash)
            _save_head(self._path, head)
            return head
        if b"\n" in tail:
            raise tell_faults(_verify_chain(self._path))
        file.truncate(head.bytes)  # a line that was cut while it was written: nothing left for it
        repaired = Entry(event="repaired", reason=f"{len(tail)} bytes of an unfinished line")
        line = self._write(file, head, repaired)
        return _Head(lines=line.line, bytes=file.tell(), hash=line.hash)


def read_journal(path: Path) -> Iterator[Line]:
    """Yield the lines of a journal; raise StorageError at one that is no line.

    A last one that was cut while it was written is left out: nothing left for it.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            line = _parse(data)
            if line is not None:
                yield line
            elif data.endswith(b"\n"):
                raise tell_faults([Fault(number, "the line was changed")])


def verify_journal(path: Path, *, kept: Kept | None = None) -> list[Fault]:
    """Return what is wrong with a journal; an empty list says that it is whole.

    ``kept`` is what a witness remembers; without it a journal that was removed together with its
    head passes for one that has not begun. A last line that was cut while it was written is no
    fault: nothing left for it, and the next line settles it.
    """
    if not path.exists():
        return _find_faults(path, kept=kept)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # no line comes between head and lines
        return _find_faults(path, kept=kept)


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
                line = _parse(data)
                same = line is not None and line.hash == kept.hash
                return [] if same else [Fault(number, "the line is not the one remembered")]
    return [Fault(number + 1, f"{kept.lines - number} lines at the end are missing")]


def _find_faults(path: Path, *, kept: Kept | None) -> list[Fault]:
    return _verify_chain(path) or find_loss(path, kept=kept)


def _verify_chain(path: Path) -> list[Fault]:
    head = _load_head(path)
    if head is None:
        return [Fault(0, "journal.head.json is missing")] if path.exists() else []
    faults: list[Fault] = []
    previous, number, size_bytes = BEGINNING, 0, 0
    as_counted = head == _Head(lines=0, bytes=0, hash=BEGINNING)
    data = path.read_bytes() if path.exists() else b""
    for number, raw in enumerate(data.splitlines(keepends=True), start=1):
        line, cut = _parse(raw), not raw.endswith(b"\n")
        if cut and number == head.lines + 1:
            break  # while it was written: the next line settles it
        if line is None:
            faults.append(Fault(number, "the line is cut" if cut else "the line was changed"))
            break
        if line.chained() != line.hash:
            faults.append(Fault(number, "the line was changed"))
        if line.previous != previous or line.line != number:
            faults.append(Fault(number, "a line before this one was dropped, moved or changed"))
            break
        previous, size_bytes = line.hash, size_bytes + len(raw)
        as_counted |= head == _Head(lines=number, bytes=size_bytes, hash=line.hash)
    if not faults and number < head.lines:
        faults.append(Fault(number + 1, f"{head.lines - number} lines at the end are missing"))
    elif not faults and (not as_counted or number > head.lines + 1):
        faults.append(Fault(head.lines, "the lines are not those that journal.head.json counts"))
    return faults


def _parse(data: bytes) -> Line | None:
    if not data.endswith(b"\n"):
        return None
    try:
        line = Line.model_validate(json.loads(data))
    except (ValueError, ValidationError):
        return None
    canonical: Mapping[str, Any] = line.model_dump(mode="json")
    return line if canonical_json(canonical) + b"\n" == data else None


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


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def tell_faults(faults: Sequence[Fault]) -> StorageError:
    """Return the error that names the first of some faults, and how the journal is mended."""
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return _not_whole(f"line {first.line}: {first.what}{more}" if first.line else first.what)


def _not_whole(why: str) -> StorageError:
    return StorageError(
        "the journal is not whole",
        why=why,
        fix="restore journal.jsonl and journal.head.json from a backup; until then nothing leaves",
    )
