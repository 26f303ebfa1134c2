"""Resampling keeps world positions and what is there; the background is what the border shows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from vitrael.core.data.resample import (
    above_background,
    find_foreground,
    percentile_of,
    resample_mask,
    resample_volume,
    support_of,
)
from vitrael.core.errors import ScanError
from vitrael.core.geometry import centered_affine
from vitrael.core.rng import stream


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


def turned(angle_rad: float) -> np.ndarray:
    """Return a turn around the vertical axis."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle_rad), -np.sin(angle_rad)], [np.sin(angle_rad), np.cos(angle_rad)]]
    return turn


@pytest.mark.parametrize("spacing", [0.8, 1.5, 2.0, 5.3])
def test_axis_by_axis_is_the_same_as_all_at_once(spacing: float) -> None:
    volume = stream(2, "volume").random((40, 50, 30), dtype=np.float32)
    volume[:8] = volume[:, 41:] = 0
    source = np.diag([1.5, -1.2, 2.0, 1.0])[:, [2, 0, 1, 3]]
    source[:3, 3] = [-20, 25, -22]
    shape = (round(70 / spacing), round(66 / spacing), round(62 / spacing))
    target = centered_affine(shape, spacing=spacing)
    straight = resample_volume(volume, source, target, shape=shape)
    whole = np.linalg.inv(source) @ target
    sigma = np.maximum(0, (np.abs(whole[:3, :3]).max(axis=1) - 1) / 2)
    smooth = ndimage.gaussian_filter(volume, sigma, mode="constant")
    wanted = ndimage.affine_transform(smooth, whole, output_shape=shape, order=1)
    assert wanted.max() > 0.3
    assert straight.dtype == np.float32
    assert np.abs(straight - wanted).max() < 1e-6
    whole[:3, 3] += 0.1
    shifted = ndimage.affine_transform(smooth, whole, output_shape=shape, order=1)
    assert np.abs(straight - shifted).max() > 0.01  # control: a tenth of a voxel is seen


def test_oblique_axes_are_followed_and_rounding_is_not() -> None:
    volume = stream(3, "volume").random((40, 40, 20), dtype=np.float32)
    source = centered_affine((40, 40, 20), spacing=2.0)
    target = centered_affine((60, 60, 30), spacing=1.4)
    straight, rounded, oblique = (
        resample_volume(volume, turned(angle) @ source, target, shape=(60, 60, 30))
        for angle in (0, 1e-6, 1e-2)
    )
    assert np.abs(straight - rounded)[1:-1, 1:-1, 1:-1].max() < 1e-4
    assert np.abs(straight - oblique).max() > 0.01
    nearly = resample_volume(volume, turned(1e-4) @ source, target, shape=(60, 60, 30))
    assert 1e-4 < np.abs(straight - nearly)[1:-1, 1:-1, 1:-1].max() < 0.01


def test_grid_of_the_source_changes_no_bit() -> None:
    volume = stream(4, "volume").random((9, 8, 7), dtype=np.float32)
    affine = np.diag([0.7, 1.3, 2.1, 1.0])
    affine[:3, 3] = [0.1, -0.2, 0.3]
    assert np.array_equal(resample_volume(volume, affine, affine, shape=(9, 8, 7)), volume)


@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_nothing_comes_of_an_empty_volume_and_of_one_that_lies_elsewhere(angle: float) -> None:
    source, shape = turned(angle) @ centered_affine((9, 9, 9), spacing=2.0), (10, 10, 10)
    target = centered_affine(shape, spacing=2.0)
    volume = np.zeros((9, 9, 9), dtype=np.float32)
    assert not resample_volume(volume, source, target, shape=shape).any()
    volume[4, 4, 4] = 1
    assert resample_volume(volume, source, target, shape=shape).any()
    target[0, 3] += 100
    assert not resample_volume(volume, source, target, shape=shape).any()
    assert not resample_mask(volume > 0, source, target, shape=shape).any()


def test_percentile_is_the_usual_one() -> None:
    values = stream(5, "values").random(1001, dtype=np.float32)
    for percent in (0, 0.5, 37.7, 80, 99, 100):
        assert percentile_of(values, percent) == pytest.approx(np.percentile(values, percent))
    assert percentile_of(values[:1], 99) == values[0]


def test_support_is_the_box_of_what_is_there() -> None:
    volume = np.zeros((6, 7, 8), dtype=np.float32)
    assert volume[support_of(volume)].size == 0
    volume[1, 2, 3], volume[4, 2, 5] = 1, -1
    assert support_of(volume) == (slice(1, 5), slice(2, 3), slice(3, 6))


def test_mask_keeps_its_volume_between_grids() -> None:
    source = centered_affine((60, 60, 60), spacing=2.0)
    index = np.indices((60, 60, 60)) - 29.5
    ball = (index**2).sum(axis=0) < 20**2
    for spacing in (1.5, 3.7):
        shape = (round(120 / spacing),) * 3
        target = centered_affine(shape, spacing=spacing)
        placed = resample_mask(ball, source, target, shape=shape)
        assert placed.dtype == bool
        assert placed.sum() * spacing**3 == pytest.approx(ball.sum() * 2.0**3, rel=0.03)


def test_background_is_what_the_border_shows() -> None:
    volume = np.full((6, 6, 6), 250, dtype=np.float32)
    volume[2:4, 2:4, 2:4] = 900
    volume[0, 0, 0] = 3
    above = above_background(volume)
    assert above.max() == 650
    assert (above > 0).sum() == 8
    assert find_foreground(above).sum() == 8


def test_volume_without_anything_bright_is_refused() -> None:
    with pytest.raises(ScanError, match="shows no brain"):
        find_foreground(np.zeros((4, 4, 4), dtype=np.float32))
