"""Screening: keep or drop, one vote for each candidate, by the frozen operating point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrael.privacy.reid.calibrate import OperatingPoint
from vitrael.privacy.reid.gallery import Gallery
from vitrael.privacy.reid.lens import Work
from vitrael.privacy.reid.search import match


@dataclass(frozen=True, slots=True, repr=False)
class Screener:
    """A site's filter as it is configured; private."""

    gallery: Gallery
    point: OperatingPoint

    def __repr__(self) -> str:
        """Show nothing of a patient or a threshold."""
        return "Screener(private)"

    def __call__(self, image_BCDHW: np.ndarray) -> np.ndarray:
        """Return ``[B]`` bool: false for what comes too close to a patient of the gallery.

        The vote on one candidate does not depend on the others. A score that is not a number
        drops its candidate.
        """
        return self._votes(self.members(image_BCDHW))

    def keep_allowed(self, image_BCDHW: np.ndarray, allowed_BN: np.ndarray) -> np.ndarray:
        """Return the votes as if the gallery held of each image's scans the allowed ones alone."""
        matches = match(image_BCDHW, self.gallery, allowed_BN=allowed_BN)
        return self._votes(self.point.members(matches))

    def _votes(self, member_BM: np.ndarray) -> np.ndarray:
        return np.asarray((member_BM <= self.point.threshold).all(1))

    def members(self, image_BCDHW: np.ndarray, *, work: Work | None = None) -> np.ndarray:
        """Return ``[B, M]``: how near each member finds each image; for audits at the site."""
        return self.point.members(match(image_BCDHW, self.gallery, work=work))
