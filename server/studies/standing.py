"""Of whom nothing may be asked any more: sites that left, were revoked, or took back their yes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from vitrael.core.digest import Digest
from vitrael.privacy.keys import PublicKeys
from vitrael.server.db.engine import explain_failures
from vitrael.server.db.sites import EnrollmentRow, WordRow

EXPIRED: Final = "its enrollment has expired"
REPLACED: Final = "its keys were replaced"
_ENDED: Final = {
    "revoked": "its enrollment was revoked",
    "left": "it left the federation",
    "replaced": REPLACED,
    "pending": "its enrollment is not approved",
}


@dataclass(frozen=True, slots=True)
class Standings:
    """What the coordinator's database says of sites outside of any study."""

    engine: Engine

    def find_ended(self, members: Mapping[str, PublicKeys], *, now: datetime) -> dict[str, str]:
        """Return the members whose enrollment does not hold, each with the reason in our words.

        It counts by the signing key that the roster names. A member that this database has never
        seen was enrolled elsewhere, as in a rehearsal.
        """
        query = select(EnrollmentRow).where(
            EnrollmentRow.signing.in_([keys.signing for keys in members.values()])
        )
        ended: dict[str, str] = {}
        with explain_failures(), self._reading() as session:
            for row in session.scalars(query):
                if row.site not in members or members[row.site].signing != row.signing:
                    continue
                if row.status in _ENDED:
                    ended[row.site] = _ENDED[row.status]
                elif row.expires_utc is not None and row.expires_utc <= now:
                    ended[row.site] = EXPIRED
        return ended

    def find_withdrawn(self, protocol: Digest) -> dict[str, datetime]:
        """Return when each site took back its yes to a protocol last, by the site's own clock."""
        query = (
            select(WordRow.site, func.max(WordRow.said_utc))
            .where(WordRow.kind == "withdraw", WordRow.protocol == protocol)
            .group_by(WordRow.site)
        )
        with explain_failures(), self._reading() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    def _reading(self) -> Session:
        return Session(self.engine.execution_options(read_only=True))
