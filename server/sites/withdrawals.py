"""Consents that sites took back, for whoever runs rounds or shows how things are."""

from __future__ import annotations

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import explain_failures, open_database
from vitrael.server.db.sites import WordRow
from vitrael.server.sites.records import Withdrawal


def withdrawals(settings: ServerSettings) -> list[Withdrawal]:
    """Return every consent that was taken back, oldest first."""
    engine = open_database(settings.database)
    try:
        return read_withdrawals(engine)
    finally:
        engine.dispose()


def read_withdrawals(engine: Engine) -> list[Withdrawal]:
    """Return what ``withdrawals`` does, of a database that is open."""
    query = select(WordRow).where(WordRow.kind == "withdraw").order_by(WordRow.id)
    options = engine.execution_options(read_only=True)
    with explain_failures(), Session(options) as session:
        return [
            Withdrawal(row.site, row.protocol, row.reason, row.said_utc, row.received_utc)
            for row in session.scalars(query)
            if row.protocol is not None
        ]
