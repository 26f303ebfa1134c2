"""Whether the filter votes on each image alike, however many of those beside it are plants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from vitrael.core.rng import stream
from vitrael.core.workbench.progress import Tell
from vitrael.privacy.audit.planting import (
    SHARES,
    changed_votes,
    content_ids,
    mix_plants,
    part_votes,
)
from vitrael.privacy.audit.power import share_dropped
from vitrael.privacy.evidence import Measurement, not_estimable
from vitrael.privacy.reid.roles import Keep

_LABEL: Final = "votes.changed"
_METHOD: Final = "images in mixtures of 1 % and of 40 % plants"
_MOST: Final = 300


def votes_agree(
    plants: Mapping[str, np.ndarray],
    candidate_BCDHW: np.ndarray,
    keep: Keep,
    *,
    seed: int,
    tell: Tell,
) -> Measurement:
    """Return the share of images whose vote differs between both mixtures; it should be none.

    Not estimable with fewer than 99 synthetic images: 1 % of them would be no plant.
    """
    salt = stream(seed, "audit-folder", "mixture salt").bytes(16).hex()
    listed = {one for made in plants.values() for one in content_ids(made, salt=salt)}
    ids = content_ids(candidate_BCDHW, salt=salt)
    genuine = candidate_BCDHW[[one not in listed for one in ids]][:_MOST]
    least = round(1 / min(SHARES)) - 1
    if len(genuine) < least or not plants:
        why = f"1 % of plants takes {least} synthetic images that are no plants, not {len(genuine)}"
        return not_estimable(_LABEL, why, method=_METHOD, unit="images")
    parted = []
    for done, share in enumerate(SHARES, 1):
        rng = stream(seed, "audit-folder", "mixture")
        planting = mix_plants(plants, genuine, share=share, salt=salt, rng=rng)
        parted.append(part_votes(planting, keep(planting.mixture.image_BCDHW)))
        tell("vote on mixtures with plants", done, len(SHARES))
    changed = changed_votes(*parted)
    return share_dropped(_LABEL, [changed], unit="images", method=_METHOD)
