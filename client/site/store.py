"""The site's store: consents, nonces, finished Updates; one SQLite file and one folder.

An Update counts as finished from the moment its row is committed. Its tensors lie beside the
database, named by their digests and written before the row, so that a process killed between any
two steps loses nothing finished and never leaves half an Update behind that counts. The store also
remembers where the journal ended, so that a journal that is removed or cut is missed. Who only
reads leaves the tables as they are: a steward of another version may be at work on them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue
from sqlalchemy import Engine, and_, func, or_, select
from sqlalchemy.orm import Session

from vitrael.client.site.database import explain_storage, open_engine, open_to_read
from vitrael.client.site.decisions import Decisions, settle_in
from vitrael.client.site.ingest.places import take_lock
from vitrael.client.site.tables import Base, ConsentRow, FinishedRow, JournalHeadRow, NonceRow
from vitrael.core.digest import Digest, digest_bytes, digest_json, write_atomically
from vitrael.core.errors import StorageError
from vitrael.core.messages import StageName, Task
from vitrael.core.weights import Tensors, pack_tensors, unpack_tensors
from vitrael.privacy.journal import Kept

MIGRATIONS = Path(__file__).parent / "migrations"
"""Alembic's folder for this store."""

_GO_ON: Final[frozenset[StageName]] = frozenset({"codec", "latents", "reid", "teacher"})
"""Stages whose finished rounds stay finished when a roster is amended."""


