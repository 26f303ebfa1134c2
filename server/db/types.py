"""Column types that hold what they promise on SQLite and PostgreSQL alike."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, MetaData, String, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

from vitrael.core.digest import Digest

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST_LENGTH = 71


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time; comes back aware and in UTC. A time without zone is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time in UTC; SQLite has no zones, so it stores the naive UTC time."""
        if value is None:
            return None
        if value.tzinfo is None:
            msg = "a time without zone cannot be stored"
            raise ValueError(msg)
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return an aware UTC time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class DigestText(TypeDecorator[Digest]):
    """``sha256:`` and 64 hexadecimal digits; anything else is refused before it is stored."""

    impl = String(_DIGEST_LENGTH)
    cache_ok = True

    def process_bind_param(self, value: Digest | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Return the digest if it is one."""
        if value is not None and not _DIGEST.fullmatch(value):
            msg = "not a sha256 digest"
            raise ValueError(msg)
        return value

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Digest | None:  # noqa: ANN401, ARG002 - what the driver returns
        """Return the stored digest."""
        return None if value is None else Digest(str(value))


JsonDocument = JSON().with_variant(JSONB(), "postgresql")
"""Any JSON value without NaN."""


class Base(DeclarativeBase):
    """Root of the table mappings; constraints are named, so that a migration can alter them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
