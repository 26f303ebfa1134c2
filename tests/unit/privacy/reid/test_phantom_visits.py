"""Registered similarity links two visits of a phantom patient, and no two patients."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.privacy.reid.reference import build_reference, registered_similarity
from vitrael.privacy.reid.template import fit_template

PEOPLE = 60


def visit(number: int) -> np.ndarray:
    scans = [
        draw_scan(5, "visits", person, number, grid_vox=(24, 24, 24), spacing_mm=8.0)[0].image_CDHW
        for person in range(PEOPLE)
    ]
    return np.clip(np.stack(scans), 0, 1)


@pytest.fixture(scope="module")
def similarity() -> np.ndarray:
    """Return how alike each person's second visit is to everybody's first."""
    first = visit(0)
    reference = build_reference(first, fit_template(first))
    return registered_similarity(visit(1), reference)


def test_visits_of_one_person_are_closer_than_any_two_people(similarity: np.ndarray) -> None:
    own = np.diag(similarity)
    others = np.where(np.identity(PEOPLE, dtype=bool), -1, similarity)
    assert (own > np.maximum(others.max(0), others.max(1))).mean() >= 0.99
    strangers = similarity[~np.identity(PEOPLE, dtype=bool)]
    assert (own[:, None] > strangers).mean() >= 0.99
    # Control: a stranger's visit is closest for about one in sixty.
    shifted = np.roll(np.arange(PEOPLE), 7)
    assert (similarity[np.arange(PEOPLE), shifted] >= own).mean() <= 0.05


def test_visits_are_not_copies(similarity: np.ndarray) -> None:
    assert np.diag(similarity).max() < 0.999
