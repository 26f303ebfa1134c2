"""Columns hold aware UTC times and digests, or refuse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from vitrael.core.digest import Digest, digest_bytes
from vitrael.server.db.types import DigestText, UtcDateTime

NOON = datetime(2025, 1, 17, 12, tzinfo=UTC)


def test_time_comes_back_in_utc_from_both_databases() -> None:
    local = NOON.astimezone(timezone(timedelta(hours=5)))
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        stored = UtcDateTime().process_bind_param(local, dialect)
        read = UtcDateTime().process_result_value(stored, dialect)
        assert read == NOON
        assert read is not None
        assert read.utcoffset() == timedelta(0)


def test_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="without zone"):
        UtcDateTime().process_bind_param(NOON.replace(tzinfo=None), sqlite.dialect())


def test_text_that_is_no_digest_is_refused() -> None:
    digest = digest_bytes(b"")
    assert DigestText().process_bind_param(digest, sqlite.dialect()) == digest
    for wrong in ("abc", digest.upper(), digest + "0"):
        with pytest.raises(ValueError, match="not a sha256 digest"):
            DigestText().process_bind_param(Digest(wrong), sqlite.dialect())
