"""The shapes of the one implicit 3D heart: distances to every border, labels, and moving tissue.

The frame is the one of ``heart``: millimetres, z from the apex to the atria, x to the septum, y to
the anterior side. Points are float32 ``[3, N]``. A view, a volume and a contour ask the same
functions, so that they agree.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from vitrael.core.data.phantoms.heart import APEX_WALL_FRAC, Heart, HeartState, shape_heart

OUTSIDE, CAVITY, BACKGROUND, MYOCARDIUM = 0, 1, 2, 3
LEFT_ATRIUM, RIGHT_VENTRICLE, RIGHT_ATRIUM, AORTA = 4, 5, 6, 7

_SEPTUM_RAD = math.radians(30)
_ROOT_RAD = math.radians(60)
_TRACT_RAD = math.radians(58)
_RIGHT_ATRIUM_RAD = math.radians(-4)
_CRESCENT_FRAC = 0.25
"""How far from the long axis the right ventricle's crescent ends, in radii of the left one."""


class Signed(NamedTuple):
    """Distances to the borders, positive inside, float32 ``[N]``; exact at a border, mm near it."""

    cavity: np.ndarray
    epicardium: np.ndarray
    """Of cavity and wall together."""
    left_atrium: np.ndarray
    right_ventricle: np.ndarray
    right_atrium: np.ndarray
    aorta: np.ndarray


def measure_points(state: HeartState, points_3N: np.ndarray) -> Signed:
    """Return the signed distances of all structures at points of the heart frame."""
    x, y, z = points_3N
    heart = state.heart
    u, v = straighten(state, points_3N)
    q2 = u * u + v * v
    below = state.base_mm - z
    cavity = np.minimum(_bullet(state, q2, z, wall_mm=0.0), below)
    epicardium = np.minimum(_bullet(state, q2, z, wall_mm=state.wall_mm), below)
    aorta = _aorta(state, x, y, z)
    radius, length, right_radius, right_length = heart.atria_mm
    fill = 1 + 0.10 * state.contraction
    roof = state.rest_base_mm + length
    left = _dome((x + 3.0, y + 6.0, z), floor=state.base_mm, roof=roof, radius=radius * fill)
    left = np.minimum(left, -aorta - 2.5)
    aside = state.radius_mm + state.wall_mm + 5
    turn = _RIGHT_ATRIUM_RAD
    away = (x - aside * math.cos(turn), y - aside * math.sin(turn), z)
    roof = state.rest_base_mm + right_length - heart.right_mm[2]
    right = _dome(away, floor=state.tricuspid_mm, roof=roof, radius=right_radius * fill)
    right = np.minimum(np.minimum(right, -left - 3.0), np.minimum(-aorta - 2.5, -epicardium - 3.0))
    ventricle = np.minimum(_right_ventricle(state, x, y, z), -epicardium)
    ventricle = np.minimum(ventricle, -aorta - 2.5)
    return Signed(cavity, epicardium, left, ventricle, right, aorta)


def label_points(signed: Signed) -> np.ndarray:
    """Return the label of each point, uint8 ``[N]``; BACKGROUND outside the heart."""
    labels = np.full(signed.cavity.shape, BACKGROUND, np.uint8)
    labels[signed.right_atrium > 0] = RIGHT_ATRIUM
    labels[signed.right_ventricle > 0] = RIGHT_VENTRICLE
    labels[signed.left_atrium > 0] = LEFT_ATRIUM
    labels[signed.aorta > 0] = AORTA
    labels[signed.epicardium > 0] = MYOCARDIUM
    labels[signed.cavity > 0] = CAVITY
    return labels


