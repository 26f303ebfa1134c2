"""How well the view of one visit is found again at another, with the patient as the unit.

A query is a clip of one visit, the gallery are the clips of another visit of the same patient.
Two clips show the same view when the probe stood less than a tolerance apart. Axes: Q queries,
G gallery clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.metrics.bootstrap import bootstrap, centered_interval
from vitrael.core.metrics.intervals import UNIT, auc
from vitrael.core.metrics.measured import Measured

TOLERANCE: Final = 0.1
"""Of the way from one end of the sweep to the other."""
TOP: Final = 5
_METHOD: Final = "bootstrap"
_FEWEST: Final = 2
"""One patient has no spread."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Revisit:
    """The queries of one patient against the gallery of another visit."""

    similarity_QG: np.ndarray
    """Higher is more alike."""
    query_Q: np.ndarray
    """True positions of the probe, in [0, 1]."""
    gallery_G: np.ndarray

    def __post_init__(self) -> None:
        """Raise DataError unless there is a similarity for each query and gallery clip."""
        if self.similarity_QG.shape != (len(self.query_Q), len(self.gallery_G)):
            raise DataError("similarities and positions of a revisit do not belong together")
        if not self.similarity_QG.size:
            raise DataError("a revisit needs queries and a gallery")
        finite(similarity=self.similarity_QG, query=self.query_Q, gallery=self.gallery_G)

    def __repr__(self) -> str:
        """Show sizes, nothing of a patient."""
        return f"Revisit({len(self.query_Q)} queries, {len(self.gallery_G)} clips)"

    @property
    def apart(self) -> np.ndarray:
        """How far each query truly is from each clip of the gallery, ``[Q, G]``."""
        return np.asarray(np.abs(self.query_Q[:, None] - self.gallery_G[None]))

    def best(self, count: int = 1) -> np.ndarray:
        """Return the gallery clips most like each query, best first, ``[Q, count]``."""
        order = np.argsort(-self.similarity_QG, axis=1, kind="stable")
        return np.asarray(order[:, :count])


@dataclass(frozen=True, slots=True)
class RetrievalScores:
    """Three numbers over patients, each with its bounds."""

    hit: Measured
    """Share of queries with a clip of the same view among the first."""
    gap: Measured
    """Median distance of the first clip from the query."""
    same_view: Measured
    """Probability that a pair of the same view is more alike than a pair of different views."""


def measure_retrieval(
    revisits: Sequence[Revisit],
    *,
    rng: np.random.Generator,
    top: int = TOP,
    tolerance: float = TOLERANCE,
) -> RetrievalScores:
    """Return the scores of one Revisit a patient; all that one patient shows counts as one.

    The hit rate and the area are means over patients, the gap is the median over all queries. The
    bounds resample patients. Raises DataError for fewer than two patients and where a patient has
    no pair of the same or none of different views.
    """
    if len(revisits) < _FEWEST:
        raise DataError("retrieval is measured over two patients or more")
    hit_N = np.array([_hit_share(visit, top=top, tolerance=tolerance) for visit in revisits])
    area_N = np.array([_same_view_area(visit, tolerance=tolerance) for visit in revisits])
    gaps = [np.take_along_axis(v.apart, v.best(), axis=1)[:, 0] for v in revisits]

    gap_value = _median(gaps, np.arange(len(gaps)))
    draws = bootstrap(lambda rows: _median(gaps, rows), [len(gaps)], rng=rng)
    low, high = centered_interval(gap_value, draws, within=UNIT)
    return RetrievalScores(
        hit=average_patients(f"top_{top}_hit", hit_N, rng=rng, within=UNIT),
        gap=Measured("median_gap", gap_value, low, high, len(gaps), "patients", _METHOD),
        same_view=average_patients("same_view_auc", area_N, rng=rng, within=UNIT),
    )


def average_patients(
    name: str,
    value_N: np.ndarray,
    *,
    rng: np.random.Generator,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Measured:
    """Return the mean of one number a patient, with bounds from resampled patients.

    Raises DataError for fewer than two patients and for a number that is not finite.
    """
    finite(patients=value_N)
    if len(value_N) < _FEWEST:
        raise DataError("a mean over patients needs two patients or more")
    value = float(value_N.mean())
    draws = bootstrap(lambda rows: float(value_N[rows].mean()), [len(value_N)], rng=rng)
    low, high = centered_interval(value, draws, within=within)
    return Measured(name, value, low, high, len(value_N), "patients", _METHOD)


def _median(gaps: list[np.ndarray], rows: np.ndarray) -> float:
    return float(np.median(np.concatenate([gaps[row] for row in rows])))


def _hit_share(visit: Revisit, *, top: int, tolerance: float) -> float:
    apart = np.take_along_axis(visit.apart, visit.best(top), axis=1)
    return float((apart < tolerance).any(axis=1).mean())


def _same_view_area(visit: Revisit, *, tolerance: float) -> float:
    same = visit.apart < tolerance
    return auc(visit.similarity_QG[same], visit.similarity_QG[~same]).value
