"""Samples that an over-trained model has by heart, found without any member of the filter.

A sample is a training patient's when it is much nearer to one scan of his than to the patients
next to him: its Euclidean distance to the nearest scan, over ``alpha`` times the mean distance to
the ``neighbors`` nearest patients, is below 1 (Carlini et al. 2023, "Extracting Training Data from
Diffusion Models", section 5.1). Without that relation the dullest scans would seem to be copied
most. Axes: B samples, N training scans, P patients, M samples that were harvested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.errors import DataError
from vitrael.privacy.audit.plants.sources import demand_usable
from vitrael.privacy.suite import LEAST_SOURCES

ALPHA: Final = 0.5
NEIGHBORS: Final = 50

_FEWEST: Final = 3
_CHUNK: Final = 64


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Harvest:
    """Private: memorized samples and whose they are, at most one for each patient."""

    image_MCDHW: np.ndarray
    patient_M: np.ndarray
    """As in ``patient_N`` of the training scans, rising."""
    ratio_M: np.ndarray
    """Relative distances, below 1."""

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "Harvest(private)"

    @property
    def sources(self) -> int:
        """How many distinct patients the samples show."""
        return len(self.patient_M)

    @property
    def suffices(self) -> bool:
        """Whether a lower bound of 0.95 can be reached at all."""
        return self.sources >= LEAST_SOURCES


def harvest_memorized(
    sample_BCDHW: np.ndarray,
    training_NCDHW: np.ndarray,
    *,
    patient_N: np.ndarray,
    alpha: float = ALPHA,
    neighbors: int = NEIGHBORS,
) -> Harvest:
    """Return of every patient the sample that is relatively nearest to a scan of his, if any is.

    The neighbors are patients too, each at the nearest of his scans, the nearest one among them;
    with fewer patients all of them count. Raises DataError for images on two grids, what
    ``demand_usable`` refuses, and fewer than three patients: nearness then has no measure.
    """
    demand_usable(sample_BCDHW, what="a sample")
    demand_usable(training_NCDHW, what="a training scan")
    if sample_BCDHW.shape[1:] != training_NCDHW.shape[1:] or len(patient_N) != len(training_NCDHW):
        raise DataError(
            "samples and training scans do not go together",
            why="they lie on two grids, or it is not told whose each scan is",
            fix="give one patient for each scan, and the samples on the scans' grid",
        )
    patient_P, place_N = np.unique(patient_N, return_inverse=True)
    if len(patient_P) < _FEWEST:
        raise DataError(
            "nothing can be said to be memorized",
            why="with fewer than three patients there is no neighborhood to compare with",
            fix="train on more patients, 30 to 100 for instance",
        )
    distance_BP = _patient_distances(sample_BCDHW, training_NCDHW, place_N, len(patient_P))
    near_B = np.sort(distance_BP, axis=1)[:, :neighbors].mean(1)
    owner_B = distance_BP.argmin(1)
    ratio_B = distance_BP.min(1) / np.maximum(alpha * near_B, np.finfo(np.float64).tiny)
    chosen = [
        int(rows[ratio_B[rows].argmin()])
        for owner in np.unique(owner_B)
        if len(rows := np.flatnonzero((owner_B == owner) & (ratio_B < 1)))
    ]
    rows_M = np.array(chosen, dtype=np.int64)
    return Harvest(
        image_MCDHW=sample_BCDHW[rows_M],
        patient_M=patient_P[owner_B[rows_M]],
        ratio_M=ratio_B[rows_M],
    )


def _patient_distances(
    sample_BCDHW: np.ndarray, training_NCDHW: np.ndarray, place_N: np.ndarray, patients: int
) -> np.ndarray:
    """Return ``[B, P]``: the distance of each sample to the nearest scan of each patient."""
    flat_NV = training_NCDHW.reshape(len(training_NCDHW), -1).astype(np.float64)
    square_N = (flat_NV**2).sum(1)
    distance_PB = np.full((patients, len(sample_BCDHW)), np.inf)
    for at in range(0, len(sample_BCDHW), _CHUNK):
        part_BV = sample_BCDHW[at : at + _CHUNK].reshape(-1, flat_NV.shape[1]).astype(np.float64)
        square_BN = (part_BV**2).sum(1)[:, None] + square_N - 2 * part_BV @ flat_NV.T
        columns = slice(at, at + len(part_BV))
        np.minimum.at(distance_PB[:, columns], place_N, np.sqrt(np.maximum(square_BN.T, 0)))
    return distance_PB.T
