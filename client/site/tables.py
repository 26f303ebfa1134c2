"""The tables of the site's store, as SQLAlchemy maps them; ``store`` and ``decisions`` use them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from vitrael.core.digest import Digest

_DIGEST = String(71)
_UTC = String(40)
_NAME = String(48)
_SENTENCE = String(2000)


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
    members: Mapped[dict[str, Any]]
    """The roster's members with their public keys at that time; empty where none were kept."""
    given_utc: Mapped[str] = mapped_column(_UTC)
    withdrawn_utc: Mapped[str] = mapped_column(_UTC, default="")
    """When it was taken back; empty while it stands."""


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
    inputs: Mapped[Digest]
    """Of what the task brought, without the roster; empty where it was not written down."""
    num_examples: Mapped[int]
    body: Mapped[dict[str, Any]]
    outputs: Mapped[dict[str, Any]]
    """Digest of each attachment."""
    cohort: Mapped[Digest]
    """Empty where an earlier version did not write it down."""
    finished_utc: Mapped[str] = mapped_column(_UTC)


class JournalHeadRow(Base):
    """Number and digest of the journal's last line; one row."""

    __tablename__ = "journal_head"

    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[int]
    hash: Mapped[Digest]


class SiteStateRow(Base):
    """Whether the site takes tasks at all; one row."""

    __tablename__ = "site_state"

    id: Mapped[int] = mapped_column(primary_key=True)
    paused_utc: Mapped[str] = mapped_column(_UTC)
    """Empty while it is not paused."""
    left_utc: Mapped[str] = mapped_column(_UTC)
    """Empty until it leaves the federation."""


class OwedLineRow(Base):
    """A line that the journal must get before anything else happens; see ``decisions``."""

    __tablename__ = "owed_lines"

    id: Mapped[int] = mapped_column(primary_key=True)
    entry: Mapped[dict[str, Any]]


class HeldRow(Base):
    """A finished result that waits for its operator, or what was decided about it."""

    __tablename__ = "held"
    __table_args__ = (
        UniqueConstraint("protocol", "stage", "round", "input_digest", name="held_once"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    protocol: Mapped[Digest]
    roster: Mapped[Digest]
    stage: Mapped[str] = mapped_column(_NAME)
    round: Mapped[int]
    input_digest: Mapped[Digest]
    fields: Mapped[str] = mapped_column(_SENTENCE)
    """Names of all that would leave, in words."""
    bytes: Mapped[int]
    held_utc: Mapped[str] = mapped_column(_UTC)
    until_utc: Mapped[str] = mapped_column(_UTC)
    """Until when the coordinator waits for it."""
    state: Mapped[str] = mapped_column(_NAME)
    reason: Mapped[str] = mapped_column(_SENTENCE)
    """Why it was rejected."""
