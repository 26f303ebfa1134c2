"""The filter of an audit: nobody meets himself, and each is judged for himself."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit_folder.crossing import (
    ALL_PARTS,
    CrossFilter,
    CrossScreener,
    calibrate,
    fit_filter,
    leave_out,
    null_rows,
)
from vitrael.privacy.audit_folder.encoders import Budget
from vitrael.privacy.audit_folder.naming import name_scans

_RATE = 0.2
_SAME = 0.999


def _smooth(rng: np.random.Generator, count: int) -> np.ndarray:
    rough = rng.random((count, 1, 1, 6, 6))
    fine = np.kron(rough, np.ones((1, 1, 1, 4, 4)))
    row, column = np.indices((24, 24)) / 23 - 0.5
    body = np.exp(-4 * (row**2 + column**2))
    return np.clip(body * (0.6 + 0.4 * fine), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def cross() -> CrossFilter:
    """Nine patients whose two scans are one and the same."""
    image = np.repeat(_smooth(stream(1, "pictures"), 9), 2, axis=0)
    images = PatientImages(
        image, np.zeros((18, 1), np.float32), np.arange(18) // 2, np.arange(18) % 2
    )
    return fit_filter(images, budget=Budget(length_images=32, channels=(4,)), seed=1)


def test_nobody_of_the_null_meets_himself(cross: CrossFilter) -> None:
    null = leave_out(cross, ALL_PARTS, seed=1)
    assert null is not None
    assert len(null.best_BK) == 9
    assert (null.best_BK[:, 2] < _SAME).all()
    rows = null_rows(cross, ALL_PARTS, seed=1)
    itself = cross.matches(cross.images.image_BCDHW[rows], cross.part_N[rows])
    assert (itself.best_BK[:, 2] > _SAME).all()


def test_parts_that_stand_aside_are_not_met(cross: CrossFilter) -> None:
    null = leave_out(cross, (0, 1), seed=1)
    assert null is not None
    assert len(null.best_BK) == 6
    point, _ = calibrate(cross, rate=0.3, seed=1, parts=(0, 1))
    assert point is not None
    aside = cross.images.image_BCDHW[cross.part_N == 2]
    inside = cross.images.image_BCDHW[cross.part_N == 0]
    screener = CrossScreener(cross, point, (0, 1), 2)
    registered = 2
    assert (
        screener.members(inside)[:, registered].min() > screener.members(aside)[:, registered].max()
    )


def test_too_few_patients_for_the_rate_give_no_operating_point(cross: CrossFilter) -> None:
    assert calibrate(cross, rate=0.05, seed=1) == (None, None)
    assert calibrate(cross, rate=_RATE, seed=1)[0] is not None


def test_a_vote_does_not_depend_on_the_batch(cross: CrossFilter) -> None:
    point, _ = calibrate(cross, rate=_RATE, seed=1)
    assert point is not None
    screener = CrossScreener(cross, point)
    image = np.concatenate([_smooth(stream(2, "new"), 4), cross.images.image_BCDHW[:2]])
    together = screener.members(image)
    assert np.allclose(screener.members(image[::-1])[::-1], together, atol=1e-3)
    assert np.allclose(screener.members(image[1:2]), together[1:2], atol=1e-3)
    assert not screener(cross.images.image_BCDHW).any()


def test_a_copy_is_named_whatever_part_its_patient_stands_in(cross: CrossFilter) -> None:
    point, _ = calibrate(cross, rate=_RATE, seed=1)
    assert point is not None
    scans = name_scans(cross.images.image_BCDHW[::6], CrossScreener(cross, point))
    assert np.array_equal(cross.images.patient_B[scans], [0, 3, 6])
    assert len(name_scans(cross.images.image_BCDHW[:0], CrossScreener(cross, point))) == 0


def test_private_objects_show_nothing(cross: CrossFilter) -> None:
    point, _ = calibrate(cross, rate=_RATE, seed=1)
    assert point is not None
    assert repr(cross) == "CrossFilter(private)"
    assert repr(CrossScreener(cross, point)) == "CrossScreener(private)"
