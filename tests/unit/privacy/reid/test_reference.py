from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.data.phantoms.brain import draw_acquisition, draw_anatomy, render_brain
from vitrael.core.errors import DataError
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants import bend_affinely
from vitrael.privacy.reid.reference import Reference, build_reference, registered_similarity
from vitrael.privacy.reid.template import fit_template, register

_GRID = (24, 24, 24)


def _brains(first: int, count: int) -> np.ndarray:
    scans = []
    for patient in range(first, first + count):
        rng = stream(7, "similarity", patient)
        anatomy, acquisition = draw_anatomy(rng), draw_acquisition(rng)
        scans.append(render_brain(anatomy, acquisition, grid_vox=_GRID, spacing_mm=8.0).image_CDHW)
    return np.clip(np.stack(scans), 0, 1)


@pytest.fixture(scope="module")
def gallery() -> np.ndarray:
    return _brains(0, 20)


@pytest.fixture(scope="module")
def reference(gallery: np.ndarray) -> Reference:
    return build_reference(gallery, fit_template(gallery))


def test_scan_matches_itself_and_its_mirror_image(
    gallery: np.ndarray, reference: Reference
) -> None:
    for view in (gallery[:5], np.ascontiguousarray(gallery[:5, :, ::-1])):
        similarity = registered_similarity(view, reference)
        assert similarity.max(1) == pytest.approx(1, abs=1e-3)
        assert (similarity.argmax(1) == np.arange(5)).all()


def test_small_affine_map_is_undone(gallery: np.ndarray, reference: Reference) -> None:
    rng = stream(1, "bend")
    bent = np.array([[bend_affinely(scan[0], rng=rng)] for scan in gallery[:8]], dtype=np.float32)
    strangers = registered_similarity(_brains(100, 12), reference).max(1)
    copies = registered_similarity(bent, reference).max(1)
    assert copies.min() > strangers.max()
    common = gallery.mean(0)
    still = [
        np.corrcoef((copy - common).ravel(), (scan - common).ravel())[0, 1]
        for copy, scan in zip(bent, gallery[:8], strict=True)
    ]
    assert np.median(still) < np.median(copies)  # without registration they would look apart


def test_translation_is_undone(gallery: np.ndarray, reference: Reference) -> None:
    moved = np.roll(gallery[:4], (2, -1, 1), (2, 3, 4))
    assert registered_similarity(moved, reference).max(1).min() > 0.85


def test_gain_and_offset_do_not_matter(gallery: np.ndarray, reference: Reference) -> None:
    dim = gallery[:3] * 0.8
    assert registered_similarity(dim, reference).max(1).min() > 0.9


def test_blank_image_matches_nobody_and_stays_finite(reference: Reference) -> None:
    similarity = registered_similarity(np.zeros((1, 1, *_GRID), np.float32), reference)
    assert np.isfinite(similarity).all()
    assert registered_similarity(np.zeros((0, 1, *_GRID), np.float32), reference).shape == (0, 20)


def test_chunks_do_not_change_the_result(gallery: np.ndarray, reference: Reference) -> None:
    whole = registered_similarity(gallery[:5], reference)
    parts = registered_similarity(gallery[:5], reference, chunk=2)
    assert whole == pytest.approx(parts, abs=1e-4)


def test_image_that_is_not_finite_is_refused(gallery: np.ndarray, reference: Reference) -> None:
    broken = gallery[:1].copy()
    broken[0, 0, 3, 3, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        register(broken, reference.template)


def test_template_needs_brains() -> None:
    with pytest.raises(DataError):
        fit_template(np.zeros((0, 1, *_GRID), np.float32))
    with pytest.raises(DataError, match="dark"):
        fit_template(np.zeros((2, 1, *_GRID), np.float32))
