"""Parts of the patients: whose encoder compares whom."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vitrael.core.errors import CohortError
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit_folder.crossing import fit_filter
from vitrael.privacy.audit_folder.encoders import Budget
from vitrael.privacy.audit_folder.parting import (
    PARTS,
    encoder_for,
    part_candidates,
    part_patients,
)

KEY = b"0123456789abcdef"


def test_no_encoder_compares_whom_it_learned_from() -> None:
    for own, other in itertools.product(range(PARTS), repeat=2):
        assert encoder_for(own, other) in set(range(PARTS)) - {own, other}


def test_patient_never_in_two_parts() -> None:
    patient_B = stream(1, "patients").integers(0, 17, 90)
    part_B = part_patients(patient_B, rng=stream(1, "parts"))
    for patient in np.unique(patient_B):
        assert len(np.unique(part_B[patient_B == patient])) == 1
    assert set(part_B) == set(range(PARTS))
    other = part_patients(patient_B, rng=stream(2, "parts"))
    assert not np.array_equal(part_B, other)


def test_parts_share_out_patients_with_several_scans() -> None:
    patient_B = np.concatenate([np.arange(21), np.arange(6)])
    part_B = part_patients(patient_B, rng=stream(1, "parts"))
    assert sorted(np.bincount(part_B[:21])) == [7, 7, 7]
    assert sorted(np.bincount(part_B[:6])) == [2, 2, 2]


def test_a_candidate_is_dealt_by_its_content_alone() -> None:
    image = stream(1, "images").random((40, 1, 1, 8, 8)).astype(np.float32)
    part_B = part_candidates(image, key=KEY)
    assert set(part_B) == set(range(PARTS))
    assert np.array_equal(part_candidates(image[::-1], key=KEY), part_B[::-1])
    assert np.array_equal(part_candidates(image[7:8], key=KEY), part_B[7:8])
    assert not np.array_equal(part_candidates(image, key=KEY[::-1]), part_B)


def test_five_patients_make_no_filter() -> None:
    image = stream(1, "images").random((5, 1, 1, 16, 16)).astype(np.float32)
    images = PatientImages(image, np.zeros((5, 1), np.float32), np.arange(5), np.zeros(5, np.int64))
    with pytest.raises(CohortError, match="so few patients"):
        fit_filter(images, budget=Budget(length_images=32), seed=1)
