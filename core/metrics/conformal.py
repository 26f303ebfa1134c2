"""Split-conformal p values: how unusual a score is beside scores of which nothing is to be found.

The null is a sample of scores that are exchangeable with that of a newcomer of whom nothing was
copied. Then the p value is at most ``a`` with probability at most ``a``, whatever the distribution
(Vovk, Gammerman and Shafer 2005, section 2.2), and so does the frozen threshold keep its rate.
Exchangeable they are only where each maximum runs over equally many reference scans: a null of
maxima over fewer lies lower, and the published protocol that takes it so flags a quarter of all
honest samples at a nominal 5 %.

Maxima with each patient left out in turn are no such sample: similarity is mutual, so the two who
are nearest to each other are both high, while the newcomer has lifted nobody. With the newcomer
among them, the one patient who is nearest to him might be lifted to his score, and nobody else. So
with one value of the null counted as high in any case (``lifted``) the rate is kept.

Axes: N scores of the null or scans of a gallery, B newcomers, P patients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.errors import DataError

_SLACK: Final = 1e-9
"""So that 0.05 of 20 is one."""
_FEWEST_PATIENTS: Final = 2


@dataclass(frozen=True, slots=True, repr=False)
class PatientNull:
    """Private: the best match of each patient among the scans of all others."""

    patient_P: np.ndarray
    score_P: np.ndarray

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "PatientNull(private)"


def conformal_p(null_N: np.ndarray, score_B: np.ndarray) -> np.ndarray:
    """Return ``[B]``: (1 + null scores at or above the score) / (n + 1); ties count against.

    An empty null gives 1: nothing is unusual where nothing is known. Raises DataError for scores
    that are not finite.
    """
    null_N, score_B = np.asarray(null_N), np.asarray(score_B)
    finite(null=null_N, score=score_B)
    rising = np.sort(null_N, axis=None)
    above = len(rising) - np.searchsorted(rising, score_B, side="left")
    return np.asarray((1 + above) / (len(rising) + 1))


def smallest_p(n: int) -> float:
    """Return the smallest p value that a null of ``n`` scores can give."""
    if n < 0:
        raise DataError("a null cannot hold fewer than no scores")
    return 1 / (n + 1)


def least_null(rate: float, *, lifted: int = 0) -> int:
    """Return how many scores the null needs before a p value can be as small as ``rate``."""
    _check_rate(rate)
    return max(0, math.ceil((1 + lifted) / rate - 1 - _SLACK))


def estimable(n: int, level: float) -> bool:
    """Return whether a null of ``n`` scores can say anything at a level; else *not estimable*."""
    return n >= least_null(level)


def frozen_threshold(null_N: np.ndarray, rate: float, *, lifted: int = 0) -> float | None:
    """Return the order statistic above which newcomers are dropped, at most ``rate`` of them.

    A score is above it exactly when its conformal p value is at most ``rate``. ``lifted`` is how
    many values of the null a newcomer might have lifted above his own score, had he been there
    when it was taken: 1 for maxima with each patient left out, 0 for an independent null. None when
    the null is too small for the rate: that is not estimable, and no pass. The rate holds over
    nulls; with one null of n independent scores the rate of later newcomers is itself spread, as
    Beta(k, n + 1 - k) with k the whole part of rate * (n + 1). Raises DataError for scores that
    are not finite.
    """
    _check_rate(rate)
    null_N = np.asarray(null_N)
    finite(null=null_N)
    count = null_N.size
    allowed = math.floor((count + 1) * rate + _SLACK) - lifted
    if allowed < 1:
        return None
    return float(np.sort(null_N, axis=None)[count - allowed])


def leave_one_patient_out(similarity_NN: np.ndarray, patient_N: np.ndarray) -> PatientNull:
    """Return for each patient the largest similarity of one scan to the scans of all others.

    ``similarity_NN[i, j]`` is that of query i with gallery scan j; it need not be symmetric. The
    query is the patient's first scan, the one with the lowest row number, alone: a candidate is
    one image too, and the best of three scans would be a maximum over three times as many pairs
    and so a null that is too high, which lets copies pass. Each maximum still runs over one
    patient fewer than at use; where that is not few among many, a stranger takes the place. The
    patient's own scans never count. Patients come in rising order of their numbers.

    Raises DataError for fewer than two patients, for a matrix that is not square or does not fit
    the patients, and for similarities that are not finite.
    """
    similarity_NN, patient_N = np.asarray(similarity_NN), np.asarray(patient_N)
    if patient_N.ndim != 1 or similarity_NN.shape != (len(patient_N), len(patient_N)):
        raise DataError("leaving patients out needs a square matrix and the patient of each row")
    patient_P, first_P = np.unique(patient_N, return_index=True)
    if len(patient_P) < _FEWEST_PATIENTS:
        raise DataError("leaving patients out needs scans of two patients or more")
    rows_PN = similarity_NN[first_P]
    finite(similarity=rows_PN)
    own_PN = patient_P[:, None] == patient_N
    return PatientNull(patient_P, np.where(own_PN, -np.inf, rows_PN).max(1))


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise DataError(f"{rate} is no rate", fix="give a number above 0 and at most 1")
