"""The ledger of stages: what was begun, finished or failed, so that a study can go on after a kill.

A stage is named by protocol, stage, round and the digest of its inputs. Its output is one JSON
document in the object store, named by digest. A finished stage is never run again; a stage whose
process ended is begun again and its old attempt stays in the history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session

from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import StorageError
from vitrael.server.db.engine import explain_failures
from vitrael.server.db.models import StageRow
from vitrael.server.settings import utc_now

Status = Literal["running", "finished", "failed"]

SUPERSEDED = "its process ended before the stage did"


@dataclass(frozen=True, slots=True)
class StageKey:
    """The name of a stage; two runs with one key have the same result."""

    protocol: Digest
    stage: str
    round: int
    input: Digest

    @property
    def digest(self) -> Digest:
        """The key as one digest, for systems that name a thing by one string."""
        return digest_json([self.protocol, self.stage, self.round, self.input])


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One attempt at a stage as it stands in the ledger."""

    id: int
    key: StageKey
    status: Status
    started_utc: datetime
    finished_utc: datetime | None
    output: Digest | None
    reason: str
    details: Mapping[str, Any]
    participants: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Wall time of the attempt; None while it runs."""
        if self.finished_utc is None:
            return None
        return (self.finished_utc - self.started_utc).total_seconds()


class Ledger:
    """Stage records in the database; each method is one transaction."""

    def __init__(self, engine: Engine, *, clock: Callable[[], datetime] = utc_now) -> None:
        """Keep the engine of ``open_database`` and the clock that dates records in UTC."""
        self._engine = engine
        self._clock = clock

    def finished(self, key: StageKey) -> StageRecord | None:
        """Return the finished stage with this key, or None."""
        with explain_failures(), self._reading() as session:
            row = session.scalar(_rows(key).where(StageRow.status == "finished"))
            return None if row is None else _record(row)

    def begin(
        self,
        key: StageKey,
        *,
        participants: Sequence[str] = (),
        details: Mapping[str, Any] | None = None,
    ) -> StageRecord:
        """Return a new running record, or the finished one if this stage is already finished.

        A record that still runs under this key belongs to a process that ended: one coordinator
        runs a study at a time. It becomes failed and stays in the history.
        """
        with explain_failures(), Session(self._engine) as session, session.begin():
            row = session.scalar(_rows(key).where(StageRow.status != "failed"))
            if row is not None and row.status == "finished":
                return _record(row)
            if row is not None:
                self._end(row, "failed", reason=SUPERSEDED)
                session.flush()
            row = StageRow(
                protocol=key.protocol,
                stage=key.stage,
                round=key.round,
                input_digest=key.input,
                status="running",
                started_utc=self._clock(),
                reason="",
                details=dict(details or {}),
                participants=list(participants),
            )
            session.add(row)
            session.flush()
            return _record(row)

    def finish(
        self,
        record: StageRecord,
        output: Digest,
        *,
        details: Mapping[str, Any] | None = None,
        participants: Sequence[str] | None = None,
    ) -> StageRecord:
        """Return the record as finished with this output; finishing twice changes nothing.

        ``details`` are added to those given at the start; ``participants`` replace them.

        Raises StorageError when the stage was finished with another output, or when this attempt
        has failed or was superseded and nobody finished the stage since.
        """
        with explain_failures(), Session(self._engine) as session, session.begin():
            done = session.scalar(_rows(record.key).where(StageRow.status == "finished"))
            if done is not None:
                if done.output_digest != output:
                    raise StorageError(
                        f"{_title(record.key)} is finished with another output",
                        why="the same inputs gave two results",
                        fix="find what is not reproducible; the first result stands",
                    )
                return _record(done)
            row = self._running(session, record, "finished")
            self._end(row, "finished", output=output)
            row.details = {**row.details, **(details or {})}
            if participants is not None:
                row.participants = list(participants)
            session.flush()
            return _record(row)

    def fail(
        self, record: StageRecord, reason: str, *, details: Mapping[str, Any] | None = None
    ) -> StageRecord:
        """Return the record as failed for this reason; a later attempt may still finish the stage.

        Raises StorageError when the attempt no longer runs.
        """
        with explain_failures(), Session(self._engine) as session, session.begin():
            row = self._running(session, record, "failed")
            self._end(row, "failed", reason=reason)
            row.details = {**row.details, **(details or {})}
            session.flush()
            return _record(row)

    def discard(self, record: StageRecord, reason: str) -> StageRecord:
        """Return a finished record as failed: its output is lost, and it is to be done again.

        What is known of the attempt stays in the history. Raises StorageError when the record is
        not finished.
        """
        with explain_failures(), Session(self._engine) as session, session.begin():
            row = session.get(StageRow, record.id)
            if row is None or row.status != "finished":
                raise StorageError(f"{_title(record.key)} cannot be discarded: it is not finished")
            row.status, row.output_digest, row.reason = "failed", None, reason
            session.flush()
            return _record(row)

    def protocols(self) -> tuple[Digest, ...]:
        """Return every protocol of which a stage was begun, the oldest first."""
        query = (
            select(StageRow.protocol).group_by(StageRow.protocol).order_by(func.min(StageRow.id))
        )
        with explain_failures(), self._reading() as session:
            return tuple(session.scalars(query))

    def history(self, protocol: Digest) -> tuple[StageRecord, ...]:
        """Return every attempt at a stage of this protocol, in the order of their beginning."""
        query = select(StageRow).where(StageRow.protocol == protocol).order_by(StageRow.id)
        with explain_failures(), self._reading() as session:
            return tuple(_record(row) for row in session.scalars(query))

    def _reading(self) -> Session:
        return Session(self._engine.execution_options(read_only=True))

    def _running(self, session: Session, record: StageRecord, wanted: str) -> StageRow:
        row = session.get(StageRow, record.id)
        if row is None or row.status != "running":
            raise StorageError(
                f"{_title(record.key)} cannot be marked {wanted}",
                why="this attempt has ended; another process may have begun the stage again",
                fix="let one coordinator at a time run the study",
            )
        return row

    def _end(
        self, row: StageRow, status: Status, *, output: Digest | None = None, reason: str = ""
    ) -> None:
        row.status = status
        row.finished_utc = self._clock()
        row.output_digest = output
        row.reason = reason


def _rows(key: StageKey) -> Select[StageRow]:
    return select(StageRow).where(
        StageRow.protocol == key.protocol,
        StageRow.stage == key.stage,
        StageRow.round == key.round,
        StageRow.input_digest == key.input,
    )


def _record(row: StageRow) -> StageRecord:
    return StageRecord(
        id=row.id,
        key=StageKey(row.protocol, row.stage, row.round, row.input_digest),
        status=cast("Status", row.status),
        started_utc=row.started_utc,
        finished_utc=row.finished_utc,
        output=row.output_digest,
        reason=row.reason,
        details=row.details,
        participants=tuple(row.participants),
    )


def _title(key: StageKey) -> str:
    return f"stage {key.stage}, round {key.round + 1}"