@dataclass(frozen=True, slots=True)
class StoredConsent:
    """A consent as it lies in the store; who uses it checks the signature."""

    envelope: bytes
    study: Mapping[str, JsonValue]
    members: Mapping[str, JsonValue]
    withdrawn_utc: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a task produced."""

    body: Mapping[str, JsonValue]
    tensors: Mapping[str, Tensors]
    num_examples: int
    cohort: Digest | None = None
    """Version of the cohort that it was made with."""


class Store:
    """All that a site must not forget."""

    def __init__(self, path: Path, *, updates: Path, read_only: bool = False) -> None:
        """Open the store and bring its tables up to date; StorageError when that cannot be.

        One that is opened to be read alone is empty where there is no file, and it changes no row
        and no table: a StorageError where they are of another version. SQLite lays its own two
        files beside the store, and must be able to.
        """
        self._updates = updates
        self._lock = path.with_suffix(".lock")
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        with explain_storage("the site's store"):
            self._engine = open_to_read(path) if read_only else open_engine(path)
            if not read_only:
                _migrate(self._engine)
            elif path.exists():
                _demand_present(self._engine)
            else:
                Base.metadata.create_all(self._engine)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @property
    def decisions(self) -> Decisions:
        """What the operator has decided."""
        return Decisions(self._transaction)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Hold the store for one act of the operator, of several transactions and a journal line.

        Raises StorageError when another command does not let it go.
        """
        with explain_storage("the site's store"):
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            take_lock(handle, "the site's store")
            yield
        finally:
            os.close(handle)

    def save_consent(
        self,
        consent: StoredConsent,
        *,
        protocol: Digest,
        roster: Digest,
        given_utc: str,
        settles: int | None = None,
    ) -> None:
        """Keep a consent in the place of an earlier one to the same protocol and roster.

        The owed line ``settles`` is taken off its list in the same moment.
        """
        with self._transaction() as session:
            if settles is not None:
                settle_in(session, settles)
            session.merge(
                ConsentRow(
                    protocol=protocol,
                    roster=roster,
                    envelope=consent.envelope,
                    study=dict(consent.study),
                    members=dict(consent.members),
                    given_utc=given_utc,
                    withdrawn_utc=consent.withdrawn_utc,
                )
            )

    def find_consents(self, protocol: Digest) -> dict[Digest, StoredConsent]:
        """Return the consents to a protocol by their rosters."""
        with self._transaction() as session:
            rows = session.scalars(select(ConsentRow).where(ConsentRow.protocol == protocol))
            return {row.roster: _stored(row) for row in rows}

    def list_consents(self) -> list[StoredConsent]:
        """Return all consents, also those that were taken back, the oldest first."""
        with self._transaction() as session:
            return [
                _stored(row)
                for row in session.scalars(select(ConsentRow).order_by(ConsentRow.given_utc))
            ]

    def list_studies(self) -> dict[Digest, tuple[str, int]]:
        """Return the protocols that were ever consented to, each with its name and version."""
        with self._transaction() as session:
            rows = session.execute(select(ConsentRow.protocol, ConsentRow.study))
            named = [(digest, _part(study, "protocol")) for digest, study in rows]
        return {digest: (str(one.get("name")), one.get("version", 0)) for digest, one in named}

    def rounds_answered(self, protocol: Digest, roster: Digest | None = None) -> dict[str, int]:
        """Return how many rounds of each stage were finished with a roster, or with any."""
        query = (
            select(FinishedRow.stage, func.count(FinishedRow.round.distinct()))
            .where(FinishedRow.protocol == protocol)
            .group_by(FinishedRow.stage)
            .order_by(FinishedRow.stage)
        )
        if roster is not None:
            query = query.where(FinishedRow.roster.in_((roster, "")))
        with self._transaction() as session:
            return dict(session.execute(query).all())

    def votes_given(self, task: Task) -> int:
        """Return on how many images this protocol has votes of a task's stage, with any roster."""
        query = select(func.coalesce(func.sum(FinishedRow.num_examples), 0)).where(
            FinishedRow.protocol == task.protocol, FinishedRow.stage == task.stage
        )
        with self._transaction() as session:
            return int(session.scalars(query).one())

    def claim_nonce(self, task: Task, *, now: datetime) -> bool:
        """Return whether the nonce is new or belongs to this very task."""
        with self._transaction() as session:
            row = session.get(NonceRow, task.nonce)
            if row is None:
                utc = now.isoformat(timespec="milliseconds")
                session.add(NonceRow(nonce=task.nonce, task=task.digest, seen_utc=utc))
                return True
            return row.task == task.digest

    def finish(self, task: Task, result: Finished, *, now: datetime) -> None:
        """Keep a result: first its tensors, then the row that makes them count."""
        with explain_storage("a finished update"):
            outputs = {}
            for name, tensors in result.tensors.items():
                data = pack_tensors(tensors)
                outputs[name] = digest_bytes(data)
                write_atomically(self._tensor_path(outputs[name]), data)
        with self._transaction() as session:
            session.merge(
                FinishedRow(
                    protocol=task.protocol,
                    stage=task.stage,
                    round=task.round,
                    input_digest=task.input_digest,
                    roster=task.roster,
                    inputs=_inputs_of(task),
                    num_examples=result.num_examples,
                    body=dict(result.body),
                    outputs=outputs,
                    cohort=result.cohort or Digest(""),
                    finished_utc=now.isoformat(timespec="milliseconds"),
                )
            )

    def find_finished(self, task: Task) -> Finished | None:
        """Return what the same work gave before, bit for bit, or None.

        Raises StorageError when its tensors are damaged: they are never silently made anew.
        """
        with self._transaction() as session:
            key = (task.protocol, task.stage, task.round, task.input_digest)
            row = session.get(FinishedRow, key)
            if row is None:
                return None
            body, outputs, num_examples = row.body, row.outputs, row.num_examples
            cohort = row.cohort or None
        with explain_storage("a finished update"):
            tensors = {name: self._read(Digest(digest)) for name, digest in outputs.items()}
        return Finished(body, tensors, num_examples, cohort)

    def has_other_answer(self, task: Task) -> bool:
        """Return whether the task's round was finished before with other inputs.

        Asked is the same roster's answer; of a round of training also that of every roster which
        this one amends, whose rounds are gone on from, so that the same inputs may be asked again;
        of a signature any roster's: a protocol has one release.
        """
        others = select(FinishedRow.input_digest).where(
            FinishedRow.protocol == task.protocol,
            FinishedRow.stage == task.stage,
            FinishedRow.round == task.round,
            FinishedRow.input_digest != task.input_digest,
        )
        with self._transaction() as session:
            if task.stage != "signing":
                earlier = _amended(session, task) if task.stage in _GO_ON else ()
                others = others.where(
                    or_(
                        FinishedRow.roster.in_((task.roster, "")),
                        and_(
                            FinishedRow.roster.in_(earlier),
                            FinishedRow.inputs != _inputs_of(task),
                        ),
                    )
                )
            return session.scalars(others.limit(1)).first() is not None

    def read_head(self) -> Kept | None:
        """Return where the journal ended, or None when it had no line yet."""
        with self._transaction() as session:
            row = session.get(JournalHeadRow, 1)
            return None if row is None else Kept(row.lines, row.hash)

    def keep_head(self, head: Kept) -> None:
        """Remember a head; one that another process has left behind changes nothing."""
        with self._transaction() as session:
            row = session.get(JournalHeadRow, 1)
            if row is None or row.lines < head.lines:
                session.merge(JournalHeadRow(id=1, lines=head.lines, hash=head.hash))

    def _read(self, digest: Digest) -> Tensors:
        path = self._tensor_path(digest)
        data = path.read_bytes() if path.exists() else b""
        if digest_bytes(data) != digest:
            raise StorageError(
                "a finished update is damaged",
                why="its tensors on disk have another digest than when they were written",
                fix=f"restore {path.parent.name}/{path.name} from a backup",
            )
        return unpack_tensors(data)

    def _tensor_path(self, digest: Digest) -> Path:
        return self._updates / f"{digest.removeprefix('sha256:')}.safetensors"

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with explain_storage("the site's store"), Session(self._engine) as session, session.begin():
            yield session


