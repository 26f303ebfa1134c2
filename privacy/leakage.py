"""Limits on what leaves a site beside weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SMALLEST_COUNT: Final = 11
"""Sums over fewer patients than this are not told (the usual rule for small cells).

No audit, verification or report has a least number of patients of its own below it.
"""


def told_count(count: int) -> int | None:
    """Return a count of patients or of their scans as it may be told; None for a small one."""
    return None if 0 < count < SMALLEST_COUNT else count


def split_plants(plants_per_class: int, sites: int) -> int:
    """Return how many plants of a class fall to each site, as many at least as may be told."""
    return max(-(-plants_per_class // sites), SMALLEST_COUNT)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A range of counts of patients, in which all look alike."""

    least: int
    name: str


BUCKETS: Final = (
    Bucket(1_000, "1,000 or more"),
    Bucket(500, "500 to 999"),
    Bucket(200, "200 to 499"),
    Bucket(100, "100 to 199"),
    Bucket(50, "50 to 99"),
    Bucket(SMALLEST_COUNT, "11 to 49"),
    Bucket(1, "fewer than 11"),
    Bucket(0, "none"),
)
"""From the largest; the last holds whatever the others do not."""


def bucket_of(patients: int) -> Bucket:
    """Return the bucket of a count of patients; that of a bucket's least count is itself."""
    return next((bucket for bucket in BUCKETS if patients >= bucket.least), BUCKETS[-1])
