"""Table mappings; ``migrations`` builds the same tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from vitrael.core.digest import Digest
from vitrael.server.db.types import Base, DigestText, JsonDocument, UtcDateTime

_NOT_FAILED = text("status <> 'failed'")


class StageRow(Base):
    """One attempt at a stage; of attempts with one key at most one is running or finished."""

    __tablename__ = "stages"
    __table_args__ = (
        CheckConstraint("status IN ('running', 'finished', 'failed')", name="status_known"),
        CheckConstraint(
            "(status = 'finished') = (output_digest IS NOT NULL)", name="output_when_finished"
        ),
        CheckConstraint("(status = 'running') = (finished_utc IS NULL)", name="time_when_ended"),
        Index(
            "uq_stages_not_failed",
            "protocol",
            "stage",
            "round",
            "input_digest",
            unique=True,
            sqlite_where=_NOT_FAILED,
            postgresql_where=_NOT_FAILED,
        ),
        Index("ix_stages_protocol", "protocol"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    protocol: Mapped[Digest] = mapped_column(DigestText)
    stage: Mapped[str] = mapped_column(String(48))
    round: Mapped[int]
    input_digest: Mapped[Digest] = mapped_column(DigestText)
    status: Mapped[str] = mapped_column(String(8))
    started_utc: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_utc: Mapped[datetime | None] = mapped_column(UtcDateTime)
    output_digest: Mapped[Digest | None] = mapped_column(DigestText)
    reason: Mapped[str] = mapped_column(Text, default="")
    details: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    participants: Mapped[list[str]] = mapped_column(JsonDocument)
