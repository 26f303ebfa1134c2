"""What the coordinator writes down of every task and reply, and tells the sites of it.

A line stands in the coordinator's journal before a task goes, and one for whatever came back. Both
sides quote the last line of the other's journal that they were told of, so that neither can rewrite
its own history alone: ``vitrael audit verify --against`` finds it, and a site finds at once that
its own journal is an older one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine

from vitrael.core.messages import Head, Parcel, Task, parcel_size
from vitrael.core.text import one_line
from vitrael.privacy.envelope import OpenedReply
from vitrael.privacy.journal import Clock, Entry, Event, Journal, read_journal
from vitrael.privacy.keys import PublicKeys, fingerprint
from vitrael.server.db.heads import JournalHead

_LONGEST_REASON = 1000


@dataclass(slots=True)
class TaskJournal:
    """The coordinator's journal as the study that runs writes it.

    Every call raises StorageError when the journal cannot be written or is not whole: what its
    line describes must then not go on. Nothing is read or made before the first call.
    """

    journal: Journal
    members: Mapping[str, PublicKeys]
    _told: dict[str, Head] | None = field(default=None, init=False)
    """Fingerprint of a site's key -> where its journal ended when it last said so."""

    @classmethod
    def of(
        cls, home: Path, members: Mapping[str, PublicKeys], *, engine: Engine, clock: Clock
    ) -> TaskJournal:
        """Return the journal of a coordinator's home, whose database is its witness."""
        head = JournalHead(engine)
        return cls(Journal(home / "journal.jsonl", clock=clock, witness=head), members)

    def head(self) -> Head:
        """Return where this journal ends."""
        self._heads()
        kept = self.journal.head()
        return Head(lines=kept.lines, hash=kept.hash)

    def head_of(self, site: str) -> Head | None:
        """Return where a site's journal ended when it last said so; None under new keys."""
        return self._heads().get(self._key(site))

    def asked(self, task: Task, parcel: Parcel) -> None:
        """Write down a task; call it before the task goes."""
        self._heads()
        self._append(
            task,
            event="asked",
            to=task.site,
            bytes=parcel_size(parcel),
            attachments={name: str(digest) for name, digest in task.inputs.items()},
            **_quoted(task.yours),
        )

    def received(self, task: Task, opened: OpenedReply, parcel: Parcel) -> None:
        """Write down a reply whose signature and digests hold, whatever it says."""
        reply = opened.reply
        done = reply.status == "done"
        said = "" if done else f"{reply.status}: {one_line(reply.reason, _LONGEST_REASON)}"
        self._append(
            task,
            event="received",
            origin=task.site,
            bytes=parcel_size(parcel),
            fields=tuple(sorted({*reply.body, *(["num_examples"] if reply.num_examples else [])})),
            attachments={name: str(digest) for name, digest in reply.outputs.items()},
            reason=said,
            **_quoted(reply.journal),
        )
        if reply.journal is not None:
            self._heads()[self._key(task.site)] = reply.journal

    def refused(self, task: Task, reason: str, *, size: int = 0) -> None:
        """Write down why what came is not believed; ``size`` unless it was received before."""
        reason = one_line(reason, _LONGEST_REASON)
        self._append(task, event="refused", origin=task.site, bytes=size, reason=reason)

    def missed(self, task: Task, reason: str) -> None:
        """Write down that nothing came, and why."""
        self._append(task, event="failed", to=task.site, reason=one_line(reason, _LONGEST_REASON))

    def _append(self, task: Task, *, event: Event, **said: object) -> None:
        self.journal.append(
            Entry.model_validate(
                {
                    "event": event,
                    "key": self._key(task.site),
                    **task.model_dump(
                        include={"protocol", "roster", "stage", "round", "attempt", "nonce"}
                    ),
                    **said,
                }
            )
        )

    def _heads(self) -> dict[str, Head]:
        if self._told is None:
            self.journal.demand_whole()
            self._told = {
                line.key: Head.model_validate({"lines": line.other_lines, "hash": line.other})
                for line in read_journal(self.journal.path)
                if line.event == "received" and line.other
            }
        return self._told

    def _key(self, site: str) -> str:
        return fingerprint(self.members[site].signing)


def _quoted(head: Head | None) -> dict[str, object]:
    return {} if head is None else {"other": head.hash, "other_lines": head.lines}
