"""A window of hours holds from its start until just before its end, also over midnight."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from vitrael.client.site.schedule import Hours, local_time
from vitrael.client.site.settings import Schedule


def clock(text: str) -> datetime:
    return datetime.fromisoformat(f"2031-05-03T{text}")


@pytest.mark.parametrize(
    ("hours", "now", "opens_in_min"),
    [
        ("20:00-06:00", "20:00", 0),
        ("20:00-06:00", "23:59", 0),
        ("20:00-06:00", "00:00", 0),
        ("20:00-06:00", "05:59", 0),
        ("20:00-06:00", "06:00", 14 * 60),
        ("20:00-06:00", "19:59", 1),
        ("08:00-18:00", "08:00", 0),
        ("08:00-18:00", "17:59", 0),
        ("08:00-18:00", "18:00", 14 * 60),
        ("08:00-18:00", "23:30", 8 * 60 + 30),
        ("08:00-18:00", "00:00", 8 * 60),
        ("00:00-06:00", "23:59", 1),
        ("18:00-00:00", "23:59", 0),
        ("18:00-00:00", "00:00", 18 * 60),
        ("12:00-12:00", "11:59", 0),
    ],
)
def test_window_opens_when_it_says(hours: str, now: str, opens_in_min: int) -> None:
    window = Hours.of(Schedule(hours=hours))
    assert window.opens_in(clock(now)) == timedelta(minutes=opens_in_min)
    assert window.holds(clock(now)) is (opens_in_min == 0)
    assert window.holds(clock(now) + window.opens_in(clock(now)))


def test_local_time_is_the_same_moment() -> None:
    utc = datetime(2031, 5, 3, 12, tzinfo=UTC)
    assert local_time(utc) == utc


@pytest.mark.parametrize("hours", ["24:00-06:00", "8:00-18:00", "08:00", "08:60-09:00"])
def test_hours_that_are_none_are_refused(hours: str) -> None:
    with pytest.raises(ValidationError):
        Schedule(hours=hours)
