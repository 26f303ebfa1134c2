"""Whether the filter of two folders votes on each image alike, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np

from vitrael.core.rng import stream
from vitrael.core.workbench.progress import Tell
from vitrael.privacy.audit.mixing import LEAST_GENUINE, compare_mixtures
from vitrael.privacy.audit.power import share_dropped
from vitrael.privacy.evidence import Measurement, not_estimable
from vitrael.privacy.reid.roles import Keep

_LABEL: Final = "votes.changed"
_METHOD: Final = "images in mixtures of 1 % and of 40 % plants"


def votes_agree(
    plants: Mapping[str, np.ndarray],
    candidate_BCDHW: np.ndarray,
    keep: Keep,
    *,
    seed: int,
    tell: Tell,
) -> Measurement:
    """Return the share of images whose vote differs between both mixtures; it should be none.

    Not estimable with too few synthetic images: 1 % of them would be no plant.
    """
    changed = compare_mixtures(
        plants,
        candidate_BCDHW,
        keep,
        salt=stream(seed, "audit-folder", "mixture salt").bytes(16).hex(),
        draw=partial(stream, seed, "audit-folder", "mixture"),
        told=partial(tell, "vote on mixtures with plants"),
    )
    if not changed.shown:
        why = f"that takes {LEAST_GENUINE} synthetic images that are no planted copies"
        return not_estimable(_LABEL, why, method=_METHOD, unit="images")
    return share_dropped(_LABEL, [changed], unit="images", method=_METHOD)
