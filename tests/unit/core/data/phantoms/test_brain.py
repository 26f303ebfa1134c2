"""A phantom's truth is in its image; visits share the anatomy, identities do not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.phantoms.brain import (
    Acquisition,
    Anatomy,
    age_anatomy,
    draw_acquisition,
    draw_anatomy,
    render_brain,
)
from vitrael.core.data.scan import Scan
from vitrael.core.rng import stream

PEOPLE = 40
EARLIER_VENTRICLE_ML = (40.5, 79.1, 22.2, 63.1, 14.6, 8.8, 37.4, 26.4, 11.2, 13.3, 10.5, 10.9)
EARLIER_BRAIN_ML = (1075, 995, 1294, 1117, 1220, 1430, 1244, 1239, 1081, 1073, 1291, 1383)
"""As measured on the same patients when a brain was two ellipsoids in a third."""


def render(anatomy: Anatomy, acquisition: Acquisition, *, grid: int = 24) -> Scan:
    return render_brain(anatomy, acquisition, grid_vox=(grid, grid, grid), spacing_mm=192 / grid)


@cache
def people() -> tuple[Anatomy, ...]:
    return tuple(draw_anatomy(stream(1, "patient", number)) for number in range(PEOPLE))


@cache
def visits(number: int) -> np.ndarray:
    """Return one visit of each patient, ``[P, V]``."""
    acquisitions = [draw_acquisition(stream(1, "visit", p, number)) for p in range(PEOPLE)]
    scans = [render(*pair) for pair in zip(people(), acquisitions, strict=True)]
    return np.stack([scan.image_CDHW.ravel() for scan in scans])


def still() -> Acquisition:
    """Return a scan without any movement, bias or noise."""
    nothing = np.zeros(3)
    return Acquisition(nothing, nothing, nothing, contrast=1.0, noise_frac=0.0, noise_seed=0)


def test_measured_ventricles_tell_the_truth() -> None:
    truth = np.array([anatomy.ventricle_ml for anatomy in people()])
    images = visits(0).reshape(PEOPLE, 1, 24, 24, 24)
    ventricle_ml, brain_ml = measure_volumes(images, render(people()[0], still()).affine)
    assert np.corrcoef(truth, ventricle_ml)[0, 1] >= 0.98
    brains = np.array([anatomy.brain_ml for anatomy in people()])
    assert np.corrcoef(brains, brain_ml)[0, 1] >= 0.75  # the surface's waves add their own
    np.testing.assert_allclose(brain_ml, brains, rtol=0.25)
    # Control: it is the image that tells, not the order of the patients.
    assert abs(np.corrcoef(truth[::-1], ventricle_ml)[0, 1]) < 0.6


def test_patients_of_earlier_studies_measure_as_they_did() -> None:
    images = visits(0).reshape(PEOPLE, 1, 24, 24, 24)[:12]
    ventricle_ml, brain_ml = measure_volumes(images, render(people()[0], still()).affine)
    np.testing.assert_allclose(ventricle_ml, EARLIER_VENTRICLE_ML, rtol=0.05, atol=2)
    np.testing.assert_allclose(brain_ml, EARLIER_BRAIN_ML, rtol=0.02)
    assert np.corrcoef(ventricle_ml, EARLIER_VENTRICLE_ML)[0, 1] > 0.995
    assert np.percentile(images[images > 0], 95) == pytest.approx(0.87, abs=0.02)
    assert images[images > 0].mean() == pytest.approx(0.563, rel=0.06)


def test_more_ventricle_in_the_same_brain_is_darker_in_its_middle() -> None:
    anatomy = people()[0]
    sums = [
        render(replace(anatomy, ventricle_ml=ml), still()).image_CDHW.sum()
        for ml in (10.0, 30.0, 60.0, 110.0)
    ]
    assert np.all(np.diff(sums) < 0)


def test_identities_differ_more_than_visits() -> None:
    first, second = visits(0), visits(1)
    common = first.mean(0)
    likeness = np.corrcoef(first - common, second - common)[:PEOPLE, PEOPLE:]
    own, others = np.diag(likeness), likeness[~np.identity(PEOPLE, dtype=bool)]
    assert own.min() > 0.5
    assert own.mean() > others.mean() + 0.5
    assert (likeness.argmax(1) == np.arange(PEOPLE)).all()
    assert not np.allclose(first, second, atol=1e-3)  # visits are not copies


def test_ventricles_grow_and_brains_shrink_with_age() -> None:
    drawn = [draw_anatomy(stream(2, number)) for number in range(600)]
    age = np.array([anatomy.age_years for anatomy in drawn])
    ventricle = np.array([anatomy.ventricle_ml for anatomy in drawn])
    brain = np.array([anatomy.brain_ml for anatomy in drawn])
    assert np.corrcoef(age, ventricle)[0, 1] > 0.6
    assert np.corrcoef(age, brain)[0, 1] < -0.2
    assert ventricle[age > 75].mean() > 2 * ventricle[age < 35].mean()


def test_patient_grows_older_and_stays_the_same() -> None:
    for number, anatomy in enumerate(people()):
        older = age_anatomy(anatomy, stream(3, number), years=10)
        assert older.age_years == anatomy.age_years + 10
        assert older.ventricle_ml > anatomy.ventricle_ml or older.ventricle_ml == 120
        assert older.brain_ml == pytest.approx(0.97 * anatomy.brain_ml)
        assert older.sex == anatomy.sex
        for name in ("proportions", "shape_waves", "fold_waves", "ventricle_form", "nuclei"):
            assert np.array_equal(getattr(older, name), getattr(anatomy, name))


def test_truth_lies_in_the_ranges_that_studies_ask_for() -> None:
    drawn = [draw_anatomy(stream(4, number)) for number in range(300)]
    for name, low, high in (
        ("age_years", 20, 90),
        ("ventricle_ml", 8, 110),
        ("brain_ml", 900, 1_600),
    ):
        values = np.array([getattr(anatomy, name) for anatomy in drawn])
        assert low <= values.min() < values.max() <= high
    assert {anatomy.sex for anatomy in drawn} == {0.0, 1.0}
    assert all(np.prod(anatomy.proportions) == pytest.approx(1) for anatomy in drawn)


def test_background_is_zero_and_tissue_is_in_range() -> None:
    image = visits(0).reshape(PEOPLE, 24, 24, 24)
    for axis in (1, 3):
        for side in (0, -1):
            assert not image.take(side, axis=axis).any()
    # The longest brains reach the border in front or behind.
    assert (image[:, :, [0, -1]] > 0).any(axis=(1, 2, 3)).mean() < 0.2
    for corner in np.ndindex(2, 2, 2):
        x, y, z = (slice(0, 5) if low else slice(-5, None) for low in corner)
        assert not image[:, x, y, z].any()
    assert image.min() == 0
    assert 0.8 < image.max() <= 1.2
    assert 0.15 < (image > 0.2).mean() < 0.4


def test_voxel_size_does_not_change_the_volumes() -> None:
    anatomy = people()[5]
    volumes = []
    for grid in (24, 48):
        scan = render(anatomy, still(), grid=grid)
        volumes.append(measure_volumes(scan.image_CDHW[None], scan.affine)[1][0])
    assert volumes[0] == pytest.approx(volumes[1], rel=0.04)


def test_equal_streams_give_equal_people_and_scans() -> None:
    one, same, other = (draw_anatomy(stream(seed, "patient")) for seed in (1, 1, 2))
    assert one.ventricle_ml == same.ventricle_ml != other.ventricle_ml
    scans = [render(one, draw_acquisition(stream(seed, "scan"))).image_CDHW for seed in (1, 1, 2)]
    assert np.array_equal(scans[0], scans[1])
    assert not np.array_equal(scans[0], scans[2])


def test_scanner_has_a_contrast_of_its_own() -> None:
    plain, sharp = (draw_acquisition(stream(1, "a"), site_contrast=c) for c in (0.0, 0.2))
    assert sharp.contrast == pytest.approx(plain.contrast + 0.2)
    assert np.array_equal(sharp.shift_mm, plain.shift_mm)


def test_anatomy_shows_nothing() -> None:
    assert "age" not in repr(people()[0])
    assert str(people()[0].ventricle_ml) not in repr(people()[0])
