"""Slice summation finds known volumes in any pose, and refuses what is no ventricle."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.cardiac import (
    biplane_ejection_fraction,
    biplane_volume_ml,
    disk_volume_ml,
    ejection_fraction,
    long_axis,
    volume_curve_ml,
)

SPACING = (0.8, 0.8)


def half_ellipsoid(
    length: float,
    radius: float,
    *,
    turn: float = 0.0,
    spacing: tuple[float, float] = SPACING,
    edge: int = 160,
    at: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """Return a cut through half an ellipsoid of so many millimetres; its volume is known.

    ``at`` is where its middle lies, in pixels beside that of the picture.
    """
    row, column = np.mgrid[:edge, :edge]
    y = (row - edge / 2 - at[0]) * spacing[0]
    x = (column - edge / 2 - at[1]) * spacing[1]
    along = y * math.cos(turn) + x * math.sin(turn) + length / 2
    across = x * math.cos(turn) - y * math.sin(turn)
    inside = (along / length) ** 2 + (across / radius) ** 2 < 1
    return inside & (along > 0)


def volume_ml(length: float, radius: float) -> float:
    return 2 / 3 * math.pi * radius**2 * length / 1000


@pytest.mark.parametrize("turn", [0.0, 0.3, 1.0, 2.0, -0.7])
def test_known_volume_is_found_in_any_pose(turn: float) -> None:
    mask = half_ellipsoid(90, 25, turn=turn)
    assert disk_volume_ml(mask, spacing_mm=SPACING) == pytest.approx(volume_ml(90, 25), rel=0.015)
    # Control: the same mask with larger pixels is a larger heart.
    larger = disk_volume_ml(mask, spacing_mm=(0.9, 0.9))
    assert larger == pytest.approx(volume_ml(90, 25) * (0.9 / 0.8) ** 3, rel=0.015)


def test_pixels_need_not_be_square() -> None:
    spacing = (0.6, 1.0)
    mask = half_ellipsoid(80, 22, turn=0.5, spacing=spacing, edge=200)
    assert disk_volume_ml(mask, spacing_mm=spacing) == pytest.approx(volume_ml(80, 22), rel=0.02)


@pytest.mark.parametrize("asked", [0.2, 0.4, 0.6, 0.75])
def test_known_fraction_is_found_though_the_heart_turns(asked: float) -> None:
    scale = (1 - asked) ** (1 / 3)
    ed = half_ellipsoid(90, 25, turn=0.1)
    es = half_ellipsoid(90 * scale, 25 * scale, turn=0.25)
    found = ejection_fraction(ed, es, spacing_mm=SPACING)
    assert found == pytest.approx(asked, abs=0.01)
    assert ejection_fraction(es, ed, spacing_mm=SPACING) < 0  # the wrong way round
    assert ejection_fraction(ed, ed, spacing_mm=SPACING) == 0


def test_two_planes_measure_an_oval_heart_where_one_fails() -> None:
    wide, narrow = half_ellipsoid(90, 30), half_ellipsoid(90, 20, turn=0.4)
    spacings = (SPACING, SPACING)
    truth = 2 / 3 * math.pi * 30 * 20 * 90 / 1000
    both = biplane_volume_ml((wide, narrow), spacings_mm=spacings)
    assert both == pytest.approx(truth, rel=0.02)
    assert disk_volume_ml(wide, spacing_mm=SPACING) > 1.4 * truth  # control: one plane
    small = (half_ellipsoid(81, 24), half_ellipsoid(81, 16, turn=0.4))
    found = biplane_ejection_fraction((wide, narrow), small, spacings_mm=spacings)
    assert found == pytest.approx(1 - 0.9 * 0.8**2, abs=0.01)


def test_two_equal_planes_are_one_plane() -> None:
    for turn in np.linspace(0, 3, 9):
        mask = half_ellipsoid(51, 15, turn=turn, spacing=(1.6, 1.6), edge=80)
        spacing = (1.6, 1.6)
        twice = biplane_volume_ml((mask, mask), spacings_mm=(spacing, spacing))
        assert twice == pytest.approx(disk_volume_ml(mask, spacing_mm=spacing), rel=1e-6)


def test_fraction_of_small_hearts_in_any_pose_is_right_on_average() -> None:
    """Pixels of 1.6 mm, as a heart has in a picture of 112 by 112."""
    spacing, errors = (1.6, 1.6), {"one": [], "two": []}
    rng = np.random.Generator(np.random.PCG64(8))
    for _ in range(80):
        length, radii = rng.uniform(75, 95), rng.uniform(19, 26, 2)
        asked = rng.uniform(0.2, 0.75)
        scale = (1 - asked) ** (1 / 3)
        turns, at = rng.uniform(-1.6, 1.6, 2), rng.uniform(-0.5, 0.5, (2, 2, 2))
        planes = [
            [
                half_ellipsoid(k * length, k * r, turn=t, spacing=spacing, edge=112, at=a)
                for r, t, a in zip(radii, turns, ats, strict=True)
            ]
            for k, ats in zip((1.0, scale), at, strict=True)
        ]
        (first_ed, second_ed), (first_es, second_es) = planes
        one = ejection_fraction(first_ed, first_es, spacing_mm=spacing)
        pair = (first_ed, second_ed), (first_es, second_es)
        two = biplane_ejection_fraction(*pair, spacings_mm=(spacing, spacing))
        errors["one"].append(one - asked)
        errors["two"].append(two - asked)
    for error in errors.values():
        assert abs(np.mean(error)) <= 0.0015
    one, two = (np.abs(errors[name]) for name in ("one", "two"))
    assert max(one.max(), two.max()) <= 0.015
    assert two.mean() < one.mean() <= 0.004  # what the pixels lack is less in two planes


def test_second_plane_may_show_the_ventricle_upside_down() -> None:
    first = half_ellipsoid(90, 30, turn=0.1)
    second = half_ellipsoid(90, 25, turn=-0.2)
    spacings = (SPACING, SPACING)
    upright = biplane_volume_ml((first, second), spacings_mm=spacings)
    for turned in (second[::-1], second[::-1, ::-1], second[:, ::-1]):
        found = biplane_volume_ml((first, np.ascontiguousarray(turned)), spacings_mm=spacings)
        assert found == pytest.approx(upright, rel=0.005)


def test_crumbs_beside_the_ventricle_do_not_count() -> None:
    mask = half_ellipsoid(90, 25)
    crumbs = mask.copy()
    crumbs[:4, :3] = True
    crumbs[150:154, 150:154] = True
    clean, crumbled = (disk_volume_ml(m, spacing_mm=SPACING) for m in (mask, crumbs))
    assert crumbled == clean


def test_axis_is_found_without_being_told() -> None:
    _, axis = long_axis(half_ellipsoid(90, 25, turn=0.4), spacing_mm=SPACING)
    assert axis @ [math.cos(0.4), math.sin(0.4)] == pytest.approx(1, abs=0.002)
    assert np.linalg.norm(axis) == pytest.approx(1)


def test_curve_is_largest_and_smallest_where_the_heart_is() -> None:
    sizes = [1.0, 0.9, 0.8, 0.85, 0.97]
    masks = np.stack([half_ellipsoid(90 * size, 25 * size) for size in sizes])
    curve = volume_curve_ml(masks, spacing_mm=SPACING)
    assert (curve.argmax(), curve.argmin()) == (0, 2)
    np.testing.assert_allclose(curve / curve[0], np.power(sizes, 3), atol=0.02)


def test_mask_that_shows_nothing_has_no_volume() -> None:
    with pytest.raises(DataError, match="shows no ventricle"):
        disk_volume_ml(np.zeros((32, 32), dtype=bool), spacing_mm=(1.0, 1.0))
