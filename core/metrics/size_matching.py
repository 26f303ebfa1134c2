"""Two groups of scans made equal in size, so that maxima over them may be compared.

The largest of many similarities is larger than the largest of few, of strangers too. Whoever asks
whether synthetic scans are nearer to the training patients than to audit patients must therefore
give both sides as many patients with as many scans each; the patient is the unit.

Axes: N scans of one group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrael.core.errors import DataError


@dataclass(frozen=True, slots=True, repr=False)
class MatchedRows:
    """Rising row numbers of either side, each with as many patients and scans of each."""

    training: np.ndarray
    audit: np.ndarray

    def __repr__(self) -> str:
        """Show no row, and not how many there are."""
        return "MatchedRows(private)"


def match_sizes(
    training_patient_N: np.ndarray, audit_patient_N: np.ndarray, *, rng: np.random.Generator
) -> MatchedRows:
    """Return the rows of both groups that stay when the larger one is cut to the smaller one.

    The smaller group, by patients and then by scans, stays whole. For each of its patients one of
    the larger group is drawn who has at least as many scans, those with most scans first so that
    no draw takes away the last one who would do; of more scans than wanted a random subset stays.
    Raises DataError for an empty group and when too few patients have as many scans.
    """
    groups = [np.asarray(training_patient_N), np.asarray(audit_patient_N)]
    if any(group.ndim != 1 or len(group) == 0 for group in groups):
        raise DataError("sizes are matched between two groups of scans, and one is empty")
    rows = [_rows_by_patient(group) for group in groups]
    sizes = [(len(patients), len(group)) for patients, group in zip(rows, groups, strict=True)]
    larger = int(sizes[1] > sizes[0])
    wanted = sorted((len(each) for each in rows[1 - larger]), reverse=True)
    kept = [np.arange(len(group)) for group in groups]
    kept[larger] = _draw(rows[larger], wanted, rng=rng)
    return MatchedRows(*kept)


def _draw(
    rows_by_patient: list[np.ndarray], wanted: list[int], *, rng: np.random.Generator
) -> np.ndarray:
    """Return rows of as many patients as are wanted, with as many scans each as is wanted."""
    free = np.array([len(rows) for rows in rows_by_patient])
    chosen = []
    for scans in wanted:
        fit = np.flatnonzero(free >= scans)
        if not len(fit):
            raise DataError(
                "the sizes of two groups of scans cannot be matched",
                why="too few patients of the larger group have as many scans as the others",
                fix="leave out further scans of the patients of the smaller group, or add patients",
            )
        patient = int(rng.choice(fit))
        free[patient] = 0
        chosen.append(rng.choice(rows_by_patient[patient], scans, replace=False))
    return np.sort(np.concatenate(chosen))


def _rows_by_patient(patient_N: np.ndarray) -> list[np.ndarray]:
    _, number_N = np.unique(patient_N, return_inverse=True)
    order = np.argsort(number_N, kind="stable")
    return np.split(order, np.cumsum(np.bincount(number_N))[:-1])
