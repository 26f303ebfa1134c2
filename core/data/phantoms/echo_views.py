"""Where the probe stands for each view, and where the ventricle's landmarks fall in its plane.

A view is a plane through the one heart: all labels of all views agree. The plane's axes are
*across* (to the right of the picture) and *beam* (downward), as in the sector's plane.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from vitrael.core.data.phantoms.heart import HeartState
from vitrael.core.data.phantoms.heart_field import straighten

LANDMARKS = (
    *("basal-left", "mid-left", "apical-left", "apex"),
    *("apical-right", "mid-right", "basal-right"),
)
"""Along the open contour of the cavity, left and right as the picture shows them."""
_HEIGHTS = (1.0, 0.66, 0.33)
_APEX_STEPS = 400
_BELOW_MM = 14.0


@dataclass(frozen=True, slots=True)
class Pose:
    """A plane in the heart frame: where the beams meet, and two unit vectors."""

    origin_mm: np.ndarray
    beam: np.ndarray
    across: np.ndarray


@dataclass(frozen=True, slots=True)
class View:
    """One line of the table."""

    place: Callable[[HeartState, float], Pose]
    """The pose at end-diastole, from the gap between the beams' origin and the heart."""
    depth_frac: float
    """Of the depth of an apical view."""
    long_axis: bool
    """The plane holds apex and mitral ring, and so has landmarks."""


def aim(
    pose: Pose, *, tilt_rad: float, steer_rad: float, turn_rad: float, shift_mm: tuple[float, float]
) -> Pose:
    """Return the pose of a probe that is shifted over the skin and held differently.

    ``shift_mm``: across and out of the plane. ``tilt_rad`` moves the beam out of the plane (it
    foreshortens), ``steer_rad`` within it, ``turn_rad`` turns the plane about the beam.
    """
    normal = np.cross(pose.beam, pose.across)
    origin = pose.origin_mm + shift_mm[0] * pose.across + shift_mm[1] * normal
    across = pose.across * math.cos(turn_rad) + normal * math.sin(turn_rad)
    normal = np.cross(pose.beam, across)
    beam = pose.beam * math.cos(tilt_rad) + normal * math.sin(tilt_rad)
    c, s = math.cos(steer_rad), math.sin(steer_rad)
    return Pose(origin, beam * c + across * s, across * c - beam * s)


def to_heart(pose: Pose, plane_2N_mm: np.ndarray) -> np.ndarray:
    """Return points of the plane in the heart frame, ``[3, N]`` float32."""
    axes_32 = np.stack([pose.across, pose.beam], axis=1).astype(np.float32)
    offset_31 = pose.origin_mm.astype(np.float32)[:, None]
    return np.asarray(axes_32 @ plane_2N_mm.reshape(2, -1) + offset_31)


def least_depth_mm(pose: Pose, state: HeartState) -> float:
    """Return how deep a picture must reach to show the whole ventricle."""
    ends = np.array([[0.0, 0.0, state.apex_mm], [0.0, 0.0, state.base_mm]])
    along = float(((ends - pose.origin_mm) @ pose.beam).max())
    return along + state.radius_mm * float(np.linalg.norm(pose.beam[:2])) + _BELOW_MM


def find_landmarks(state: HeartState, pose: Pose) -> np.ndarray:
    """Return across and depth of the seven landmarks, ``[2, 7]`` mm, of a long-axis view.

    The basal pair lies on the mitral ring, the next ones at two thirds and one third of the
    cavity's height, the apex where the cavity ends in this plane.
    """
    normal = np.cross(pose.beam, pose.across)
    rising = np.array([0.0, 0.0, 1.0]) - normal[2] * normal
    rising /= rising @ rising
    level = np.cross(normal, rising)
    level /= np.linalg.norm(level)
    if level @ (pose.across + 1e-3 * pose.beam) < 0:
        level = -level
    t = np.concatenate([_HEIGHTS, np.linspace(0, 0.5, _APEX_STEPS)])
    z = state.apex_mm + t * state.length_mm
    start_N3 = pose.origin_mm + (z - pose.origin_mm[2])[:, None] * rising
    middle, half2 = _chord(state, start_N3, level, t)
    inside = len(_HEIGHTS) + int(np.argmax(half2[len(_HEIGHTS) :] > 0))
    half = np.sqrt(np.maximum(half2[: len(_HEIGHTS)], 0))
    reach = middle[: len(_HEIGHTS)]
    left = start_N3[: len(_HEIGHTS)] + (reach - half)[:, None] * level
    right = start_N3[: len(_HEIGHTS)] + (reach + half)[:, None] * level
    apex = start_N3[inside] + middle[inside] * level
    points_73 = np.concatenate([left, apex[None], right[::-1]]) - pose.origin_mm
    return np.stack([points_73 @ pose.across, points_73 @ pose.beam])


