"""The roster of a finished Update: a round is answered once for each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; a protocol with one consent tells the roster of what it finished."""
    op.add_column("finished", sa.Column("roster", sa.String(71), nullable=False, server_default=""))
    op.execute(
        "UPDATE finished SET roster = (SELECT min(c.roster) FROM consents AS c"
        " WHERE c.protocol = finished.protocol) WHERE 1 = (SELECT count(*) FROM consents AS c"
        " WHERE c.protocol = finished.protocol)"
    )


def downgrade() -> None:
    """Drop the column."""
    with op.batch_alter_table("finished") as table:
        table.drop_column("roster")
