"""Masks grow and shrink by millimetres, and the border of the image is a surface."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from vitrael.core.data.morphology import (
    box_of,
    close_mask,
    dilate_mask,
    dilate_steps,
    erode_mask,
    erode_steps,
    fill_holes,
    largest_piece,
    middle_of,
    open_mask,
    what_is_marked,
)
from vitrael.core.rng import stream


def ball(radius: float, size: int = 41) -> np.ndarray:
    index = np.indices((size,) * 3) - size // 2
    return np.asarray((index**2).sum(axis=0) <= radius**2)


def test_ball_grows_and_shrinks_by_millimeters() -> None:
    radius_mm = 2.0 * 10
    grown = dilate_mask(ball(10), 8.0, voxel_mm=2.0)
    shrunk = erode_mask(ball(10), 8.0, voxel_mm=2.0)
    for mask, wanted_mm in ((grown, radius_mm + 8), (shrunk, radius_mm - 8)):
        told_mm = 2.0 * (mask.sum() * 3 / (4 * np.pi)) ** (1 / 3)
        assert told_mm == pytest.approx(wanted_mm, abs=1.0)


def test_closing_fills_gaps_and_opening_takes_spurs() -> None:
    gap = ball(12)
    gap[20] = False
    gap[15, 20, 20] = False
    closed = close_mask(gap, 4.0, voxel_mm=2.0)
    assert closed[20, 20, 20]
    assert closed[15, 20, 20]
    spur = ball(8)
    spur[20, 20, :] = True
    opened = open_mask(spur, 4.0, voxel_mm=2.0)
    assert not opened[20, 20, 3]
    assert opened[20, 20, 20]
    assert not (opened & ~spur).any()


def test_closing_does_not_erode_at_the_border() -> None:
    half = np.zeros((12, 12, 12), dtype=bool)
    half[:6] = True
    assert close_mask(half, 6.0, voxel_mm=2.0)[:6].all()


def blobs(seed: int) -> np.ndarray:
    """Return pieces of any form, some of them hollow, some of them at the border."""
    noise = stream(seed, "blobs").normal(size=(40, 34, 29))
    return np.asarray(ndimage.gaussian_filter(noise, 1.2) > -0.1)


@pytest.mark.parametrize("voxel_mm", [1.0, 1.7, 2.0, 3.0])
@pytest.mark.parametrize("reach_mm", [1.0, 2.5, 4.2, 8.0, 12.0, 15.0])
def test_distances_are_the_exact_ones(reach_mm: float, voxel_mm: float) -> None:
    mask = blobs(1)
    away_mm = ndimage.distance_transform_edt(~mask) * voxel_mm
    deep_mm = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1] * voxel_mm
    grown = dilate_mask(mask, reach_mm, voxel_mm=voxel_mm)
    shrunk = erode_mask(mask, reach_mm, voxel_mm=voxel_mm)
    assert np.array_equal(grown, away_mm <= reach_mm)
    assert np.array_equal(shrunk, deep_mm > reach_mm)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_steps_are_those_of_the_six_neighbors(steps: int) -> None:
    mask = dilate_steps(blobs(2), 2)
    grown, shrunk = dilate_steps(mask, steps), erode_steps(mask, steps)
    assert np.array_equal(grown, ndimage.binary_dilation(mask, iterations=steps))
    assert np.array_equal(shrunk, ndimage.binary_erosion(mask, iterations=steps))
    assert not np.array_equal(shrunk, ndimage.binary_erosion(mask, iterations=steps + 1))


def test_hole_is_filled_unless_it_opens_to_the_border() -> None:
    mask = blobs(3)
    filled = fill_holes(mask)
    assert np.array_equal(filled, ndimage.binary_fill_holes(mask))
    assert filled.sum() > mask.sum()
    cup = np.ones((5, 5, 5), dtype=bool)
    cup[2, 2, 2:] = False
    assert np.array_equal(fill_holes(cup), cup)
    cup[2, 2, 4] = True
    assert fill_holes(cup).all()


def test_middle_is_the_mean_place() -> None:
    assert middle_of(blobs(4)) == pytest.approx(ndimage.center_of_mass(blobs(4)))


def test_border_is_a_surface() -> None:
    full = np.ones((9, 9, 9), dtype=bool)
    assert not erode_mask(full, 2.0, voxel_mm=2.0)[0].any()
    assert erode_mask(full, 2.0, voxel_mm=2.0)[1, 4, 4]
    assert not erode_steps(full)[0].any()


def test_empty_mask_stays_empty() -> None:
    empty = np.zeros((5, 5, 5), dtype=bool)
    for change in (erode_mask, dilate_mask, close_mask, open_mask):
        assert not change(empty, 3.0, voxel_mm=2.0).any()
    assert not largest_piece(empty).any()
    assert empty[box_of(empty)].size == 0


def test_largest_piece_is_kept_alone() -> None:
    two = np.zeros((9, 9, 9), dtype=bool)
    two[:2, :2, :2] = True
    two[5:, 5:, 5:] = True
    assert np.array_equal(largest_piece(two), two & (np.arange(9) > 4))


def test_every_label_of_a_mask_is_marked_and_of_shares_what_is_above_half() -> None:
    labels = np.array([0, 1, 2, 4, 0, 4], dtype=np.float32).reshape(1, 2, 3)
    assert what_is_marked(labels).ravel().tolist() == [False, True, True, True, False, True]
    assert what_is_marked(labels * 255).sum() == 4
    shares = np.array([0, 0.2, 0.49, 0.51, 0.9, 1.0], dtype=np.float32).reshape(1, 2, 3)
    assert what_is_marked(shares).ravel().tolist() == [False, False, False, True, True, True]
    resampled = np.arange(256, dtype=np.float32).reshape(4, 8, 8)  # a mask of 255 with soft edges
    assert what_is_marked(resampled).sum() == 128
