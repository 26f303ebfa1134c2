"""What the operator decides: withdrawn consents, a pause, leaving, and results held for release."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_UTC = sa.String(40)
_DIGEST = sa.String(71)


def upgrade() -> None:
    """Make the tables; no consent was withdrawn before."""
    op.add_column("consents", sa.Column("withdrawn_utc", _UTC, nullable=False, server_default=""))
    op.add_column("consents", sa.Column("members", sa.JSON(), nullable=False, server_default="{}"))
    for name in ("cohort", "inputs"):
        op.add_column("finished", sa.Column(name, _DIGEST, nullable=False, server_default=""))
    op.create_table(
        "site_state",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("paused_utc", _UTC, nullable=False),
        sa.Column("left_utc", _UTC, nullable=False),
    )
    op.create_table(
        "owed_lines",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("entry", sa.JSON(), nullable=False),
    )
    op.create_table(
        "held",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("protocol", _DIGEST, nullable=False),
        sa.Column("roster", _DIGEST, nullable=False),
        sa.Column("stage", sa.String(48), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("input_digest", _DIGEST, nullable=False),
        sa.Column("fields", sa.String(2000), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("held_utc", _UTC, nullable=False),
        sa.Column("until_utc", _UTC, nullable=False),
        sa.Column("state", sa.String(48), nullable=False),
        sa.Column("reason", sa.String(2000), nullable=False),
        sa.UniqueConstraint("protocol", "stage", "round", "input_digest", name="held_once"),
    )


def downgrade() -> None:
    """Drop the tables; a withdrawn consent would count again, so they go with the mark."""
    op.execute("DELETE FROM consents WHERE withdrawn_utc <> ''")
    op.drop_table("held")
    op.drop_table("owed_lines")
    op.drop_table("site_state")
    op.drop_column("finished", "inputs")
    op.drop_column("finished", "cohort")
    op.drop_column("consents", "members")
    op.drop_column("consents", "withdrawn_utc")
