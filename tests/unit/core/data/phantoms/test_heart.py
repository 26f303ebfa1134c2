"""A heart's volumes are exact at every phase; wall, tissue and chambers hang together."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from vitrael.core.data.phantoms.heart import (
    END_SYSTOLE,
    Heart,
    Population,
    contraction_at,
    draw_heart,
    revisit_heart,
    shape_heart,
)
from vitrael.core.data.phantoms.heart_field import (
    AORTA,
    CAVITY,
    LEFT_ATRIUM,
    MYOCARDIUM,
    OUTSIDE,
    RIGHT_ATRIUM,
    RIGHT_VENTRICLE,
    fill_volume,
    label_points,
    measure_points,
    trace_tissue,
)
from vitrael.core.geometry import voxel_volume_ml
from vitrael.core.rng import stream

HEARTS = 5
EDGE_VOX = 96


@cache
def hearts() -> tuple[Heart, ...]:
    return tuple(draw_heart(stream(5, "heart", number)) for number in range(HEARTS))


@cache
def counted_ml(number: int, phase: float) -> dict[int, float]:
    """Return the volume of each label, counted in voxels."""
    labels, affine = fill_volume(hearts()[number], phase=phase, edge_vox=EDGE_VOX)
    counts = np.bincount(labels.ravel(), minlength=8)
    return {label: float(count * voxel_volume_ml(affine)) for label, count in enumerate(counts)}


def test_voxels_hold_the_volume_that_was_asked_for() -> None:
    for number, heart in enumerate(hearts()):
        for phase in (0.0, 0.2, END_SYSTOLE, 0.7):
            asked = heart.edv_ml * (1 - heart.ef_frac * contraction_at(phase))
            assert shape_heart(heart, phase).volume_ml == pytest.approx(asked)
            assert counted_ml(number, phase)[CAVITY] == pytest.approx(asked, rel=0.02)
        # Control: another fraction would be seen.
        weaker = shape_heart(replace(heart, ef_frac=heart.ef_frac - 0.05), END_SYSTOLE)
        counted = counted_ml(number, END_SYSTOLE)[CAVITY]
        assert counted != pytest.approx(weaker.volume_ml, rel=0.02)


def test_wall_keeps_its_volume_and_thickens() -> None:
    for number, heart in enumerate(hearts()):
        diastole, systole = (counted_ml(number, phase) for phase in (0.0, END_SYSTOLE))
        assert systole[MYOCARDIUM] == pytest.approx(diastole[MYOCARDIUM], rel=0.02)
        assert systole[CAVITY] < 0.8 * diastole[CAVITY]  # control: the cavity does not keep its own
        assert shape_heart(heart, END_SYSTOLE).wall_mm > 1.15 * heart.wall_mm


def test_base_descends_and_apex_stays() -> None:
    for heart in hearts():
        rest, systole = shape_heart(heart, 0.0), shape_heart(heart, END_SYSTOLE)
        assert rest.base_mm - systole.base_mm > 6
        assert rest.tricuspid_mm - systole.tricuspid_mm > 4
        tip = np.array([[0.0] * 41, [0.0] * 41, np.linspace(-2, 2, 41)], np.float32)
        for state in (rest, systole):  # the outer border crosses the axis at z = 0
            border = np.abs(measure_points(state, tip).epicardium).argmin()
            assert abs(float(tip[2, border])) <= 0.2


def test_beat_starts_full_empties_once_and_closes() -> None:
    phases = np.linspace(0, 1, 2001)
    curve = np.array([contraction_at(phase) for phase in phases])
    assert curve[0] == curve[-1] == 0
    assert curve.max() == pytest.approx(1)
    assert phases[curve.argmax()] == pytest.approx(END_SYSTOLE, abs=1e-3)
    assert np.abs(np.diff(curve)).max() < 0.01  # no jump
    still = (phases > 0.65) & (phases < 0.84)
    assert np.ptp(curve[still]) == 0  # the heart rests before the atria contract


def test_every_chamber_is_there_and_none_overlaps() -> None:
    for number in range(HEARTS):
        volume = counted_ml(number, 0.0)
        assert 30 < volume[LEFT_ATRIUM] < 160
        assert 25 < volume[RIGHT_ATRIUM] < 200
        assert 60 < volume[RIGHT_VENTRICLE] < 330
        assert 15 < volume[AORTA] < 90
        systole = counted_ml(number, END_SYSTOLE)
        assert systole[RIGHT_VENTRICLE] < 0.9 * volume[RIGHT_VENTRICLE]
        assert systole[LEFT_ATRIUM] > volume[LEFT_ATRIUM]  # it fills while the ventricle empties


def test_right_ventricle_lies_on_the_side_of_the_septum_alone() -> None:
    for number in range(12):
        thick = Population(dilated_frac=0.0, hypertrophic_frac=1.0)  # their base is the narrowest
        heart = draw_heart(stream(3, "thick", number), population=thick)
        labels, affine = fill_volume(heart, phase=0.0, edge_vox=48)
        septal = np.array([np.cos(np.pi / 6), np.sin(np.pi / 6), 0.0])
        aside = {
            label: (np.argwhere(labels == label) @ affine[:3, :3].T + affine[:3, 3]) @ septal
            for label in (RIGHT_VENTRICLE, CAVITY)
        }
        assert aside[RIGHT_VENTRICLE].min() > 0
        assert (aside[CAVITY] < 0).mean() > 0.3  # control: the left one lies on both sides


def test_volume_is_the_same_heart_at_any_resolution() -> None:
    coarse, coarse_affine = fill_volume(hearts()[0], phase=0.1, edge_vox=24)
    fine, fine_affine = fill_volume(hearts()[0], phase=0.1, edge_vox=EDGE_VOX)
    assert coarse.dtype == np.uint8
    assert coarse.shape == (24, 24, 24)
    index = np.indices(coarse.shape).reshape(3, -1)
    world = coarse_affine[:3, :3] @ index + coarse_affine[:3, 3:]
    near = np.linalg.solve(fine_affine[:3, :3], world - fine_affine[:3, 3:]).round().astype(int)
    near = near.clip(0, EDGE_VOX - 1)
    alike = coarse.ravel() == fine[tuple(near)]
    assert alike.mean() > 0.97
    shifted = coarse.ravel() == fine[tuple((near + 6).clip(0, EDGE_VOX - 1))]
    assert shifted.mean() < alike.mean() - 0.1  # control
    for axis in range(3):  # nothing but the aorta, which leads on, is cut off
        for side in (0, -1):
            assert set(np.unique(fine.take(side, axis=axis))) <= {OUTSIDE, AORTA}


def test_distances_are_millimetres_near_a_border() -> None:
    state = shape_heart(hearts()[1], 0.15)
    points = stream(5, "points").uniform(-70, 70, (3, 20_000)).astype(np.float32)
    points[2] += 70
    moved = points + np.array([[0.0], [0.0], [0.5]], np.float32)
    for name in ("cavity", "epicardium", "left_atrium", "right_atrium", "aorta"):
        here, there = (getattr(measure_points(state, at), name) for at in (points, moved))
        close = np.abs(here) < 3
        assert close.sum() > 30
        assert np.abs(there - here)[close].max() < 0.75  # at most half a millimetre and a bit


def test_tissue_is_traced_back_to_where_it_was() -> None:
    rng = stream(5, "tissue")
    for heart in hearts():
        rest, systole = shape_heart(heart, 0.0), shape_heart(heart, END_SYSTOLE)
        points = rng.uniform(-45, 45, (3, 60_000)).astype(np.float32)
        points[2] += 45
        now = measure_points(systole, points)
        border = (np.abs(now.cavity) < 0.4) & (points[2] < systole.base_mm - 4)
        border &= points[2] > systole.apex_mm + 8  # the map is a rounder heart's near the tip
        before = np.stack(trace_tissue(systole, points, now.epicardium))[:, border]
        left = np.abs(measure_points(rest, before).cavity)
        assert border.sum() > 100
        assert np.median(left) < 1.5
        stayed = np.abs(measure_points(rest, points[:, border]).cavity)
        assert np.median(stayed) > 2 * np.median(left)  # control: tissue that would not move
        same = np.stack(trace_tissue(rest, points, measure_points(rest, points).epicardium))
        np.testing.assert_allclose(same, points, atol=1e-3)


def test_population_decides_whom_a_site_sees() -> None:
    well = Population(ef_mean=0.62, ef_sd=0.05, dilated_frac=0.0, hypertrophic_frac=0.0)
    ill = replace(well, ef_mean=0.42, dilated_frac=0.5, hypertrophic_frac=0.5)
    drawn = {
        name: [draw_heart(stream(6, number), population=who) for number in range(200)]
        for name, who in (("well", well), ("ill", ill))
    }
    ef = {name: np.mean([heart.ef_frac for heart in group]) for name, group in drawn.items()}
    assert ef["well"] == pytest.approx(0.62, abs=0.02)
    assert ef["ill"] < 0.40
    assert np.std([heart.edv_ml for heart in drawn["ill"]]) > 1.5 * np.std(
        [heart.edv_ml for heart in drawn["well"]]
    )
    assert max(heart.wall_mm for heart in drawn["ill"]) > 12
    # One patient under another population keeps what the population does not decide.
    assert drawn["well"][0].atria_mm == drawn["ill"][0].atria_mm


def test_visit_changes_the_pump_a_little_and_the_anatomy_not_at_all() -> None:
    for number, heart in enumerate(hearts()):
        later = revisit_heart(heart, stream(7, "visit", number))
        assert later.ef_frac != heart.ef_frac
        assert later.ef_frac == pytest.approx(heart.ef_frac, abs=0.08)
        assert later.edv_ml == pytest.approx(heart.edv_ml, rel=0.12)
        for name in ("belly_frac", "roundness", "oval", "right_mm", "atria_mm", "root_mm"):
            assert getattr(later, name) == getattr(heart, name)


def test_equal_streams_give_equal_hearts_that_show_nothing() -> None:
    one, same, other = (draw_heart(stream(seed, "heart")) for seed in (1, 1, 2))
    assert one == same != other
    assert repr(one) == "Heart()"


def test_point_far_away_is_background() -> None:
    far = np.array([[500.0], [0.0], [0.0]], np.float32)
    assert label_points(measure_points(shape_heart(hearts()[0], 0.0), far)) == [2]
