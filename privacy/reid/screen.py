"""Screening: keep or drop, one vote for each candidate, by the frozen operating point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrael.core.interfaces import Embedder
from vitrael.privacy.reid.calibrate import OperatingPoint
from vitrael.privacy.reid.gallery import Gallery, match


@dataclass(frozen=True, slots=True, repr=False)
class Screener:
    """A site's filter as it is configured; private."""

    gallery: Gallery
    encoder: Embedder
    point: OperatingPoint
    device: str = "cpu"

    def __repr__(self) -> str:
        """Show nothing of a patient or a threshold."""
        return "Screener(private)"

    def __call__(self, image_BCDHW: np.ndarray) -> np.ndarray:
        """Return ``[B]`` bool: false for what comes too close to a patient of the gallery.

        The vote on one candidate does not depend on the others. A score that is not a number
        drops its candidate.
        """
        if len(image_BCDHW) == 0:
            return np.empty(0, dtype=bool)
        best = match(image_BCDHW, self.gallery, self.encoder, device=self.device).best()
        limits = np.array([self.point.embedding, self.point.similarity])
        return np.asarray((best <= limits).all(1))
