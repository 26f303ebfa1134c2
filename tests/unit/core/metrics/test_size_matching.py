from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.size_matching import match_sizes
from vitrael.core.rng import stream


def _scans(patient_N: np.ndarray) -> list[int]:
    return sorted(np.unique(patient_N, return_counts=True)[1].tolist())


def _group(scans: list[int], *, name: str) -> np.ndarray:
    """Return the patient of each scan, in mixed order, with numbers that have gaps."""
    patients = np.repeat(np.arange(len(scans)) * 3 + 5, scans)
    return stream(1, name).permutation(patients)


@pytest.mark.parametrize("swapped", [False, True])
def test_both_sides_have_as_many_patients_with_as_many_scans(*, swapped: bool) -> None:
    large = _group([1, 2, 3, 4] * 10, name="large")
    small = _group([1, 1, 2, 4, 4, 3, 1], name="small")
    pair = (small, large) if swapped else (large, small)
    for seed in range(20):
        rows = match_sizes(*pair, rng=stream(seed, "match"))
        kept = (rows.training, rows.audit)
        assert _scans(pair[0][kept[0]]) == _scans(pair[1][kept[1]]) == _scans(small)
        for side in kept:
            assert (np.diff(side) > 0).all()
    assert len(kept[not swapped]) == len(small)
    assert repr(rows) == "MatchedRows(private)"


def test_last_patient_with_enough_scans_is_kept_for_the_one_who_needs_it() -> None:
    large, small = _group([1, 1, 3, 2], name="a"), _group([1, 3, 2], name="b")
    for seed in range(20):
        rows = match_sizes(large, small, rng=stream(seed, "match"))
        assert _scans(large[rows.training]) == [1, 2, 3]


def test_equal_streams_draw_equal_rows_and_others_do_not() -> None:
    large, small = np.repeat(np.arange(30), 3), np.arange(9)
    first, again, other = (match_sizes(large, small, rng=stream(s, "m")) for s in (1, 1, 2))
    assert (first.training == again.training).all()
    assert (first.training != other.training).any()
    assert len({row % 3 for row in first.training.tolist()}) > 1  # any scan of a patient may stay


def test_equal_numbers_of_patients_are_cut_where_there_are_more_scans() -> None:
    rows = match_sizes(np.arange(6), np.repeat(np.arange(6), 2), rng=stream(1, "m"))
    assert (len(rows.training), len(rows.audit)) == (6, 6)


def test_maxima_of_strangers_agree_after_matching_and_not_before() -> None:
    rng = stream(2, "maxima")
    training, audit = np.repeat(np.arange(80), 3), np.arange(40)
    to_training, to_audit = rng.normal(size=(3000, 240)), rng.normal(size=(3000, 40))
    rows = match_sizes(training, audit, rng=rng)
    nearest = to_training[:, rows.training].max(1) > to_audit[:, rows.audit].max(1)
    assert 0.47 < nearest.mean() < 0.53
    assert (to_training.max(1) > to_audit.max(1)).mean() > 0.8


@pytest.mark.parametrize(
    ("training", "audit"),
    [
        (np.arange(9), np.array([0, 0, 1])),
        (np.array([0, 0, 0, 1]), np.array([2, 2, 3, 3])),
        (np.arange(0), np.arange(3)),
        (np.arange(3), np.arange(0)),
        (np.zeros((2, 2)), np.arange(3)),
    ],
)
def test_groups_that_cannot_be_matched_are_refused(training: np.ndarray, audit: np.ndarray) -> None:
    with pytest.raises(DataError):
        match_sizes(training, audit, rng=stream(1, "m"))