def _stored(row: ConsentRow) -> StoredConsent:
    return StoredConsent(row.envelope, row.study, row.members, row.withdrawn_utc)


def _inputs_of(task: Task) -> Digest:
    """Name what a task brings, whatever the roster."""
    return digest_json([task.site, dict(task.inputs)])


def _part(study: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table of a study as it was stored, perhaps by another version of the package."""
    part = study.get(name)
    return part if isinstance(part, dict) else {}


def _amended(session: Session, task: Task) -> set[Digest]:
    """Return the rosters that a task's one amends.

    What one amends that this site never consented to is not known: then any of the protocol's may
    be among them.
    """
    earlier: set[Digest] = set()
    roster: Digest | None = task.roster
    while roster is not None:
        row = session.get(ConsentRow, (task.protocol, roster))
        if row is None and roster == task.roster:
            break
        if row is None:
            every = select(ConsentRow.roster).where(ConsentRow.protocol == task.protocol)
            return earlier | {*session.scalars(every)}
        roster = _part(row.study, "roster").get("predecessor")
        if roster is None or roster in earlier:
            break
        earlier.add(roster)
    return earlier


def _demand_present(engine: Engine) -> None:
    """Raise StorageError unless the tables are those of this version."""
    from alembic.migration import MigrationContext  # noqa: PLC0415 - read when a store is opened
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    known = [each.revision for each in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found not in (None, *known):
        raise _newer()
    if found != known[0]:
        raise StorageError(
            "the site's store is of an older version",
            why="this command only reads, and changes no tables under a steward that may run",
            fix="use the version that wrote it; the steward of this one brings it up to date",
        )


def _migrate(engine: Engine) -> None:
    from alembic import command  # noqa: PLC0415 - read when a store is opened
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise _newer() from error


def _newer() -> StorageError:
    return StorageError(
        "the site's store is of a newer version",
        why="this version of Vitrael does not know its tables",
        fix="install the version that wrote it",
    )
