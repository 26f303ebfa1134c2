"""The lesion measurer follows the load of phantoms that it knows nothing of."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from vitrael.core.data.measure_lesions import measure_lesions
from vitrael.core.data.phantoms.acquisition import STYLES
from vitrael.core.data.phantoms.brain import draw_acquisition, draw_anatomy, image_brain
from vitrael.core.data.phantoms.lesions import draw_lesions
from vitrael.core.errors import DataError
from vitrael.core.geometry import centered_affine
from vitrael.core.rng import stream

PEOPLE = 24
AFFINE = centered_affine((32, 32, 32), spacing=6.0)


@cache
def cohort(style: str) -> tuple[np.ndarray, np.ndarray]:
    """Return FLAIR images ``[B, 1, D, H, W]`` and the loads that are present, ml."""
    images, loads = [], []
    for number in range(PEOPLE):
        rng = stream(13, "load", number)
        anatomy = draw_anatomy(rng)
        wmh_ml = 0.0 if number % 6 == 0 else float(rng.uniform(0.5, 30))
        session = image_brain(
            anatomy,
            draw_acquisition(rng, style=replace(STYLES[style], texture_frac=0.02)),
            grid_vox=(32, 32, 32),
            spacing_mm=6.0,
            contrasts=("FLAIR",),
            lesions=draw_lesions(rng, anatomy, wmh_ml=wmh_ml),
        )
        images.append(session.scans["FLAIR"].image_CDHW)
        loads.append(session.truth.volumes_ml["wmh"])
    return np.stack(images), np.array(loads)


@pytest.mark.parametrize("style", ["plain", "sharp"])
def test_measured_load_follows_the_truth(style: str) -> None:
    images, truth = cohort(style)
    found = measure_lesions(images, AFFINE)
    assert np.corrcoef(truth, found)[0, 1] >= 0.95
    assert np.polyfit(truth, found, 1)[0] == pytest.approx(1.2, abs=0.4)
    # Control: the load belongs to the image, not to the cohort.
    shuffled = stream(13, "shuffle").permutation(found)
    assert abs(np.corrcoef(truth, shuffled)[0, 1]) < 0.5


def test_healthy_brains_have_next_to_no_load() -> None:
    images, truth = cohort("plain")
    assert measure_lesions(images[truth == 0], AFFINE).max() < 0.5 < truth[truth > 0].min()


def test_gain_and_receive_field_do_not_matter() -> None:
    images, truth = cohort("plain")
    some = images[truth > 5][:4]
    slope = np.linspace(0.85, 1.15, 32, dtype=np.float32)[:, None, None]
    plain, loud, uneven = (measure_lesions(i, AFFINE) for i in (some, 700 * some, slope * some))
    np.testing.assert_allclose(loud, plain, rtol=1e-3)
    np.testing.assert_allclose(uneven, plain, rtol=0.15)


def test_stored_whole_numbers_measure_as_what_they_stand_for() -> None:
    images, truth = cohort("plain")
    some = np.round(60 * images[truth > 5][:3])
    as_stored = measure_lesions(some.astype(np.int16), AFFINE)
    np.testing.assert_array_equal(as_stored, measure_lesions(some, AFFINE))


def test_image_without_a_brain_has_no_load() -> None:
    assert measure_lesions(np.zeros((2, 1, 8, 8, 8), np.float32), AFFINE).tolist() == [0, 0]
    assert measure_lesions(np.zeros((0, 1, 8, 8, 8), np.float32), AFFINE).shape == (0,)


def test_nan_and_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        measure_lesions(np.full((1, 1, 8, 8, 8), np.nan, np.float32), AFFINE)
    with pytest.raises(DataError, match="B, 1, D, H, W"):
        measure_lesions(np.zeros((1, 8, 8, 8), np.float32), AFFINE)
