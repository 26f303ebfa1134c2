"""Consents, nonces and finished Updates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "consents",
        sa.Column("protocol", sa.String(71), primary_key=True),
        sa.Column("roster", sa.String(71), primary_key=True),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("study", sa.JSON(), nullable=False),
        sa.Column("given_utc", sa.String(40), nullable=False),
    )
    op.create_table(
        "nonces",
        sa.Column("nonce", sa.String(32), primary_key=True),
        sa.Column("task", sa.String(71), nullable=False),
        sa.Column("seen_utc", sa.String(40), nullable=False),
    )
    op.create_table(
        "finished",
        sa.Column("protocol", sa.String(71), primary_key=True),
        sa.Column("stage", sa.String(48), primary_key=True),
        sa.Column("round", sa.Integer(), primary_key=True),
        sa.Column("input_digest", sa.String(71), primary_key=True),
        sa.Column("num_examples", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("finished_utc", sa.String(40), nullable=False),
    )


def downgrade() -> None:
    """Drop the first tables."""
    for table in ("finished", "nonces", "consents"):
        op.drop_table(table)
