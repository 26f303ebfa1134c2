"""The last line of the journal, beside the journal: who removes the file is found out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table; it fills with the next line of the journal."""
    op.create_table(
        "journal_head",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(71), nullable=False),
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("journal_head")
