"""Stages of studies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

# Spelled out instead of imported: a revision must not change when the mappings do.
_DIGEST = sa.String(71)
_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the table of stages."""
    op.create_table(
        "stages",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("protocol", _DIGEST, nullable=False),
        sa.Column("stage", sa.String(48), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("input_digest", _DIGEST, nullable=False),
        sa.Column("status", sa.String(8), nullable=False),
        sa.Column("started_utc", _TIME, nullable=False),
        sa.Column("finished_utc", _TIME, nullable=True),
        sa.Column("output_digest", _DIGEST, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("details", _JSON, nullable=False),
        sa.Column("participants", _JSON, nullable=False),
        sa.CheckConstraint(
            "status IN ('running', 'finished', 'failed')", name=op.f("ck_stages_status_known")
        ),
        sa.CheckConstraint(
            "(status = 'finished') = (output_digest IS NOT NULL)",
            name=op.f("ck_stages_output_when_finished"),
        ),
        sa.CheckConstraint(
            "(status = 'running') = (finished_utc IS NULL)",
            name=op.f("ck_stages_time_when_ended"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stages")),
    )
    op.create_index(
        "uq_stages_not_failed",
        "stages",
        ["protocol", "stage", "round", "input_digest"],
        unique=True,
        sqlite_where=sa.text("status <> 'failed'"),
        postgresql_where=sa.text("status <> 'failed'"),
    )
    op.create_index("ix_stages_protocol", "stages", ["protocol"])


def downgrade() -> None:
    """Drop the table of stages."""
    op.drop_table("stages")
