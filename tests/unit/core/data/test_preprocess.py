"""The recipe brings every scan to the study's grid and keeps each point in its place."""

from __future__ import annotations

from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from vitrael.core.data.preprocess import prepare_scan, resample_volume, scale_intensity
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import centered_affine, spacing_mm
from vitrael.core.study import Data

MakeBrain = Callable[..., Scan]


def centroid_mm(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.asarray(affine @ [*ndimage.center_of_mass(volume), 1])[:3]


def oblique(spacing: tuple[float, float, float], angle_rad: float) -> np.ndarray:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    affine = np.diag([*spacing, 1.0])
    affine[:2, :2] = np.array([[cos, -sin], [sin, cos]]) @ affine[:2, :2]
    affine[:3, 3] = [-70, -90, -80]
    return affine


def test_landmark_keeps_its_world_position_under_resampling() -> None:
    source = oblique((1.5, 2.0, 2.5), 0.3)
    volume = np.zeros((90, 90, 60), dtype=np.float32)
    volume[40:46, 50:54, 30:34] = 1
    target = centered_affine((40, 40, 40), spacing=4.0)
    target[:3, 3] += centroid_mm(volume, source) + np.array([5, -3, 2])
    moved = resample_volume(volume, source, target, shape=(40, 40, 40))
    assert np.allclose(centroid_mm(moved, target), centroid_mm(volume, source), atol=0.5)
    # Control: with an affine that is wrong by one voxel the landmark would be elsewhere.
    target[0, 3] += 4
    assert not np.allclose(centroid_mm(moved, target), centroid_mm(volume, source), atol=0.5)


def test_total_intensity_survives_coarse_sampling() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    source = centered_affine((96, 96, 96), spacing=2.0)
    volume = np.zeros((96, 96, 96), dtype=np.float32)
    volume[20:76, 20:76, 20:76] = rng.uniform(0, 1, (56, 56, 56))
    target = centered_affine((24, 24, 24), spacing=8.0)
    coarse = resample_volume(volume, source, target, shape=(24, 24, 24))
    assert coarse.sum() * 8**3 == pytest.approx(volume.sum() * 2**3, rel=0.02)
    # Control: without the low-pass filter the noise of single voxels stays in the picture.
    assert coarse[8:16, 8:16, 8:16].std() < 0.5 * volume[40:56, 40:56, 40:56].std()


def test_prepared_scan_has_the_grid_of_the_study(data: Data, make_brain: MakeBrain) -> None:
    scan = make_brain(shape=(80, 90, 75), spacing=2.5, centre_mm=(9, -7, 4), gain=900)
    ready = prepare_scan(scan, data)
    assert ready.image_CDHW.shape == (1, *data.grid_vox)
    assert ready.image_CDHW.dtype == np.float32
    assert np.allclose(spacing_mm(ready.affine), data.spacing_mm)
    assert nib.aff2axcodes(ready.affine) == ("R", "A", "S")
    assert (ready.image_CDHW.min(), ready.image_CDHW.max()) == (0, 1)
    middle_mm = ready.affine @ [*((np.array(data.grid_vox) - 1) / 2), 1]
    assert np.allclose(middle_mm[:3], [9, -7, 4], atol=2.5)


def test_orientation_of_the_file_does_not_matter(data: Data, make_brain: MakeBrain) -> None:
    scan = make_brain(shape=(48, 50, 46), spacing=4.0, centre_mm=(6, 0, 3))
    flipped_affine = scan.affine @ np.array(
        [[-1, 0, 0, 47], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    flipped = Scan(scan.image_CDHW[:, ::-1].copy(), flipped_affine, "T1w")
    one, two = prepare_scan(scan, data), prepare_scan(flipped, data)
    assert np.allclose(one.affine, two.affine)
    assert np.allclose(one.image_CDHW, two.image_CDHW, atol=1e-5)
    mirrored = prepare_scan(Scan(flipped.image_CDHW, scan.affine, "T1w"), data)
    assert not np.allclose(one.affine, mirrored.affine)  # control: a wrong affine does matter


def test_gain_and_offset_of_the_scanner_do_not_matter(data: Data, make_brain: MakeBrain) -> None:
    plain = prepare_scan(make_brain(), data)
    scan = make_brain(gain=1700)
    shifted = Scan(scan.image_CDHW + np.float32(250), scan.affine, "T1w")
    assert np.allclose(plain.image_CDHW, prepare_scan(shifted, data).image_CDHW, atol=1e-3)


def test_scan_on_the_grid_is_neither_moved_nor_resampled(data: Data, make_brain: MakeBrain) -> None:
    scan = make_brain(noise=0.01)
    ready = prepare_scan(scan, data)
    assert np.array_equal(ready.affine, scan.affine)
    kept = (ready.image_CDHW > 0) & (ready.image_CDHW < 1)
    ratio = ready.image_CDHW[kept] / np.maximum(scan.image_CDHW[kept], 1e-6)
    assert np.median(ratio) == pytest.approx(1 / 0.82, rel=0.05)


def test_second_application_keeps_grid_and_intensities(data: Data, make_brain: MakeBrain) -> None:
    once = prepare_scan(make_brain(shape=(60, 70, 60), spacing=3.0, noise=0.02), data)
    twice = prepare_scan(once, data)
    assert np.array_equal(once.affine, twice.affine)
    assert np.abs(once.image_CDHW - twice.image_CDHW).max() <= 0.01


def test_one_hot_voxel_does_not_set_the_scale(data: Data, make_brain: MakeBrain) -> None:
    scan = make_brain()
    hot = scan.image_CDHW.copy()
    hot[0, 12, 12, 12] = 500
    ready = prepare_scan(Scan(hot, scan.affine, "T1w"), data)
    assert np.median(ready.image_CDHW[ready.image_CDHW > 0]) > 0.7


def test_image_without_anything_bright_is_refused() -> None:
    with pytest.raises(ScanError, match="shows no brain"):
        scale_intensity(np.zeros((4, 4, 4), dtype=np.float32))