def fill_volume(heart: Heart, *, phase: float, edge_vox: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels ``[n, n, n]`` uint8 (index x, y, z) and the affine to the heart frame, mm.

    The cube holds the whole heart at every phase. OUTSIDE stands where the pictures of the same
    heart have BACKGROUND or lie outside the cone.
    """
    rest = shape_heart(heart, 0.0)
    width = rest.radius_mm + rest.wall_mm
    low = np.array([-width - 6, -width - 16, -4.0])
    high = np.array(
        [
            width + heart.right_mm[0] + 22,
            width + 30,
            rest.rest_base_mm + max(heart.atria_mm[1::2]) + 4,
        ]
    )
    size_mm = float((high - low).max()) / edge_vox
    affine = np.diag([size_mm, size_mm, size_mm, 1.0])
    affine[:3, 3] = (low + high) / 2 - size_mm * (edge_vox - 1) / 2
    axes = [affine[i, 3] + size_mm * np.arange(edge_vox) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).astype(np.float32)
    labels = label_points(measure_points(shape_heart(heart, phase), points))
    labels[labels == BACKGROUND] = OUTSIDE
    return labels.reshape(edge_vox, edge_vox, edge_vox), affine


def trace_tissue(
    state: HeartState, points_3N: np.ndarray, epicardium_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where the tissue at each point was at end-diastole, three arrays ``[N]``.

    In the wall the map keeps area times length (incompressible); its effect fades over 15 mm
    outside the epicardium. Blood gets coordinates, too, but no meaning.
    """
    x, y, z = points_3N
    heart = state.heart
    t = np.clip((z - state.apex_mm) / state.length_mm, 0, 1)
    tau = np.abs(t - heart.belly_frac) * np.float32(1 / heart.belly_frac)
    profile = np.maximum(1 - tau**2, 0)  # the exponent 2 is near enough for where speckle goes
    stretch = state.length_mm / state.rest_length_mm
    growth = state.rest_radius_mm**2 - stretch * state.radius_mm**2
    q2 = np.maximum(x * x + y * y, 1.0)
    scale = np.sqrt(np.maximum(stretch + profile * growth / q2, 0.05)) - 1
    fade = np.exp(np.minimum(epicardium_N, 0) * np.float32(1 / 15))
    twist = heart.twist_rad * state.contraction * (1 - t) * fade
    lift = state.rest_base_mm - state.base_mm
    scale = scale * fade
    return x + scale * x - twist * y, y + scale * y + twist * x, z + lift * t * fade


def straighten(state: HeartState, points_3N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return short-axis coordinates in which the ventricle is straight and round, areas kept."""
    x, y, z = points_3N
    heart = state.heart
    t = np.clip((z - state.apex_mm) / state.length_mm, 0, 1)
    bow = 4 * state.radius_mm * t * (1 - t)
    x, y = x - heart.bend_frac[0] * bow, y - heart.bend_frac[1] * bow
    c, s = math.cos(heart.oval_rad), math.sin(heart.oval_rad)
    return (x * c + y * s) / heart.oval, (y * c - x * s) * heart.oval


def root_coordinates(state: HeartState, points_3N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the way along the aorta from its valve, and the distance from its axis, mm."""
    x, y, z = points_3N
    lean = np.array([math.cos(_ROOT_RAD), math.sin(_ROOT_RAD), 1.0])
    lean[:2] *= state.heart.root_lean
    lean /= np.linalg.norm(lean)
    out = state.heart.root_mm[1]
    dx, dy = x - out * math.cos(_ROOT_RAD), y - out * math.sin(_ROOT_RAD)
    dz = z - state.base_mm
    along = dx * float(lean[0]) + dy * float(lean[1]) + dz * float(lean[2])
    return along, np.sqrt(np.maximum(dx * dx + dy * dy + dz * dz - along * along, 0))


def _bullet(state: HeartState, q2: np.ndarray, z: np.ndarray, *, wall_mm: float) -> np.ndarray:
    heart = state.heart
    radius, length = state.radius_mm + wall_mm, state.length_mm + APEX_WALL_FRAC * wall_mm
    b, n = heart.belly_frac, heart.roundness
    tau = np.abs((z - (state.base_mm - length * (1 - b))) * np.float32(1 / (length * b)))
    power = tau**n
    slope = power / np.maximum(tau, 1e-3) * np.float32(n / (length * b))
    gradient = np.sqrt(q2 * np.float32(4 / radius**4) + slope * slope)
    level = 1 - q2 * np.float32(1 / radius**2) - power
    return np.asarray(level / np.maximum(gradient, np.float32(1 / radius)))


def _dome(
    at: tuple[np.ndarray, np.ndarray, np.ndarray], *, floor: float, roof: float, radius: float
) -> np.ndarray:
    """Return the distance to an ellipsoid that stands on a plane, its lower part cut off."""
    x, y, z = at
    half = 0.58 * (roof - floor)
    side2 = (x * x + y * y) * np.float32(1 / radius**2)
    up = (z - (roof - half)) * np.float32(1 / half)
    norm2 = side2 + up * up
    gradient = 2 * np.sqrt(side2 * np.float32(1 / radius**2) + up * up * np.float32(1 / half**2))
    distance = (1 - norm2) / np.maximum(gradient, np.float32(1 / radius))
    return np.asarray(np.minimum(distance, z - floor))


def _right_ventricle(state: HeartState, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    width, apex_gap, _ = state.heart.right_mm
    outer = state.rest_radius_mm + state.rest_wall_mm
    shrink = 1 - 0.16 * state.contraction
    c, s = math.cos(_SEPTUM_RAD), math.sin(_SEPTUM_RAD)
    aside = x * c + y * s
    out = (aside - 0.55 * outer) * np.float32(1 / ((0.45 * outer + width) * shrink))
    across = (y * c - x * s) * np.float32(1 / (1.06 * outer * (1 - 0.08 * state.contraction)))
    top = state.tricuspid_mm
    up = (z - top) * np.float32(1 / (top - apex_gap))
    norm2 = out * out + across * across + up * up
    gradient = np.sqrt(norm2) * np.float32(2 / outer)
    inflow = np.minimum((1 - norm2) / np.maximum(gradient, np.float32(1 / outer)), top - z)
    # Around the narrow base of the left ventricle it would come out on the other side.
    inflow = np.minimum(inflow, aside - np.float32(_CRESCENT_FRAC * outer))
    tract = _outflow(state, x, y, z, away_mm=outer + 0.18 * width)
    return np.asarray(np.maximum(inflow, tract))


def _outflow(
    state: HeartState, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, away_mm: float
) -> np.ndarray:
    """Return the distance to the tract that leads from the right ventricle past the aorta."""
    width = state.heart.right_mm[0]
    c, s = math.cos(_TRACT_RAD), math.sin(_TRACT_RAD)
    radius = (0.40 * width, 0.62 * width, 0.85 * width)
    shrink = 1 - 0.12 * state.contraction
    out = (x * c + y * s - away_mm) * np.float32(1 / (radius[0] * shrink))
    across = (y * c - x * s) * np.float32(1 / (radius[1] * shrink))
    up = (z - state.base_mm) * np.float32(1 / radius[2])
    norm2 = out * out + across * across + up * up
    gradient = np.sqrt(norm2) * np.float32(2 / radius[0])
    return np.asarray((1 - norm2) / np.maximum(gradient, np.float32(1 / radius[0])))


def _aorta(state: HeartState, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    along, off = root_coordinates(state, np.stack((x, y, z)))
    bulge = (along - 9) * np.float32(1 / 7)
    radius = state.heart.root_mm[0] * (0.92 + 0.16 / (1 + bulge * bulge))
    ends = np.minimum(z - state.base_mm, 75 - along)
    return np.asarray(np.minimum(radius - off, ends))
