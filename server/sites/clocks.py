"""How far the clocks of a site and the coordinator may be apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from vitrael.core.errors import AuthError

WINDOW = timedelta(minutes=5, seconds=30)
"""Older words are not heard, and until then none is heard twice: five minutes, and some slack."""


def check_clock(said_utc: str, *, site: str, now: datetime) -> None:
    """Raise AuthError, which names both clocks, unless what a site says was said just now."""
    said = datetime.fromisoformat(said_utc)
    if abs(now - said) > WINDOW:
        minutes = (said - now).total_seconds() / 60
        how = f"{abs(minutes):.0f} minutes {'ahead' if minutes > 0 else 'behind'}"
        raise AuthError(
            f"what site {site} said is not of this moment",
            why=f"it is dated {_tell(said)} by the site's clock, and by the coordinator's it is "
            f"{_tell(now)}: {how}",
            fix="set both clocks, by NTP where you can, and say it again",
        )


def _tell(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
