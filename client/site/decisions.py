"""What the site's operator has decided, as the store keeps it: pause, leaving, held results.

An act that takes away and the line that the journal owes for it are committed together; the line is
taken off the list once the journal has it. So a process that is killed in between leaves an act
whose line the next command writes (``control.Control.settle``), perhaps a second time, and never
one that stands nowhere. What gives is committed last: until then a line is owed that it was not
finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, cast

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session

from vitrael.client.site.tables import ConsentRow, HeldRow, OwedLineRow, SiteStateRow
from vitrael.core.digest import Digest
from vitrael.core.messages import Task
from vitrael.privacy.journal import Entry

State = Literal["held", "released", "rejected"]

_ONLY: Final = 1
"""The key of the one row of a table that has one."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether the site takes tasks; times in UTC, empty for what is not so."""

    paused_utc: str = ""
    left_utc: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """A finished result in manual mode: what would leave, and what was decided."""

    id: int
    protocol: Digest
    stage: str
    round: int
    fields: str
    bytes: int
    """Of its tensors and fields, before they are sealed."""
    held_utc: str
    until_utc: str
    state: State
    reason: str


class Decisions:
    """The operator's decisions in the store."""

    def __init__(self, begin: Callable[[], AbstractContextManager[Session]]) -> None:
        """Take what opens a transaction of the store."""
        self._begin = begin

    def standing(self) -> Standing:
        """Return whether the site is paused or has left."""
        with self._begin() as session:
            row = session.get(SiteStateRow, _ONLY)
            return Standing() if row is None else Standing(row.paused_utc, row.left_utc)

    def pause(self, utc: str, *, owed: Entry) -> None:
        """Pause the site."""
        with self._begin() as session:
            _state_row(session).paused_utc = utc
            _owe(session, owed)

    def resume(self, *, settles: int) -> None:
        """Take tasks again; the owed line ``settles`` is taken off its list in the same moment."""
        with self._begin() as session:
            _state_row(session).paused_utc = ""
            settle_in(session, settles)

    def leave(self, utc: str, *, owed: Entry) -> None:
        """Take every consent back, for good."""
        with self._begin() as session:
            _state_row(session).left_utc = utc
            session.execute(
                update(ConsentRow).where(ConsentRow.withdrawn_utc == "").values(withdrawn_utc=utc)
            )
            _reject(session, None, "the site has left the federation")
            _owe(session, owed)

    def withdraw(self, protocol: Digest, utc: str, *, owed: Entry) -> None:
        """Take back the consents to a protocol."""
        with self._begin() as session:
            session.execute(
                update(ConsentRow)
                .where(ConsentRow.protocol == protocol, ConsentRow.withdrawn_utc == "")
                .values(withdrawn_utc=utc)
            )
            _reject(session, protocol, "the consent was taken back")
            _owe(session, owed)

    def hold(
        self, task: Task, *, fields: str, size: int, now: datetime, until: datetime, owed: Entry
    ) -> int | None:
        """Hold the result of a task, once; return the number of the owed line, or None.

        When it is held already its deadline alone is moved.
        """
        with self._begin() as session:
            row = session.scalar(_of_task(task))
            if row is not None:
                row.until_utc = _utc(until)
                return None
            session.add(
                HeldRow(
                    protocol=task.protocol,
                    roster=task.roster,
                    stage=task.stage,
                    round=task.round,
                    input_digest=task.input_digest,
                    fields=fields[:2000],
                    bytes=size,
                    held_utc=_utc(now),
                    until_utc=_utc(until),
                    state="held",
                    reason="",
                )
            )
            return _owe(session, owed)

    def find_held(self, task: Task) -> Held | None:
        """Return what is held, or was decided, of the result of a task."""
        with self._begin() as session:
            row = session.scalar(_of_task(task))
            return None if row is None else _told(row)

    def list_held(self) -> list[Held]:
        """Return all that was ever held, the oldest first."""
        with self._begin() as session:
            return [_told(row) for row in session.scalars(select(HeldRow).order_by(HeldRow.id))]

    def release(self, number: int, *, settles: int) -> None:
        """Release what is held under a number, also when it was rejected before.

        The owed line ``settles`` is taken off its list in the same moment.
        """
        with self._begin() as session:
            session.execute(
                update(HeldRow).where(HeldRow.id == number).values(state="released", reason="")
            )
            settle_in(session, settles)

    def reject(self, number: int, *, reason: str, owed: Entry) -> bool:
        """Reject what is held under a number; return whether it was not released before."""
        with self._begin() as session:
            row = session.get_one(HeldRow, number)
            if row.state == "released":
                return False
            row.state, row.reason = "rejected", reason
            _owe(session, owed)
            return True

    def owe(self, entry: Entry) -> int:
        """Put a line on the list of what the journal must get; return its number."""
        with self._begin() as session:
            return _owe(session, entry)

    def owed(self) -> Sequence[tuple[int, Entry]]:
        """Return the lines that the journal still lacks."""
        with self._begin() as session:
            rows = session.scalars(select(OwedLineRow).order_by(OwedLineRow.id))
            return [(row.id, Entry.model_validate(row.entry)) for row in rows]

    def settled(self, number: int) -> None:
        """Take a line off the list."""
        with self._begin() as session:
            settle_in(session, number)


def settle_in(session: Session, number: int) -> None:
    """Take a line off the list as part of another change."""
    session.execute(delete(OwedLineRow).where(OwedLineRow.id == number))


def _owe(session: Session, entry: Entry) -> int:
    line = OwedLineRow(entry=entry.model_dump(mode="json"))
    session.add(line)
    session.flush()
    return line.id


def _state_row(session: Session) -> SiteStateRow:
    row = session.get(SiteStateRow, _ONLY)
    if row is None:
        row = SiteStateRow(id=_ONLY, paused_utc="", left_utc="")
        session.add(row)
    return row


def _reject(session: Session, protocol: Digest | None, reason: str) -> None:
    """Reject all that is held, of one protocol or of all."""
    change = update(HeldRow).where(HeldRow.state == "held")
    if protocol is not None:
        change = change.where(HeldRow.protocol == protocol)
    session.execute(change.values(state="rejected", reason=reason))


def _of_task(task: Task) -> Select[HeldRow]:
    return select(HeldRow).where(
        HeldRow.protocol == task.protocol,
        HeldRow.stage == task.stage,
        HeldRow.round == task.round,
        HeldRow.input_digest == task.input_digest,
    )


def _told(row: HeldRow) -> Held:
    return Held(
        id=row.id,
        protocol=row.protocol,
        stage=row.stage,
        round=row.round,
        fields=row.fields,
        bytes=row.bytes,
        held_utc=row.held_utc,
        until_utc=row.until_utc,
        state=cast("State", row.state),
        reason=row.reason,
    )


def _utc(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
