"""Limits on what leaves a site beside weights."""

from __future__ import annotations

SMALLEST_COUNT = 11
"""Sums over fewer patients than this are not told (the usual rule for small cells).

No audit, calibration or report has a least number of patients of its own below it.
"""
