"""Closeness symmetry: are released samples nearer to training patients than to held-out ones?

A sample of a generator that knows nothing particular of its training patients has its nearest
real neighbour among them as often as their number makes likely: half of the time, once the odds
are divided by how many more they are. Rarely is as telling as often: samples that keep clear of
the training patients show where these are. The distance is the Euclidean one between images,
relative to how near the patient is to other real people: without that, a few average patients,
whom every sample is nearest to, would decide the share. It shares nothing with the filter. Such
distances alone prove no privacy (Yao et al. 2025, "The DCR Delusion"); here they can only refuse.

Axes: R released samples, P patients, Q reference patients, who are in neither group. Distances
``[R, P]`` and ``[Q, P]`` are to the nearest of a patient's scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.metrics.intervals import (
    CONFIDENCE,
    UNIT,
    Estimate,
    normal_interval,
    stratified,
)
from vitrael.core.records import PatientImages
from vitrael.privacy.audit.worst import worst_area
from vitrael.privacy.evidence import Measurement, not_estimable
from vitrael.privacy.leakage import SMALLEST_COUNT

_RELABELINGS = 200
_NEIGHBORS = 3
_NAME = "closeness.training_share"
_WORST = "closeness.worst_site"
_METHOD = "nearest real neighbour by relative distance, odds per patient; bounds by relabeling"


@dataclass(frozen=True, slots=True)
class Closeness:
    """One site's share of samples nearer to training patients, and its error under relabeling."""

    share: float
    error: float
    patients: int
    """On the smaller side."""


def patient_distances(
    released_BCDHW: np.ndarray, images: PatientImages, *, visits: int
) -> np.ndarray:
    """Return ``[R, P]``: the Euclidean distance of each sample to the nearest scan of each patient.

    Only the first ``visits`` scans of a patient count, so that both sides have equally many.
    """
    chosen = images.visit_B < visits
    flat = images.image_BCDHW[chosen].reshape(int(chosen.sum()), -1).astype(np.float64)
    query = released_BCDHW.reshape(len(released_BCDHW), -1).astype(np.float64)
    squares = (query**2).sum(1)[:, None] + (flat**2).sum(1)[None] - 2 * query @ flat.T
    distance = np.sqrt(np.maximum(squares, 0))
    patients, place = np.unique(images.patient_B[chosen], return_inverse=True)
    nearest = np.full((len(patients), len(query)), np.inf)
    np.minimum.at(nearest, place, distance.T)
    return nearest.T


def relative_distances(released_RP: np.ndarray, reference_QP: np.ndarray) -> np.ndarray:
    """Return the distances as multiples of each patient's own to the nearest reference patients."""
    near_P = np.sort(reference_QP, axis=0)[:_NEIGHBORS].mean(axis=0)
    return np.asarray(released_RP / np.maximum(near_P, 1e-9))


def common_visits(*parts: PatientImages) -> int:
    """Return the largest number of first visits that every patient of every part has."""
    if not all(len(part) for part in parts):
        return 0
    return min(int(np.unique(part.patient_B, return_counts=True)[1].min()) for part in parts)


def measure_closeness(
    training_RP: np.ndarray, held_out_RP: np.ndarray, *, rng: np.random.Generator
) -> Closeness | None:
    """Return a site's share, or None when a side has fewer than ``SMALLEST_COUNT`` patients.

    The error is the spread of the share when patients are relabeled at random, so it holds for
    patients and not for samples.
    """
    sizes = training_RP.shape[1], held_out_RP.shape[1]
    if min(sizes) < SMALLEST_COUNT or len(training_RP) == 0:
        return None
    pool_RP = np.concatenate([training_RP, held_out_RP], axis=1)
    labels = np.arange(pool_RP.shape[1]) < sizes[0]
    relabeled = [_share(pool_RP, rng.permutation(labels)) for _ in range(_RELABELINGS)]
    return Closeness(
        share=_share(pool_RP, labels),
        error=float(np.std(relabeled)),
        patients=min(sizes),
    )


def pool_closeness(
    parts: Sequence[Closeness | None],
    *,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> tuple[Measurement, Measurement]:
    """Return the mean over sites, weighted by their patients, and the worst site.

    A site that could not measure (None) makes both not estimable.
    """
    told = [part for part in parts if part is not None]
    if not parts or len(told) < len(parts):
        why = f"a site is absent or has under {SMALLEST_COUNT} training or held-out patients"
        first, second = (
            not_estimable(name, why, method=_METHOD, unit="patients", confidence=confidence)
            for name in (_NAME, _WORST)
        )
        return first, second
    shares = [Estimate(part.share, part.error) for part in told]
    patients = [part.patients for part in told]
    pooled = stratified(shares, patients)
    low, high = normal_interval(pooled, confidence=confidence, within=UNIT)
    first = Measurement(
        name=_NAME,
        value=pooled.value,
        low=low,
        high=high,
        n=sum(patients),
        unit="held-out patients",
        confidence=confidence,
        method=_METHOD,
        inputs=inputs,
    )
    second = worst_area(
        _WORST, shares, patients=patients, method=_METHOD, confidence=confidence, inputs=inputs
    )
    return first, second


def _share(pool_RP: np.ndarray, training_P: np.ndarray) -> float:
    """Return the share of samples nearest to a training patient, as if both sides were equal.

    With k times as many training patients as held-out ones, k of k + 1 samples fall to them by
    their number alone; so the odds are divided by k.
    """
    nearer = float((pool_RP[:, training_P].min(1) < pool_RP[:, ~training_P].min(1)).mean())
    ratio = float(training_P.sum() / (~training_P).sum())
    return nearer / (nearer + ratio * (1 - nearer))
