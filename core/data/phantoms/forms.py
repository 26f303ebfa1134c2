"""Implicit shapes: how much of a voxel lies inside a surface, from the distance to it.

Points are three arrays x, y, z of one shape (RAS+ millimetres), so that a million of them need no
second copy. A bend is a shear: it moves every point by a function of another coordinate, and so
keeps every volume exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_TINY = 1e-6


class Points(NamedTuple):
    """Where shapes are looked at: three float32 arrays of one shape, millimetres."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    def take(self, index: np.ndarray) -> Points:
        """Return some of the points, by number or by mask."""
        return Points(self.x[index], self.y[index], self.z[index])


def inside(signed_mm: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return how much of a voxel lies inside, from the distance to the border (positive: in)."""
    return np.clip(0.5 + signed_mm / spacing_mm, 0, 1)


def within(distance_mm: np.ndarray, half_mm: np.ndarray | float, spacing_mm: float) -> np.ndarray:
    """Return how much of a voxel lies within ``half_mm`` of a sheet, from its distance to it.

    A sheet thinner than a voxel fills it in part.
    """
    outer = np.clip(0.5 + (half_mm - distance_mm) / spacing_mm, 0, 1)
    return np.asarray(outer - np.clip(0.5 - (half_mm + distance_mm) / spacing_mm, 0, 1))


def ellipsoid_mm(points: Points, semi_axes_mm: np.ndarray) -> np.ndarray:
    """Return the distance to an ellipsoid at the origin, positive inside, to first order.

    It is (1 - rho) / |grad rho|, and no larger than the shortest semi-axis.
    """
    a, b, c = (float(1 / axis) for axis in semi_axes_mm)
    x, y, z = points.x * a, points.y * b, points.z * c
    rho = np.sqrt(x * x + y * y + z * z)
    slope = np.sqrt((x * a) ** 2 + (y * b) ** 2 + (z * c) ** 2)
    distance = (1 - rho) * rho / np.maximum(slope, np.float32(_TINY))
    shortest = np.float32(np.min(semi_axes_mm))
    return np.asarray(np.where(rho < np.float32(0.05), shortest, np.minimum(distance, shortest)))


def turn(points: Points, rotation: np.ndarray) -> Points:
    """Return row vectors times a rotation: the points in the frame that it describes."""
    x, y, z = points
    columns = rotation.astype(np.float32).T
    return Points(*(x * c[0] + y * c[1] + z * c[2] for c in columns))


def rotation_of(angles_rad: np.ndarray) -> np.ndarray:
    """Return the rotation about x, then y, then z."""
    x, y, z = angles_rad
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return np.asarray(about_x @ about_y @ about_z)


def draw_waves(
    rng: np.random.Generator, count: int, *, frequency: tuple[float, float], amplitude: float
) -> np.ndarray:
    """Return ``[count, 5]``: frequency vector (radians a unit), phase, amplitude."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = np.empty((count, 5))
    waves[:, :3] = directions * rng.uniform(*frequency, size=(count, 1))
    waves[:, 3] = rng.uniform(0, 2 * np.pi, count)
    waves[:, 4] = rng.normal(0, amplitude, count)
    return waves


def wave_sum(waves: np.ndarray, points: Points) -> np.ndarray:
    """Return the sum of the waves at every point."""
    phase = _phases(waves, points)
    return np.asarray(waves[:, 4].astype(np.float32) @ np.sin(phase, out=phase))


def wave_level_mm(waves: np.ndarray, points: Points, *, least_slope: float) -> np.ndarray:
    """Return the distance to the nearest zero of a sum of waves, to first order.

    Where the sum hardly changes the slope is taken as ``least_slope``, per unit of the points.
    """
    phase = _phases(waves, points)
    amplitude = waves[:, 4].astype(np.float32)
    value = amplitude @ np.sin(phase)
    np.cos(phase, out=phase)
    slope_3P = (amplitude[:, None] * waves[:, :3]).astype(np.float32).T @ phase
    slope = np.sqrt(np.square(slope_3P).sum(0) + np.float32(least_slope**2))
    return np.asarray(np.abs(value) / slope)


def _phases(waves: np.ndarray, points: Points) -> np.ndarray:
    """Return ``[waves, P]``."""
    stacked = np.stack(points).astype(np.float32, copy=False)
    phase = waves[:, :3].astype(np.float32) @ stacked
    phase += waves[:, 3, None].astype(np.float32)
    return phase
