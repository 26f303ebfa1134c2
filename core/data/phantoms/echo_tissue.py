"""How strongly each point of a heart sends the beam back: walls, blood, valves, pericardium.

Amplitudes are relative: 1 is a strong reflector, blood is nearly 0. A wall that the beam meets
head on shines; one along the beam fades, which leaves the lateral wall open as in real pictures.
Axes: R samples in depth, A beams, N = R * A.
"""

from __future__ import annotations

import math

import numpy as np

from vitrael.core.data.phantoms.heart import HeartState
from vitrael.core.data.phantoms.heart_field import Signed, root_coordinates, straighten

BLOOD, MUSCLE, FIBROUS = 0.007, 0.42, 0.40
_AROUND, _FAR = 0.13, 0.012
_WALL_MM, _FADE_MM = 3.2, 13.0
_PAPILLARY_RAD = (math.radians(165), math.radians(290))
_OPENING_PHASE = (0.0, 0.40, 0.48, 0.56, 0.66, 0.84, 0.91, 0.98, 1.0)
_OPENING = (0.0, 0.0, 1.0, 0.85, 0.4, 0.4, 0.85, 0.1, 0.0)
_EJECTION_PHASE = (0.0, 0.04, 0.09, 0.30, 0.40, 1.0)
_EJECTION = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)


def reflect(
    state: HeartState,
    phase: float,
    *,
    points_3N: np.ndarray,
    signed: Signed,
    around_N: np.ndarray,
    shape_RA: tuple[int, int],
    step_mm: float,
) -> np.ndarray:
    """Return the amplitude of each sample, ``[R, A]`` float32.

    ``around_N`` is the uneven brightness of what surrounds the heart, mean 1; ``step_mm`` the way
    between samples of a beam.
    """
    low = state.tricuspid_mm
    hull = np.maximum(signed.epicardium, signed.left_atrium + np.float32(_WALL_MM))
    for chamber in (signed.right_ventricle, signed.right_atrium, signed.aorta):
        hull = np.maximum(hull, chamber + np.float32(_WALL_MM))
    facing_hull = _facing(hull, shape_RA, step_mm)
    near = np.exp(np.minimum(hull, 0) * np.float32(1 / _FADE_MM))
    amplitude = (_FAR + (_AROUND - _FAR) * near) * around_N * around_N
    amplitude = np.where(hull > 0, np.float32(FIBROUS) * (0.22 + 0.78 * facing_hull), amplitude)
    facing = _facing(signed.epicardium, shape_RA, step_mm)
    inside = signed.epicardium > 0
    amplitude = np.where(inside, np.float32(MUSCLE) * (0.4 + 0.7 * facing) * around_N, amplitude)
    blood = np.maximum(
        np.maximum(signed.cavity, signed.left_atrium),
        np.maximum(np.maximum(signed.right_ventricle, signed.right_atrium), signed.aorta),
    )
    amplitude = np.where(blood > 0, np.float32(BLOOD), amplitude)
    # The planes of the valves close the chambers' level functions, but nothing lies there.
    plane_mm = np.minimum(np.abs(points_3N[2] - state.base_mm), np.abs(points_3N[2] - low))
    solid = np.clip(plane_mm * np.float32(0.5) - 1, 0, 1)
    amplitude += 1.0 * facing_hull**2 * _ridge(hull + 1.5, 2.0) * solid
    amplitude += 0.45 * facing**2 * _ridge(signed.cavity, 1.0) * solid
    edge = np.maximum(signed.left_atrium, np.maximum(signed.right_ventricle, signed.aorta))
    amplitude += 0.35 * _facing(edge, shape_RA, step_mm) ** 2 * _ridge(edge, 1.0) * solid
    amplitude = np.maximum(amplitude, _papillary(state, points_3N))
    amplitude = np.maximum(amplitude, _valves(state, phase, points_3N))
    return np.asarray(amplitude, dtype=np.float32).reshape(shape_RA)


