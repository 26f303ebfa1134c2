"""The power certificate of a filter: how many planted copies it catches, with exact bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.metrics.intervals import CONFIDENCE
from vitrael.privacy.evidence import Measurement, measure_share, not_estimable
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.reid.roles import Keep


class Tally(NamedTuple):
    """How many images were shown to the filter, and how many it dropped."""

    shown: int
    dropped: int


class Caught(NamedTuple):
    """How much of what was planted of patients was caught: a sum of shares over the patients."""

    share: float
    """For each patient the share of plants that were dropped, summed."""
    patients: int


_NOTHING: Final = Tally(0, 0)
_NOBODY: Final = Caught(0.0, 0)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a site's filter did with what it was shown; counts over patients and no more."""

    plants: Mapping[str, Tally] = field(default_factory=dict)
    """By class; of a class of groups the groups."""
    negatives: Mapping[str, Tally] = field(default_factory=dict)
    """By kind."""
    mixing: Tally = _NOTHING
    """Images in mixtures of both shares, and those whose votes differ."""
    must: Caught = _NOBODY
    """Over the classes that must be caught, patient by patient."""
    subgroups: Mapping[str, Caught] = field(default_factory=dict)
    """The same, of the patients of one subgroup."""


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


def mean_caught(
    name: str,
    told: Sequence[Caught],
    *,
    method: str,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> Measurement:
    """Return the mean over patients of the share that was caught, with patients as trials.

    A patient's plants stand or fall together, so they count as one trial; the bounds are those of
    Clopper and Pearson for the sum of the shares. Fewer than ``SMALLEST_COUNT`` patients are not
    estimable.
    """
    unit, patients = "patients", sum(one.patients for one in told)
    if patients < SMALLEST_COUNT:
        why = f"plants of fewer than {SMALLEST_COUNT} patients were shown to a calibrated filter"
        return not_estimable(name, why, method=method, unit=unit, confidence=confidence)
    total = min(sum(one.share for one in told), float(patients))
    return measure_share(
        name, total, patients, unit=unit, method=method, confidence=confidence, inputs=inputs
    )


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
    return measure_share(
        name, dropped, shown, unit=unit, method=method, confidence=confidence, inputs=inputs
    )
