"""The power certificate of a filter: how many planted copies it catches, with exact bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.metrics.intervals import CONFIDENCE, clopper_pearson
from vitrael.privacy.evidence import Measurement, not_estimable
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.reid.roles import Keep


class Tally(NamedTuple):
    """How many images were shown to the filter, and how many it dropped."""

    shown: int
    dropped: int


def show_to_filter(images: Mapping[str, np.ndarray], keep: Keep) -> dict[str, Tally]:
    """Return a tally for each class of images, by the very function that screens candidates.

    Each image is of another patient. A class of fewer than ``SMALLEST_COUNT`` is shown to nobody.
    """
    return {
        kind: Tally(len(batch), int((~keep(batch)).sum()))
        if len(batch) >= SMALLEST_COUNT
        else Tally(0, 0)
        for kind, batch in images.items()
    }


def share_dropped(
    name: str,
    tallies: Sequence[Tally],
    *,
    unit: str,
    method: str,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> Measurement:
    """Return the pooled share of dropped images with Clopper-Pearson bounds."""
    shown = sum(tally.shown for tally in tallies)
    dropped = sum(tally.dropped for tally in tallies)
    if shown == 0:
        why = f"no {unit} could be shown to a calibrated filter"
        return not_estimable(name, why, method=method, unit=unit, confidence=confidence)
    low, high = clopper_pearson(dropped, shown, confidence=confidence)
    return Measurement(
        name=name,
        value=dropped / shown,
        low=low,
        high=high,
        n=shown,
        unit=unit,
        confidence=confidence,
        method=method,
        inputs=inputs,
    )
