"""What the registry of sites tells: invitations and enrollments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from vitrael.privacy.keys import PublicKeys
from vitrael.server.db.sites import EnrollmentRow

Status = Literal["pending", "enrolled", "revoked", "left", "replaced"]


@dataclass(frozen=True, slots=True)
class Enrollment:
    """The keys with which a site asked to join once, and what became of them."""

    id: int
    site: str
    status: Status
    keys: PublicKeys
    node: str
    """Public node key, PEM."""
    node_id: int | None
    """Flower's number of the node, once it is registered."""
    package_version: str
    joined_utc: datetime
    approved_utc: datetime | None
    expires_utc: datetime | None
    ended_utc: datetime | None
    seen_utc: datetime | None
    reason: str

    def holds(self, now: datetime) -> bool:
        """Return whether the site may take part now."""
        return self.status == "enrolled" and self.expires_utc is not None and now < self.expires_utc


@dataclass(frozen=True, slots=True)
class Issued:
    """A token that was just made; only its digest is kept."""

    site: str
    token: str
    expires_utc: datetime

    def __repr__(self) -> str:
        """Show no token."""
        return f"Issued({self.site})"


@dataclass(frozen=True, slots=True)
class OpenInvitation:
    """An invitation that can still be used."""

    site: str
    expires_utc: datetime


def read_enrollment(row: EnrollmentRow) -> Enrollment:
    """Return what a row says."""
    return Enrollment(
        id=row.id,
        site=row.site,
        status=cast("Status", row.status),
        keys=PublicKeys(signing=row.signing, sealing=row.sealing),
        node=row.node,
        node_id=None if row.node_id is None else int(row.node_id),
        package_version=row.package_version,
        joined_utc=row.joined_utc,
        approved_utc=row.approved_utc,
        expires_utc=row.expires_utc,
        ended_utc=row.ended_utc,
        seen_utc=row.seen_utc,
        reason=row.reason,
    )
