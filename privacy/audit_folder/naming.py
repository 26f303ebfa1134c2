"""Which real scan made a candidate conspicuous: the one without which it would be less so.

The filter tells how near a candidate comes to the nearest scan, by four members in as many ways,
and not to which. So the allowed scans are halved again and again, and the nearer half is kept.

Axes: B candidates, N real scans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from vitrael.privacy.audit_folder.crossing import CrossScreener

MOST_NAMED: Final = 200
"""Candidates, the most conspicuous first; each takes as long as some twenty more to judge."""


def name_scans(
    image_BCDHW: np.ndarray,
    screener: CrossScreener,
    *,
    tell: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return ``[B]``: the row of the real scan that each candidate comes nearest to."""
    scans = len(screener.filter.part_N)
    low_B = np.zeros(len(image_BCDHW), np.int64)
    high_B = np.full(len(image_BCDHW), scans)
    rounds = int(np.ceil(np.log2(max(scans, 2))))
    for done in range(rounds):
        middle_B = (low_B + high_B + 1) // 2
        first = _score(image_BCDHW, screener, low_B, middle_B)
        second = _score(image_BCDHW, screener, middle_B, high_B)
        takes_first = first >= second
        high_B = np.where(takes_first, middle_B, high_B)
        low_B = np.where(takes_first, low_B, middle_B)
        if tell is not None:
            tell(done + 1, rounds)
    return low_B


def _score(
    image_BCDHW: np.ndarray, screener: CrossScreener, low_B: np.ndarray, high_B: np.ndarray
) -> np.ndarray:
    row_N = np.arange(len(screener.filter.part_N))
    allowed_BN = (row_N >= low_B[:, None]) & (row_N < high_B[:, None])
    if not len(image_BCDHW):
        return np.zeros(0)
    score_B = screener.members(image_BCDHW, allowed_BN=allowed_BN).max(1)
    return np.where(allowed_BN.any(1), score_B, -np.inf)
