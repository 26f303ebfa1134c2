"""Journals of a coordinator and its sites that have talked with each other, without any process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.fakes.clock import FakeClock
from vitrael.core.digest import digest_bytes
from vitrael.privacy.journal import Entry, Journal, Kept, Line, read_journal

PROTOCOL = digest_bytes(b"protocol")


@dataclass(slots=True)
class Talk:
    """One coordinator and some sites that write what the real ones write."""

    home: Path
    clock: FakeClock = field(default_factory=FakeClock)
    told: dict[str, Kept] = field(default_factory=dict)
    nonces: int = 0

    @property
    def coordinator(self) -> Path:
        return self.home / "coordinator" / "journal.jsonl"

    def site(self, name: str) -> Path:
        return self.home / name / "journal.jsonl"

    def begin(self, *sites: str) -> None:
        self.write(self.coordinator, event="run", reason="study brain")
        for name in sites:
            self.write(self.coordinator, event="approve", to=name)
            self.write(self.site(name), event="consent", origin=name, protocol=PROTOCOL)

    def round(self, name: str, number: int, *, lost: bool = False) -> None:
        """Ask a site for one round; ``lost``: its answer does not arrive."""
        self.nonces += 1
        self.clock.advance(minutes=1)
        task: dict[str, Any] = {
            "protocol": PROTOCOL,
            "stage": "codec",
            "round": number,
            "nonce": f"{self.nonces:032x}",
        }
        ours = self.head(self.coordinator)
        self.write(self.coordinator, event="asked", to=name, **task, **quote(self.told.get(name)))
        theirs = self.head(self.site(name))
        reply = {**task, "bytes": 1000 + number, "fields": ("num_examples",)}
        reply["attachments"] = {"codec": digest_bytes(b"%d" % number)}
        self.write(
            self.site(name), event="sent", origin=name, to="coordinator", **reply, **quote(ours)
        )
        if not lost:
            self.write(self.coordinator, event="received", origin=name, **reply, **quote(theirs))
            self.told[name] = theirs

    def head(self, path: Path) -> Kept:
        return Journal(path, clock=self.clock).head()

    def write(self, path: Path, **said: Any) -> Line:
        return Journal(path, clock=self.clock).append(Entry.model_validate(said))

    def rewrite(self, path: Path, change: Callable[[list[Line]], Iterable[Entry]]) -> None:
        """Write a journal anew, head and times as they were: nothing in it alone is wrong."""
        lines = list(read_journal(path))
        shutil.rmtree(path.parent)
        clock = FakeClock(self.clock())
        journal = Journal(path, clock=clock)
        for entry in change(lines):
            if isinstance(entry, Line):
                clock.now = datetime.fromisoformat(entry.utc)
            said = entry.model_dump(include=set(Entry.model_fields))
            journal.append(Entry.model_validate(said))


def quote(head: Kept | None) -> dict[str, Any]:
    return {} if head is None else {"other": head.hash, "other_lines": head.lines}
