"""Invitations, enrollments of sites, what sites said, and where the journal ends."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# Spelled out instead of imported: a revision must not change when the mappings do.
_DIGEST = sa.String(71)
_KEY = sa.String(64)
_SITE = sa.String(48)
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the three tables of enrollment and the one row of the journal."""
    _create_invitations()
    _create_enrollments()
    _create_words()
    op.create_table(
        "journal_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("hash", _DIGEST, nullable=False),
        sa.Column("acts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_journal_head")),
    )


def _create_invitations() -> None:
    op.create_table(
        "invitations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("site", _SITE, nullable=False),
        sa.Column("token", _DIGEST, nullable=False),
        sa.Column("created_utc", _TIME, nullable=False),
        sa.Column("expires_utc", _TIME, nullable=False),
        sa.Column("used_utc", _TIME, nullable=True),
        sa.Column("void_utc", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invitations")),
        sa.UniqueConstraint("token", name=op.f("uq_invitations_token")),
    )
    op.create_index("ix_invitations_site", "invitations", ["site"])


def _create_enrollments() -> None:
    op.create_table(
        "enrollments",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("site", _SITE, nullable=False),
        sa.Column("invitation_id", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("signing", _KEY, nullable=False),
        sa.Column("sealing", _KEY, nullable=False),
        sa.Column("node", sa.String(512), nullable=False),
        sa.Column("node_id", sa.String(20), nullable=True),
        sa.Column("package_version", sa.String(40), nullable=False),
        sa.Column("joined_utc", _TIME, nullable=False),
        sa.Column("approved_utc", _TIME, nullable=True),
        sa.Column("expires_utc", _TIME, nullable=True),
        sa.Column("ended_utc", _TIME, nullable=True),
        sa.Column("seen_utc", _TIME, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "status IN ('pending', 'enrolled', 'revoked', 'left', 'replaced')",
            name=op.f("ck_enrollments_status_known"),
        ),
        sa.CheckConstraint(
            "status <> 'enrolled' OR (approved_utc IS NOT NULL AND expires_utc IS NOT NULL)",
            name=op.f("ck_enrollments_enrolled_until"),
        ),
        sa.CheckConstraint(
            "(status IN ('pending', 'enrolled')) = (ended_utc IS NULL)",
            name=op.f("ck_enrollments_time_when_ended"),
        ),
        sa.ForeignKeyConstraint(
            ["invitation_id"],
            ["invitations.id"],
            name=op.f("fk_enrollments_invitation_id_invitations"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrollments")),
        sa.UniqueConstraint("signing", name=op.f("uq_enrollments_signing")),
        sa.UniqueConstraint("sealing", name=op.f("uq_enrollments_sealing")),
        sa.UniqueConstraint("node", name=op.f("uq_enrollments_node")),
    )
    op.create_index("ix_enrollments_site", "enrollments", ["site"])
    for status in ("pending", "enrolled"):
        op.create_index(
            f"uq_enrollments_one_{status}",
            "enrollments",
            ["site"],
            unique=True,
            sqlite_where=sa.text(f"status = '{status}'"),
            postgresql_where=sa.text(f"status = '{status}'"),
        )


def _create_words() -> None:
    op.create_table(
        "words",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("site", _SITE, nullable=False),
        sa.Column("nonce", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("protocol", _DIGEST, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("said_utc", _TIME, nullable=False),
        sa.Column("received_utc", _TIME, nullable=False),
        sa.CheckConstraint(
            "kind IN ('standing', 'withdraw', 'leave')", name=op.f("ck_words_kind_known")
        ),
        sa.CheckConstraint(
            "(kind = 'withdraw') = (protocol IS NOT NULL)", name=op.f("ck_words_protocol_withdrawn")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_words")),
        sa.UniqueConstraint("site", "nonce", name=op.f("uq_words_site_nonce")),
    )


def downgrade() -> None:
    """Drop the four tables."""
    for table in ("journal_head", "words", "enrollments", "invitations"):
        op.drop_table(table)
