"""Alembic's entry: runs the revisions on the connection that ``open_database`` hands over.

Offline it prints the SQL for the dialect that it is given, for a database that only its
administrator may change.
"""

from __future__ import annotations

from alembic import context

from vitrael.server.db import models, sites  # noqa: F401 - their tables register with Base
from vitrael.server.db.types import Base

if context.is_offline_mode():
    context.configure(
        dialect_name=context.config.attributes["dialect"],
        target_metadata=Base.metadata,
        literal_binds=True,
    )
else:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Base.metadata,
        render_as_batch=True,
    )

with context.begin_transaction():
    context.run_migrations()