def _ridge(distance: np.ndarray, width_mm: float) -> np.ndarray:
    """Return 1 on a surface, falling off to both sides."""
    relative = distance * np.float32(1 / width_mm)
    bell = 1 / (1 + relative * relative)
    return np.asarray(bell * bell)


def _facing(signed_N: np.ndarray, shape_RA: tuple[int, int], step_mm: float) -> np.ndarray:
    """Return the squared cosine between the beam and the normal of a surface, near the surface."""
    field = signed_N.reshape(shape_RA)
    cosine = np.zeros(shape_RA, np.float32)
    cosine[1:-1] = (field[2:] - field[:-2]) * np.float32(0.5 / step_mm)
    return np.asarray(np.minimum(cosine * cosine, 1).ravel())


def _segment(
    place: tuple[np.ndarray, np.ndarray], start: tuple[float, float], end: tuple[float, float]
) -> np.ndarray:
    """Return the distance to a straight piece between two points of a plane."""
    way = (end[0] - start[0], end[1] - start[1])
    px, py = place[0] - start[0], place[1] - start[1]
    part = np.clip((px * way[0] + py * way[1]) * np.float32(1 / (way[0] ** 2 + way[1] ** 2)), 0, 1)
    dx, dy = px - part * way[0], py - part * way[1]
    return np.sqrt(dx * dx + dy * dy)


def _papillary(state: HeartState, points_3N: np.ndarray) -> np.ndarray:
    """Return two muscles that stand on the wall at half height; the cavity's label covers them."""
    u, v = straighten(state, points_3N)
    turn = -state.heart.oval_rad
    z = points_3N[2] - (state.apex_mm + 0.46 * state.length_mm)
    tall = np.abs(z) * np.float32(1 / (0.24 * state.length_mm))
    inner = np.full(u.shape, -1.0, np.float32)
    for angle in _PAPILLARY_RAD:
        du = u - 0.86 * state.radius_mm * math.cos(angle + turn)
        dv = v - 0.86 * state.radius_mm * math.sin(angle + turn)
        wide = (du * du + dv * dv) * np.float32(1 / (0.22 * state.rest_radius_mm) ** 2)
        inner = np.maximum(inner, 1 - wide - tall * tall)
    return np.where(inner > 0, np.float32(0.6 * MUSCLE), np.float32(0))


def _valves(state: HeartState, phase: float, points_3N: np.ndarray) -> np.ndarray:
    """Return the leaflets: funnels about the axis of each valve, closed to a lid or opened."""
    opening = float(np.interp(phase, _OPENING_PHASE, _OPENING))
    u, v = straighten(state, points_3N)
    z = points_3N[2]
    ring = state.annulus_mm
    tip = (0.62 * ring * opening + 0.3, state.base_mm - 6.0 - 10.0 * opening)
    mitral = _segment((np.sqrt(u * u + v * v), z), (ring + 1, state.base_mm), tip)
    heart = state.heart
    outer = state.radius_mm + state.wall_mm
    half = 0.38 * heart.right_mm[0]
    away = (outer + half) * math.cos(0.2), (outer + half) * math.sin(0.2)
    off = np.sqrt((points_3N[0] - away[0]) ** 2 + (points_3N[1] - away[1]) ** 2)
    low = state.tricuspid_mm
    tip = (0.6 * half * opening + 0.3, low - 3.0 - 9.0 * opening)
    tricuspid = _segment((off, z), (half + 1, low), tip)
    ejection = float(np.interp(phase, _EJECTION_PHASE, _EJECTION))
    radius = heart.root_mm[0]
    tip = (0.82 * radius * ejection + 0.3, 7.0 + 8.0 * ejection)
    along, off = root_coordinates(state, points_3N)
    aortic = _segment((off, along), (radius, 4.0), tip)
    lines = np.maximum(_ridge(mitral, 1.3), 0.8 * _ridge(tricuspid, 1.2))
    return np.asarray(0.85 * np.maximum(lines, 0.9 * _ridge(aortic, 1.0)))
