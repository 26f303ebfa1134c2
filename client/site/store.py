"""The site's store: consents, nonces, finished Updates; one SQLite file and one folder.

An Update counts as finished from the moment its row is committed. Its tensors lie beside the
database, named by their digests and written before the row, so that a process killed between any
two steps loses nothing finished and never leaves half an Update behind that counts. The store also
remembers where the journal ended, so that a journal that is removed or cut is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from sqlalchemy import JSON, Engine, String, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from vitrael.client.site.database import explain_storage, open_engine
from vitrael.client.site.journal import Kept
from vitrael.core.digest import Digest, digest_bytes, write_atomically
from vitrael.core.errors import StorageError
from vitrael.core.messages import Task
from vitrael.core.weights import Tensors, pack_tensors, unpack_tensors

MIGRATIONS = Path(__file__).parent / "migrations"
"""Alembic's folder for this store."""

_DIGEST = String(71)
_UTC = String(40)
_NAME = String(48)


class Base(DeclarativeBase):
    """Parent of the store's tables."""

    type_annotation_map = {Digest: _DIGEST, dict[str, Any]: JSON}  # noqa: RUF012 - SQLAlchemy's way


class ConsentRow(Base):
    """A yes of this site to one protocol with one roster; a later one takes its place."""

    __tablename__ = "consents"

    protocol: Mapped[Digest] = mapped_column(primary_key=True)
    roster: Mapped[Digest] = mapped_column(primary_key=True)
    envelope: Mapped[bytes]
    """The consent as this site signed it."""
    study: Mapped[dict[str, Any]]
    """The study document that was read when the consent was given."""
    given_utc: Mapped[str] = mapped_column(_UTC)


class NonceRow(Base):
    """A nonce that was seen, and the one task that it belongs to."""

    __tablename__ = "nonces"

    nonce: Mapped[str] = mapped_column(String(32), primary_key=True)
    task: Mapped[Digest]
    seen_utc: Mapped[str] = mapped_column(_UTC)


class FinishedRow(Base):
    """A finished Update: never computed twice."""

    __tablename__ = "finished"

    protocol: Mapped[Digest] = mapped_column(primary_key=True)
    stage: Mapped[str] = mapped_column(_NAME, primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    input_digest: Mapped[Digest] = mapped_column(primary_key=True)
    roster: Mapped[Digest]
    """Empty where an earlier version did not write it down."""
    num_examples: Mapped[int]
    body: Mapped[dict[str, Any]]
    outputs: Mapped[dict[str, Any]]
    """Digest of each attachment."""
    finished_utc: Mapped[str] = mapped_column(_UTC)


class JournalHeadRow(Base):
    """Number and digest of the journal's last line; one row."""

    __tablename__ = "journal_head"

    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[int]
    hash: Mapped[Digest]


@dataclass(frozen=True, slots=True)
class StoredConsent:
    """A consent as it lies in the store; who uses it checks the signature."""

    envelope: bytes
    study: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Finished:
    """What a task produced."""

    body: Mapping[str, JsonValue]
    tensors: Mapping[str, Tensors]
    num_examples: int


class Store:
    """All that a site must not forget."""

    def __init__(self, path: Path, *, updates: Path) -> None:
        """Open the store and bring its tables up to date; StorageError when that cannot be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._updates = updates
        self._engine = open_engine(path)
        with explain_storage("the site's store"):
            _migrate(self._engine)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def save_consent(
        self, consent: StoredConsent, *, protocol: Digest, roster: Digest, given_utc: str
    ) -> None:
        """Keep a consent in the place of an earlier one to the same protocol and roster."""
        with self._transaction() as session:
            session.merge(
                ConsentRow(
                    protocol=protocol,
                    roster=roster,
                    envelope=consent.envelope,
                    study=dict(consent.study),
                    given_utc=given_utc,
                )
            )

    def find_consents(self, protocol: Digest) -> dict[Digest, StoredConsent]:
        """Return the consents to a protocol by their rosters."""
        with self._transaction() as session:
            rows = session.scalars(select(ConsentRow).where(ConsentRow.protocol == protocol))
            return {row.roster: StoredConsent(row.envelope, row.study) for row in rows}

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
                    num_examples=result.num_examples,
                    body=dict(result.body),
                    outputs=outputs,
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
        with explain_storage("a finished update"):
            tensors = {name: self._read(Digest(digest)) for name, digest in outputs.items()}
        return Finished(body, tensors, num_examples)

    def has_other_answer(self, task: Task) -> bool:
        """Return whether the task's round was finished before with other inputs.

        Asked is the same roster's answer; of a signature, any roster's: a protocol has one release.
        """
        others = select(FinishedRow.input_digest).where(
            FinishedRow.protocol == task.protocol,
            FinishedRow.stage == task.stage,
            FinishedRow.round == task.round,
            FinishedRow.input_digest != task.input_digest,
        )
        if task.stage != "signing":
            others = others.where(FinishedRow.roster.in_((task.roster, "")))
        with self._transaction() as session:
            return session.scalars(others.limit(1)).first() is not None

    def read_head(self) -> Kept | None:
        """Return where the journal ended, or None when it had no line yet."""
        with self._transaction() as session:
            row = session.get(JournalHeadRow, 1)
            return None if row is None else Kept(row.lines, row.hash)

    def keep_head(self, head: Kept) -> None:
        """Remember where the journal ends now."""
        with self._transaction() as session:
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
            raise StorageError(
                "the site's store is of a newer version",
                why="this version of Vitrael does not know its tables",
                fix="install the version that wrote it",
            ) from error
