"""Table mappings of enrollment and of the journal's end; ``migrations`` builds the same."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from vitrael.core.digest import Digest
from vitrael.server.db.types import Base, DigestText, UtcDateTime

_SITE = String(48)
_KEY = String(64)
_PENDING = text("status = 'pending'")
_ENROLLED = text("status = 'enrolled'")


class InvitationRow(Base):
    """One token that was handed out; only its digest is kept."""

    __tablename__ = "invitations"
    __table_args__ = (UniqueConstraint("token"), Index("ix_invitations_site", "site"))

    id: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(_SITE)
    token: Mapped[Digest] = mapped_column(DigestText)
    created_utc: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_utc: Mapped[datetime] = mapped_column(UtcDateTime)
    used_utc: Mapped[datetime | None] = mapped_column(UtcDateTime)
    void_utc: Mapped[datetime | None] = mapped_column(UtcDateTime)


class EnrollmentRow(Base):
    """The keys with which a site asked to join once, and what became of them.

    No key ever stands in two rows. Of a site at most one row is pending and one enrolled.
    """

    __tablename__ = "enrollments"
    __table_args__ = (
        CheckConstraint(
            "status IN ('pending', 'enrolled', 'revoked', 'left', 'replaced')", name="status_known"
        ),
        CheckConstraint(
            "status <> 'enrolled' OR (approved_utc IS NOT NULL AND expires_utc IS NOT NULL)",
            name="enrolled_until",
        ),
        CheckConstraint(
            "(status IN ('pending', 'enrolled')) = (ended_utc IS NULL)", name="time_when_ended"
        ),
        UniqueConstraint("signing"),
        UniqueConstraint("sealing"),
        UniqueConstraint("node"),
        Index("ix_enrollments_site", "site"),
        Index(
            "uq_enrollments_one_pending",
            "site",
            unique=True,
            sqlite_where=_PENDING,
            postgresql_where=_PENDING,
        ),
        Index(
            "uq_enrollments_one_enrolled",
            "site",
            unique=True,
            sqlite_where=_ENROLLED,
            postgresql_where=_ENROLLED,
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(_SITE)
    invitation_id: Mapped[int] = mapped_column(ForeignKey("invitations.id"))
    status: Mapped[str] = mapped_column(String(8))
    signing: Mapped[str] = mapped_column(_KEY)
    sealing: Mapped[str] = mapped_column(_KEY)
    node: Mapped[str] = mapped_column(String(512))
    node_id: Mapped[str | None] = mapped_column(String(20))
    """Flower's number of the node; as text, for it may pass a signed 64-bit integer."""
    package_version: Mapped[str] = mapped_column(String(40))
    joined_utc: Mapped[datetime] = mapped_column(UtcDateTime)
    approved_utc: Mapped[datetime | None] = mapped_column(UtcDateTime)
    expires_utc: Mapped[datetime | None] = mapped_column(UtcDateTime)
    ended_utc: Mapped[datetime | None] = mapped_column(UtcDateTime)
    seen_utc: Mapped[datetime | None] = mapped_column(UtcDateTime)
    reason: Mapped[str] = mapped_column(Text, default="")


class WordRow(Base):
    """One word of a site: kept so that it is not heard twice, a withdrawal for good."""

    __tablename__ = "words"
    __table_args__ = (
        CheckConstraint("kind IN ('standing', 'withdraw', 'leave')", name="kind_known"),
        CheckConstraint("(kind = 'withdraw') = (protocol IS NOT NULL)", name="protocol_withdrawn"),
        UniqueConstraint("site", "nonce"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(_SITE)
    nonce: Mapped[str] = mapped_column(String(32))
    kind: Mapped[str] = mapped_column(String(8))
    protocol: Mapped[Digest | None] = mapped_column(DigestText)
    reason: Mapped[str] = mapped_column(Text, default="")
    said_utc: Mapped[datetime] = mapped_column(UtcDateTime)
    """By the site's clock, as are the times in its consents."""
    received_utc: Mapped[datetime] = mapped_column(UtcDateTime)


class JournalHeadRow(Base):
    """Number and digest of the journal's last line, and the last act that came about; one row."""

    __tablename__ = "journal_head"

    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[int]
    hash: Mapped[Digest] = mapped_column(DigestText)
    acts: Mapped[int]
    """Number of the line up to which every act came about, or is known not to have."""