def _chord(
    state: HeartState, start_N3: np.ndarray, level: np.ndarray, t_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return middle and squared half length of the chords of the cavity along level lines."""
    heart = state.heart
    u0, v0 = straighten(state, start_N3.T)
    u1, v1 = straighten(state, (start_N3 + level).T)
    du, dv = u1 - u0, v1 - v0
    tau = np.abs(t_N - heart.belly_frac) / heart.belly_frac
    radius2 = state.radius_mm**2 * (1 - tau**heart.roundness)
    a, b = du * du + dv * dv, u0 * du + v0 * dv
    middle = -b / a
    return middle, (radius2 - (u0 * u0 + v0 * v0)) / a + middle * middle


def _direction(angle_deg: float) -> np.ndarray:
    angle = math.radians(angle_deg)
    return np.array([math.cos(angle), math.sin(angle), 0.0])


_UP = np.array([0.0, 0.0, 1.0])


def _apical(
    state: HeartState,
    gap_mm: float,
    *,
    right_deg: float,
    lift_rad: float = 0.0,
    lean_rad: float = 0.0,
) -> Pose:
    """From below the apex.

    ``lift_rad`` leans the plane towards the aorta, ``lean_rad`` the heart to the picture's right.
    """
    del state
    across = _direction(right_deg)
    beam = _UP * math.cos(lift_rad) - np.cross(_UP, across) * math.sin(lift_rad)
    c, s = math.cos(lean_rad), math.sin(lean_rad)
    beam, across = beam * c - across * s, across * c + beam * s
    return Pose(-gap_mm * beam, beam, across)


def _parasternal_long(state: HeartState, gap_mm: float) -> Pose:
    front = _direction(60)
    away = state.radius_mm + state.wall_mm + 0.72 * state.heart.right_mm[0] + gap_mm
    return Pose(front * away + 0.80 * state.base_mm * _UP, -front, _UP)


def _parasternal_short(state: HeartState, gap_mm: float, *, height_frac: float) -> Pose:
    front = _direction(75)
    away = state.radius_mm + state.wall_mm + 0.55 * state.heart.right_mm[0] + gap_mm
    height = state.apex_mm + height_frac * state.length_mm
    return Pose(front * away + height * _UP, -front, _direction(165))


def _subcostal(state: HeartState, gap_mm: float) -> Pose:
    lean = math.radians(20)
    beam = np.array([-math.cos(lean), 0.0, math.sin(lean)])
    away = state.radius_mm + state.wall_mm + state.heart.right_mm[0] + gap_mm
    aimed = np.array([0.0, 0.0, 0.75 * state.base_mm])
    across = np.array([-math.sin(lean), 0.0, -math.cos(lean)])
    return Pose(aimed - beam * away, beam, across)


VIEWS: Mapping[str, View] = {
    "A4C": View(partial(_apical, right_deg=180, lean_rad=0.09), 1.0, long_axis=True),
    "A2C": View(partial(_apical, right_deg=120), 1.0, long_axis=True),
    "A3C": View(partial(_apical, right_deg=60), 1.0, long_axis=True),
    "A5C": View(partial(_apical, right_deg=180, lift_rad=0.16), 1.0, long_axis=True),
    "PLAX": View(_parasternal_long, 0.86, long_axis=True),
    "PSAX": View(partial(_parasternal_short, height_frac=0.50), 0.78, long_axis=False),
    "PSAX-MV": View(partial(_parasternal_short, height_frac=0.70), 0.78, long_axis=False),
    "PSAX-AP": View(partial(_parasternal_short, height_frac=0.22), 0.70, long_axis=False),
    "SC4C": View(_subcostal, 1.0, long_axis=True),
}
"""Apical four, two, three and five chambers; parasternal long axis; short axis at the papillary
muscles, the mitral valve and the apex; subcostal four chambers."""
