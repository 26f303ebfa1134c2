"""A measured number as core knows it: value, bounds, what was counted, how, and seen by whom."""

from __future__ import annotations

from dataclasses import dataclass

from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import CONFIDENCE, Interval


@dataclass(frozen=True, slots=True)
class Measured:
    """One number with its two one-sided bounds; NaN as value means *not estimable*.

    Field by field the floor above can copy it into its evidence. ``extractor`` names the features
    that the number was read from, and is empty where it was read from pixels or from a table. Two
    numbers are comparable when method, extractor and n agree. Raises DataError where the value
    lies outside its bounds.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    """What ``n`` counts: images, pairs, permutations."""
    method: str
    extractor: str = ""
    confidence: float = CONFIDENCE
    """Of each bound taken alone."""

    def __post_init__(self) -> None:
        if self.low > self.value or self.value > self.high:
            raise DataError(f"{self.name} lies outside its own bounds")

    @property
    def interval(self) -> Interval:
        """The two bounds."""
        return Interval(self.low, self.high)

    def above(self, other: Measured) -> bool:
        """Return whether the number is larger than another beyond both intervals."""
        return self.low > other.high
