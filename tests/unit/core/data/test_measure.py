"""The measurer tells the volumes of brains whose volumes are known, at any voxel size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.phantoms.brain import draw_acquisition, draw_anatomy, render_brain
from vitrael.core.data.preprocess import prepare_brain_t1, prepare_scan
from vitrael.core.data.scan import Scan
from vitrael.core.errors import DataError
from vitrael.core.geometry import centered_affine
from vitrael.core.protocols import Data

MakeBrain = Callable[..., Scan]

GRID = centered_affine((24, 24, 24), spacing=8.0)


def measure(scan: Scan) -> tuple[float, float]:
    ventricle_ml_B, brain_ml_B = measure_volumes(scan.image_CDHW[None], scan.affine)
    return float(ventricle_ml_B[0]), float(brain_ml_B[0])


def test_ventricle_volume_is_monotone_at_eight_millimeters(
    data: Data, make_brain: MakeBrain
) -> None:
    asked = [5, 10, 20, 30, 45, 60, 80, 100, 120]
    told = [measure(prepare_scan(make_brain(ventricle_ml=v), data))[0] for v in asked]
    assert np.all(np.diff(told) > 0)
    assert np.corrcoef(asked, told)[0, 1] > 0.99
    assert told[3] == pytest.approx(30, rel=0.35)


def test_brain_volume_is_right_within_five_percent(data: Data, make_brain: MakeBrain) -> None:
    for brain_ml in (900, 1250, 1650):
        scan = prepare_scan(make_brain(brain_ml=brain_ml), data)
        assert measure(scan)[1] == pytest.approx(brain_ml, rel=0.05)


def test_fine_and_coarse_voxels_agree(make_brain: MakeBrain) -> None:
    fine = make_brain(ventricle_ml=40, shape=(80, 96, 80), spacing=2.0)
    coarse = prepare_brain_t1(fine, (24, 24, 24), 8.0)
    ready = prepare_brain_t1(fine, (80, 96, 80), 2.0)
    assert measure(ready)[0] == pytest.approx(40, rel=0.1)
    assert measure(coarse)[0] == pytest.approx(40, rel=0.4)
    assert measure(ready)[1] == pytest.approx(measure(coarse)[1], rel=0.03)


def test_phantoms_are_ranked_by_their_ventricles_and_noise_does_not_change_that(
    data: Data,
) -> None:
    rng = np.random.Generator(np.random.PCG64(7))
    patients = [draw_anatomy(rng) for _ in range(60)]
    scans = [
        prepare_scan(
            render_brain(p, draw_acquisition(rng), grid_vox=data.grid_vox, spacing_mm=8.0), data
        )
        for p in patients
    ]
    image_BCDHW = np.stack([scan.image_CDHW for scan in scans])
    truth_ml = np.array([p.ventricle_ml for p in patients])
    told_ml, _ = measure_volumes(image_BCDHW, GRID)
    assert np.corrcoef(truth_ml, told_ml)[0, 1] > 0.98
    noisy = np.clip(image_BCDHW + rng.normal(0, 0.05, image_BCDHW.shape), 0, 1)
    noisy_ml, _ = measure_volumes(noisy.astype(np.float32), GRID)
    assert np.corrcoef(truth_ml, noisy_ml)[0, 1] > 0.97
    # Control: what the measurer says belongs to the image, not to the cohort.
    assert abs(np.corrcoef(truth_ml, rng.permutation(told_ml))[0, 1]) < 0.5


def test_batch_gives_what_single_images_give(make_brain: MakeBrain) -> None:
    images = np.stack([make_brain(ventricle_ml=v).image_CDHW for v in (10, 90)])
    together, _ = measure_volumes(images, GRID)
    alone = [measure_volumes(images[i : i + 1], GRID)[0][0] for i in range(2)]
    assert together.tolist() == alone


def test_ventricles_do_not_reach_outside_a_small_or_absent_brain(make_brain: MakeBrain) -> None:
    small = make_brain(ventricle_ml=4, brain_ml=300)
    assert measure(small)[0] < 15
    empty = np.zeros((1, 1, 24, 24, 24), dtype=np.float32)
    ventricle_ml_B, brain_ml_B = measure_volumes(empty, GRID)
    assert (ventricle_ml_B[0], brain_ml_B[0]) == (0, 0)


def test_empty_batch_gives_empty_volumes() -> None:
    ventricle_ml_B, brain_ml_B = measure_volumes(np.zeros((0, 1, 24, 24, 24), np.float32), GRID)
    assert len(ventricle_ml_B) == len(brain_ml_B) == 0


def test_nan_and_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        measure_volumes(np.full((1, 1, 24, 24, 24), np.nan, np.float32), GRID)
    with pytest.raises(DataError, match="B, 1, D, H, W"):
        measure_volumes(np.zeros((1, 24, 24, 24), np.float32), GRID)


def test_real_brains_have_plausible_volumes_at_both_voxel_sizes(
    data: Data, real_scans: Path
) -> None:
    found = sorted(real_scans.glob("*_T1w*.nii.gz"))
    assert len(found) == 37
    pairs = []
    for path in found[::4]:
        scan = read_nifti(path)
        fine = measure(prepare_brain_t1(scan, (96, 112, 96), 2.0))
        coarse = measure(prepare_scan(scan, data))
        assert 900 < fine[1] < 1700
        assert 5 < fine[0] < 120
        pairs.append((fine, coarse))
    fine_N2, coarse_N2 = (np.array(side) for side in zip(*pairs, strict=True))
    assert np.corrcoef(fine_N2[:, 0], coarse_N2[:, 0])[0, 1] > 0.9
    assert np.corrcoef(fine_N2[:, 1], coarse_N2[:, 1])[0, 1] > 0.98
