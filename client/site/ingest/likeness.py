"""How alike the images of a cohort are: exact nearest neighbours over coarse fingerprints.

What all images of a cohort share says nothing about who is shown. So the mean of the patients'
fingerprints and their first principal components are taken away, and what is left is compared by
correlation. It knows a copy again after noise, another gain, a small shift, and mirrored; of
brains also one person on two visits, mostly. Two radiographs of one person it does not know.
A score of 0.999 or more can also mean that the fingerprints as a whole are equal: so many copies
of one image are found, which else would be a component. With fewer than ``LEAST_PATIENTS`` patients
the components cannot be told from the patients, and nothing else is found.

Every image is compared with every other one, block by block: time grows with the square of their
number, memory in proportion. Axes: N images, E fingerprint, K components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

LEAST_PATIENTS: Final = 20
EQUAL: Final = 0.999
"""Plain correlation of fingerprints from which two images are of one person, or one image.

Of the brains of two patients it is 0.996 at most among 37 real ones, 0.997 among 1,000 phantoms.
"""

_PATIENTS_PER_COMPONENT = 10
_MOST_COMPONENTS = 20
_BLOCK = 2048


@dataclass(frozen=True, slots=True, repr=False)
class Best:
    """For each image the most similar other one of some kind; private."""

    score_N: np.ndarray
    """float32; -inf where there is no other one."""
    index_N: np.ndarray
    """int64."""


@dataclass(frozen=True, slots=True, repr=False)
class Likeness:
    """The most similar images of all images; private."""

    stranger: Best
    """Of another patient."""
    own: Best
    """Of the same patient; by what is distinct alone, because two visits can be equal else."""
    mirrored: Best
    """Of anybody, mirrored left to right: of each two images the earlier one is mirrored."""
    sees_persons: bool
    """False with too few patients: then a score is 0 unless two fingerprints are equal."""


def compare_images(
    vector_NE: np.ndarray, patient_N: np.ndarray, *, shape: tuple[int, ...], mirrored_axis: int
) -> Likeness:
    """Return how alike images are, from fingerprints of length 1 (or 0) with their grid's shape."""
    swap_E = np.flip(np.arange(vector_NE.shape[1]).reshape(shape), mirrored_axis).ravel()
    enough = len(np.unique(patient_N)) >= LEAST_PATIENTS
    mean_E, component_KE = _find_common(vector_NE, patient_N) if enough else (None, None)

    def distinct(rows_NE: np.ndarray) -> np.ndarray:
        if mean_E is None or component_KE is None:
            return np.zeros((len(rows_NE), 1), dtype=np.float32)
        left_NE = rows_NE - mean_E
        left_NE -= (left_NE @ component_KE.T) @ component_KE
        left_NE[~rows_NE.any(axis=1)] = 0
        return np.asarray(left_NE / np.maximum(np.linalg.norm(left_NE, axis=1), 1e-9)[:, None])

    count = len(vector_NE)
    blocks = [np.arange(at, min(at + _BLOCK, count)) for at in range(0, count, _BLOCK)]
    distinct_NE = np.concatenate([distinct(vector_NE[rows]) for rows in blocks])
    stranger, own, mirrored = (_nobody(count) for _ in range(3))
    for i, rows in enumerate(blocks):
        turned_NE = vector_NE[rows][:, swap_E]
        turned_distinct_NE = distinct(turned_NE)
        for columns in blocks[i:]:
            own_score = distinct_NE[rows] @ distinct_NE[columns].T
            score = _join(own_score, vector_NE[rows] @ vector_NE[columns].T)
            turned = _join(
                turned_distinct_NE @ distinct_NE[columns].T, turned_NE @ vector_NE[columns].T
            )
            if columns is rows:
                np.fill_diagonal(score, -np.inf)
                np.fill_diagonal(own_score, -np.inf)
                turned[np.tril_indices(len(rows))] = -np.inf
            same = patient_N[rows][:, None] == patient_N[columns]
            if same.any():
                _keep_best(own, rows, columns, np.where(same, own_score, -np.inf))
                score[same] = -np.inf
            _keep_best(stranger, rows, columns, score)
            _keep_best(mirrored, rows, columns, turned)
    return Likeness(stranger, own, mirrored, sees_persons=enough)


def _find_common(vector_NE: np.ndarray, patient_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the patients' means, and their first principal components ``[K, E]``.

    One component for every ten patients, twenty at most: with more, a copy would be one itself.
    """
    order = np.argsort(patient_N, kind="stable")
    _, first, sizes = np.unique(patient_N[order], return_index=True, return_counts=True)
    means = np.add.reduceat(vector_NE[order], first, axis=0) / sizes[:, None].astype(np.float32)
    mean_E = means.mean(axis=0)
    means -= mean_E
    components = min(_MOST_COMPONENTS, len(means) // _PATIENTS_PER_COMPONENT)
    _, vector_EE = np.linalg.eigh(means.T @ means)
    return mean_E, np.ascontiguousarray(vector_EE[:, ::-1][:, :components].T)


def _join(distinct: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """Return the correlation of what is distinct, or the plain one where that is all but 1."""
    return np.where(plain >= EQUAL, np.maximum(plain, distinct), distinct)


def _nobody(count: int) -> Best:
    return Best(np.full(count, -np.inf, dtype=np.float32), np.full(count, -1, dtype=np.int64))


def _keep_best(best: Best, rows: np.ndarray, columns: np.ndarray, score: np.ndarray) -> None:
    """Update the best of a block's rows and, as likeness is mutual, of its columns."""
    for here, there, values in ((rows, columns, score), (columns, rows, score.T)):
        at = values.argmax(axis=1)
        found = values[np.arange(len(here)), at]
        better = found > best.score_N[here]
        best.score_N[here[better]] = found[better]
        best.index_N[here[better]] = there[at[better]]
