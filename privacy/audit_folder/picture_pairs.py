"""Learning to know a patient again in pictures: two of one patient, each bent in its own way.

As ``VisitPairs`` does for volumes: half of the identities are mixtures of two patients, so that a
dozen patients suffice.

Axes: P pairs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from vitrael.core.records import PatientImages
from vitrael.core.training.contrastive import Pair
from vitrael.core.training.copy_pairs import Disguise, disguise
from vitrael.core.training.warps import bend, coins, resample, shuffled, stay, uniform

VISIT: Final = Disguise(blend=0.25, replaced_share=0.0, cut_share=0.0, noise=0.04)
"""Nothing is cut out: two pictures of a patient both show the whole."""


class PictureVisits:
    """Draws batches of pairs of pictures of one patient."""

    def __init__(self, laid: PatientImages) -> None:
        """Keep the pictures of those who have several; there are at least two such patients."""
        self.image = torch.from_numpy(np.ascontiguousarray(laid.image_BCDHW, dtype=np.float32))
        found = [np.flatnonzero(laid.patient_B == one) for one in np.unique(laid.patient_B)]
        self.rows = [rows for rows in found if len(rows) > 1]

    def __call__(self, batch_images: int, rng: torch.Generator) -> Pair:
        """Return ``batch_images / 2`` pairs, of as many identities."""
        pairs = max(2, batch_images // 2)
        first, second = self._pictures(pairs, rng)
        other_first, other_second = self._pictures(pairs, rng)
        share = uniform((pairs, 1, 1, 1, 1), 0.0, 0.5, rng) * coins(pairs, 0.5, rng)
        field = bend(pairs, rng)
        one, two = (
            resample(a + share * (b - a), stay(pairs, rng), field)
            for a, b in ((first, other_first), (second, other_second))
        )
        return disguise(one, VISIT, rng), disguise(two, VISIT, rng)

    def _pictures(self, pairs: int, rng: torch.Generator) -> Pair:
        """Return two different pictures of each patient."""
        chosen = np.empty((pairs, 2), dtype=np.int64)
        order: list[int] = []
        for place in range(pairs):
            order = order or shuffled(len(self.rows), rng)
            rows = self.rows[order.pop()]
            chosen[place] = rows[shuffled(len(rows), rng)[:2]]
        return self.image[chosen[:, 0]], self.image[chosen[:, 1]]
