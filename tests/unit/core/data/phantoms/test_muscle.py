"""A sweep tells where the probe is and how much muscle is left; sessions differ, the leg stays."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from vitrael.core.data.phantoms.muscle import (
    MuscleSession,
    SweepTruth,
    draw_leg,
    draw_session,
    render_sweep,
)
from vitrael.core.data.planar import Clip
from vitrael.core.errors import DataError
from vitrael.core.metrics.muscle import cross_section_mm2
from vitrael.core.rng import stream

LEGS = 8
EDGE_PX = 80
POSITIONS = np.linspace(0, 1, 9)


@cache
def sweep(number: int, visit: int) -> tuple[Clip, SweepTruth]:
    return render_sweep(
        draw_leg(stream(41, "leg", number)),
        draw_session(stream(41, "session", number, visit), first=visit == 0),
        position_T=POSITIONS,
        edge_px=EDGE_PX,
        rng=stream(41, "speckle", number, visit),
    )


def areas(truth: SweepTruth) -> np.ndarray:
    return np.array([cross_section_mm2(m, spacing_mm=truth.spacing_mm) for m in truth.mask_THW])


def still() -> MuscleSession:
    """Return a first session without tilt, shift or pressure."""
    return MuscleSession(0.0, gain_db=0.0, tilt_rad=0.0, shift_mm=0.0, pressure=1.0)


def test_area_measured_from_the_mask_is_the_true_one() -> None:
    for number in range(LEGS):
        for visit in (0, 1):
            truth = sweep(number, visit)[1]
            np.testing.assert_allclose(areas(truth), truth.area_T_mm2, rtol=0.02)
    others = areas(sweep(1, 0)[1])  # control
    assert np.abs(others / sweep(0, 0)[1].area_T_mm2 - 1).max() > 0.05


def test_loss_of_muscle_is_measured_between_sessions() -> None:
    for number in range(LEGS):
        first, later = sweep(number, 0)[1], sweep(number, 1)[1]
        assert first.atrophy_frac == 0
        assert 0.05 <= later.atrophy_frac <= 0.20
        lost = 1 - areas(later) / areas(first)
        np.testing.assert_allclose(lost, later.atrophy_frac, atol=0.025)
    session = draw_session(stream(41, "session", 0, 1), first=True)
    assert session.atrophy_frac == 0


def test_position_changes_the_picture_smoothly_and_always() -> None:
    for number in range(LEGS):
        truth = sweep(number, 0)[1]
        growth = np.diff(truth.area_T_mm2)
        assert (growth > 0).all()
        assert growth.max() < 0.12 * truth.area_T_mm2.mean()
        rows = np.array([ndimage.center_of_mass(mask)[0] for mask in truth.mask_THW])
        assert np.ptp(rows) * truth.spacing_mm[0] > 1


def test_muscle_lies_in_the_picture_with_room_around() -> None:
    for number in range(40):
        leg = draw_leg(stream(42, number))
        session = draw_session(stream(42, "session", number), first=True)
        _, truth = render_sweep(
            leg, session, position_T=np.array([0.0, 1.0]), edge_px=32, rng=stream(42, "s")
        )
        for side in (truth.mask_THW[:, 0], truth.mask_THW[:, -1]):
            assert not side.any()
        for side in (truth.mask_THW[:, :, 0], truth.mask_THW[:, :, -1]):
            assert not side.any()


def test_muscle_is_darker_than_its_border_and_bone_shines_over_its_shadow() -> None:
    for number in range(LEGS):
        clip, truth = sweep(number, 0)
        for frame, mask in zip(clip.frames_THW.astype(float), truth.mask_THW, strict=True):
            edge = ndimage.binary_dilation(mask) ^ ndimage.binary_erosion(mask)
            inner = ndimage.binary_erosion(mask, iterations=3)
            assert frame[edge].mean() > frame[inner].mean()
            rows, columns = np.nonzero(mask)
            below = frame[rows.max() + 2 :, int(columns.mean())]
            soft = ndimage.uniform_filter(frame, 3)[rows.max() + 2 :, int(columns.mean())]
            assert soft.argmax() < len(soft) - 3
            assert below[-4:].mean() < 0.4 * soft.max()


def test_same_place_looks_alike_in_another_session_and_another_place_does_not() -> None:
    blurred = {
        (number, visit): ndimage.gaussian_filter(
            sweep(number, visit)[0].frames_THW.astype(float), (0, 2, 2)
        ).reshape(len(POSITIONS), -1)
        for number in range(LEGS)
        for visit in (0, 1)
    }
    own, others = [], []
    for number in range(LEGS):
        for other in range(LEGS):
            likeness = np.corrcoef(blurred[number, 0], blurred[other, 1])
            corner = likeness[: len(POSITIONS), len(POSITIONS) :]
            (own if other == number else others).append(float(np.diag(corner).mean()))
    assert np.mean(own) > np.mean(others) + 0.05


def test_resting_probe_shows_the_same_speckle_and_a_moving_one_does_not() -> None:
    clip, truth = render_sweep(
        draw_leg(stream(41, "leg", 0)),
        still(),
        position_T=np.array([0.5, 0.5, 0.52]),
        edge_px=EDGE_PX,
        rng=stream(41, "rest"),
    )
    inner = ndimage.binary_erosion(truth.mask_THW[0], iterations=3)
    fine = [
        (frame - ndimage.gaussian_filter(frame, 3))[inner]
        for frame in clip.frames_THW.astype(float)
    ]
    rests = np.corrcoef(fine[0], fine[1])[0, 1]
    assert rests > 0.4
    assert np.corrcoef(fine[0], fine[2])[0, 1] < rests - 0.1


def test_pressure_flattens_the_muscle_and_keeps_its_area() -> None:
    leg = draw_leg(stream(41, "leg", 2))
    shapes = [
        render_sweep(
            leg,
            replace(still(), pressure=pressure),
            position_T=np.array([0.5]),
            edge_px=EDGE_PX,
            rng=stream(41, "press"),
        )[1]
        for pressure in (1.0, 0.9)
    ]
    heights = [np.ptp(np.nonzero(truth.mask_THW[0])[0]) for truth in shapes]
    assert heights[1] < heights[0]
    assert shapes[1].area_T_mm2 == pytest.approx(shapes[0].area_T_mm2)


def test_equal_streams_give_equal_sweeps_that_show_nothing() -> None:
    leg, same, other = (draw_leg(stream(seed, "leg")) for seed in (1, 1, 2))
    assert leg == same != other
    assert repr(leg) == "Leg()"
    clips = [
        render_sweep(leg, still(), position_T=np.array([0.3]), edge_px=32, rng=stream(s))[0]
        for s in (1, 1, 2)
    ]
    assert np.array_equal(clips[0].frames_THW, clips[1].frames_THW)
    assert not np.array_equal(clips[0].frames_THW, clips[2].frames_THW)


@pytest.mark.parametrize("positions", [[], [-0.1], [0.5, 1.2], [float("nan")]])
def test_probe_off_the_thigh_is_refused(positions: list[float]) -> None:
    with pytest.raises(DataError):
        render_sweep(
            draw_leg(stream(1)),
            still(),
            position_T=np.array(positions),
            edge_px=32,
            rng=stream(1),
        )
