"""One line of a journal: what it says, and how it is chained to the line before it.

Both sides write the same lines. A site says what left it and what its operator decided, the
coordinator what it asked for, what came back and who may take part. A line holds counts, names of
fields and digests, and never a value that was measured on a patient.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, canonical_json, digest_bytes, digest_json
from vitrael.core.text import one_line

Clock = Callable[[], datetime]
"""Returns the present time in UTC."""

Event = Literal[
    # Of a site. ``sent``: a result left; ``held``: one waits for its operator's word.
    "sent",
    "held",
    "consent",
    "withdrawn",
    "paused",
    "resumed",
    "released",
    "rejected",
    "joined",
    "rotated",
    "left",
    "restored",
    # Of the coordinator.
    "asked",
    "received",
    "invite",
    "join",
    "approve",
    "revoke",
    "rotate",
    "leave",
    "withdraw",
    "run",
    "release",
    "recall",
    # Of both. ``refused``, ``failed``: a sentence left at most, or what came was not believed.
    "refused",
    "failed",
    "repaired",
]

DEPARTURES: Final[frozenset[Event]] = frozenset({"sent", "refused", "failed", "joined", "rotated"})
"""Of a site: lines whose bytes left the building."""

_LONGEST_SHOWN: Final = 2000
"""Of a line for reading, so many characters: a reply may name as many fields as it likes."""

OF_THE_COORDINATOR: Final[frozenset[Event]] = frozenset(
    {
        *("asked", "received", "invite", "join", "approve", "revoke", "rotate", "leave"),
        *("withdraw", "run", "release", "recall"),
    }
)
"""Lines that no site writes."""

BEGINNING: Final = digest_bytes(b"")
"""What the first line names as the line before it."""

FORMAT: Final = 2
"""Of the lines that are written now. One of format 1 bears no number and has ``_FIRST`` alone."""

_FIRST: Final = frozenset(
    {
        *("event", "to", "protocol", "stage", "round", "nonce", "bytes", "fields", "attachments"),
        *("reason", "line", "utc", "previous", "hash"),
    }
)


class Entry(Section):
    """What one line says."""

    event: Event
    to: str = ""
    """Whom something went to, or whom it is about."""
    origin: str = ""
    """Whom something came from: the site, in its own journal and in the coordinator's."""
    key: str = ""
    """Fingerprint of the key by which the other side is known."""
    protocol: str = ""
    roster: str = ""
    stage: str = ""
    round: int = 0
    attempt: int = 0
    nonce: str = ""
    bytes: int = Field(default=0, ge=0, description="as they travel, signed and sealed")
    fields: tuple[str, ...] = ()
    """Names of the fields of the reply's body."""
    attachments: dict[str, str] = Field(default_factory=dict)
    """Digest of each attachment before it was sealed."""
    reason: str = ""
    other: str = ""
    """Hash of the last line in the other side's journal, as the other side said it; or empty."""
    other_lines: int = Field(default=0, ge=0, description="which line of its journal that is")


class Line(Entry):
    """An entry in its place."""

    format: Literal[1, 2] = FORMAT
    line: int = Field(ge=1)
    utc: str
    previous: Digest
    hash: Digest = Digest("")

    def document(self) -> dict[str, Any]:
        """Return the line as it stands in the file: JSON, with the fields of its format."""
        names = set(_FIRST) if self.format == 1 else None
        return self.model_dump(mode="json", include=names)

    def chained(self) -> Digest:
        """Return the digest of everything in the line but the digest itself."""
        document = self.document()
        del document["hash"]
        return digest_json(document)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a journal, and from which line on."""

    line: int
    what: str


def covers(line: Line, *, protocol: str = "", since: str = "") -> bool:
    """Return whether a line is of a protocol and not older than a day (``2031-05-01``, UTC).

    A protocol is named by its digest or the beginning of it, with or without ``sha256:``.
    """
    named = line.protocol.removeprefix("sha256:")
    return line.utc >= since and named.startswith(protocol.removeprefix("sha256:"))


def describe_line(line: Line) -> str:
    """Return a line of a journal for reading: rounds count from 1, as everywhere in words.

    What the other side has named and said stands in it, with a blank for what cannot be printed.
    """
    what = ", ".join((*line.fields, *line.attachments)) or line.reason
    stage = f"{line.stage} {line.round + 1}" if line.stage else "-"
    start = f"{line.utc}  {line.event:<9} {stage:<14} {line.bytes:>12} B"
    return one_line(f"{start}  {line.to or line.origin or '-':<31}  {what}", _LONGEST_SHOWN)


def write_line(line: Line) -> bytes:
    """Return the one form in which a line may stand in the file."""
    return canonical_json(line.document()) + b"\n"


def parse_line(data: bytes) -> Line | None:
    """Return the line of some bytes, or None unless they are exactly what a line is written as."""
    if not data.endswith(b"\n"):
        return None
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            return None
        line = Line.model_validate({"format": 1, **document})
    except (ValueError, RecursionError, ValidationError):
        return None
    return line if write_line(line) == data else None


def explain_unreadable(data: bytes) -> str:
    """Return why ``parse_line`` knows no line in these bytes."""
    if not data.endswith(b"\n"):
        return "the line is cut"
    try:
        number = json.loads(data)["format"]
    except (ValueError, RecursionError, TypeError, LookupError):
        return "the line was changed"
    if isinstance(number, int) and number > FORMAT:
        return f"the line is of format {number}, which a newer version of Vitrael wrote"
    return "the line was changed"
