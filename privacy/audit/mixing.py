"""Whether a filter votes on each image alike, however many of those beside it are plants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from vitrael.privacy.audit.planting import (
    SHARES,
    changed_votes,
    content_ids,
    mix_plants,
    part_votes,
)
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.reid.roles import Keep

LEAST_GENUINE: Final = round(1 / min(SHARES)) - 1
"""Images that are no plants, without which one plant is more than the smaller share."""
_MOST: Final = 300


def compare_mixtures(
    plants: Mapping[str, np.ndarray],
    genuine_BCDHW: np.ndarray,
    keep: Keep,
    *,
    salt: str,
    draw: Callable[[], np.random.Generator],
    told: Callable[[int, int], None] | None = None,
) -> Tally:
    """Return how many images were in a mixture of each share, and of how many the votes differ.

    They should be none. Nothing is shown with fewer than ``LEAST_GENUINE`` images that are no
    plants. ``draw`` returns a fresh generator of one and the same stream, so that the plants of the
    smaller share are among those of the larger.
    """
    listed = {one for made in plants.values() for one in content_ids(made, salt=salt)}
    ids = content_ids(genuine_BCDHW, salt=salt)
    genuine = genuine_BCDHW[np.array([one not in listed for one in ids], dtype=bool)][:_MOST]
    if len(genuine) < LEAST_GENUINE or not listed:
        return Tally(0, 0)
    parted = []
    for done, share in enumerate(SHARES, 1):
        planting = mix_plants(plants, genuine, share=share, salt=salt, rng=draw())
        parted.append(part_votes(planting, keep(planting.mixture.image_BCDHW)))
        if told:
            told(done, len(SHARES))
    return changed_votes(*parted)
