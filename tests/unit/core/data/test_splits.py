"""A patient is in one split, for ever, and only the site's key says in which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrael.core.data.splits import Split, split_of, split_subjects
from vitrael.core.errors import CohortError
from vitrael.core.protocols import Splits

SPLITS = Splits(
    training_frac=0.5,
    filter_frac=0.15,
    calibration_frac=0.1,
    audit_frac=0.2,
    utility_frac=0.05,
)
KEY = b"0123456789abcdef"
SUBJECTS = st.lists(st.text(max_size=20), max_size=40)


@given(SUBJECTS, st.binary(min_size=16, max_size=64))
def test_patient_never_in_two_splits(subjects: list[str], key: bytes) -> None:
    parted = split_subjects(subjects, SPLITS, key=key)
    everyone = [subject for members in parted.values() for subject in members]
    assert sorted(everyone) == sorted(set(subjects))


@given(SUBJECTS, SUBJECTS)
def test_added_patients_move_nobody(first: list[str], more: list[str]) -> None:
    before = split_subjects(first, SPLITS, key=KEY)
    after = split_subjects(more + first, SPLITS, key=KEY)
    for split in Split:
        assert set(before[split]) <= set(after[split])


def test_fractions_hold_approximately() -> None:
    n = 5000
    parted = split_subjects((f"p-{i}" for i in range(n)), SPLITS, key=KEY)
    shares = {split: len(members) / n for split, members in parted.items()}
    expected = dict(zip("TFCAU", (0.5, 0.15, 0.1, 0.2, 0.05), strict=True))
    for split, share in expected.items():
        assert abs(shares[Split(split)] - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_another_key_parts_otherwise() -> None:
    names = [f"p-{i}" for i in range(200)]
    one = [split_of(name, SPLITS, key=KEY) for name in names]
    two = [split_of(name, SPLITS, key=b"another key of 16") for name in names]
    assert one != two
    assert one == [split_of(name, SPLITS, key=KEY) for name in names]


def test_larger_training_share_takes_nobody_out_of_training() -> None:
    larger = SPLITS.model_copy(update={"training_frac": 0.6, "audit_frac": 0.1})
    for i in range(300):
        if split_of(f"p-{i}", SPLITS, key=KEY) is Split.TRAINING:
            assert split_of(f"p-{i}", larger, key=KEY) is Split.TRAINING


def test_short_key_is_refused() -> None:
    with pytest.raises(CohortError, match="too short"):
        split_of("p-1", SPLITS, key=b"short")
