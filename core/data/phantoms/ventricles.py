"""The ventricles of a phantom brain: two bent horns of an exact volume, and a slit between.

A lateral ventricle is an ellipsoid of the patient's volume that shears bend into an arch with
spreading horns; shears keep the volume. A small temporal horn lies apart, above the hippocampus.
Coordinates are mirrored to the right side, so that both are one evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrael.core.data.phantoms.anatomy import Anatomy
from vitrael.core.data.phantoms.forms import (
    Points,
    ellipsoid_mm,
    inside,
    rotation_of,
    turn,
    within,
)

_TEMPORAL_HORN_FRAC = 0.06
_CENTER_Y_MM, _CENTER_Z_MM = -4.0, 8.0
_ARCH, _FLARE, _LEAN = 0.30, 0.14, 0.25
"""How far the horns hang down and spread, relative to the length, and the roof leans outward."""


@dataclass(frozen=True, slots=True, repr=False)
class VentricleFrame:
    """Where the lateral ventricles lie, in coordinates mirrored to the right side."""

    rotation: np.ndarray
    semi_axes_mm: np.ndarray
    """[3] of the main part of a ventricle of mean size, before it is bent."""
    scale: tuple[float, float]
    """Of the left and of the right one, relative to the mean."""
    offset_mm: float
    """Least distance of the center from the midline."""


def ventricle_frame(anatomy: Anatomy) -> VentricleFrame:
    """Return where a patient's lateral ventricles lie."""
    offset, length, height, tilt, asymmetry = anatomy.ventricle_form
    form = np.array([0.64, 1.80 * length, 0.90 * height])
    form /= np.prod(form) ** (1 / 3)
    main_mm3 = anatomy.ventricle_ml * 1000 / 2 * (1 - _TEMPORAL_HORN_FRAC)
    axes = form * (main_mm3 / (4 / 3 * np.pi)) ** (1 / 3)
    shares = (np.clip(0.5 + sign * asymmetry / 4, 0.3, 0.7) for sign in (1, -1))
    left, right = (float((2 * share) ** (1 / 3)) for share in shares)
    rotation = rotation_of(np.array([tilt, 0.0, 0.12]))
    return VentricleFrame(rotation, axes, (left, right), float(offset))


def lateral_ventricles(anatomy: Anatomy, head: Points, spacing_mm: float) -> np.ndarray:
    """Return how much of every voxel both lateral ventricles fill."""
    frame = ventricle_frame(anatomy)
    scale = np.where(head.x > 0, np.float32(frame.scale[1]), np.float32(frame.scale[0]))
    mirrored = Points(
        np.abs(head.x) - _middle_mm(frame, scale),
        head.y - np.float32(_CENTER_Y_MM),
        head.z - np.float32(_CENTER_Z_MM),
    )
    local = Points(*(part / scale for part in turn(mirrored, frame.rotation)))
    main = ellipsoid_mm(_straighten(local, frame), frame.semi_axes_mm) * scale
    horn_mm3 = anatomy.ventricle_ml * 1000 / 2 * _TEMPORAL_HORN_FRAC
    form = np.array([0.75, 2.6, 0.513])
    horn_axes = form * (horn_mm3 / (4 / 3 * np.pi * np.prod(form))) ** (1 / 3)
    y = head.y + 14
    temporal = Points(np.abs(head.x) - 33 + np.float32(0.006) * y * y, y, head.z + 13)
    horn = ellipsoid_mm(temporal, horn_axes)
    return np.asarray(np.maximum(inside(main, spacing_mm), inside(horn, spacing_mm)))


def third_ventricle(anatomy: Anatomy, head: Points, spacing_mm: float) -> np.ndarray:
    """Return how much of every voxel the third ventricle fills: it widens with the lateral ones."""
    half_mm = 1.1 * (anatomy.ventricle_ml / 25) ** 0.5
    y, z = (head.y + 6) / 14, (head.z + 2) / 10
    profile = np.sqrt(np.maximum(1 - y * y - z * z, 0))
    return within(np.abs(head.x), np.float32(half_mm) * profile, spacing_mm)


def around_ventricle(straight_N3: np.ndarray, frame: VentricleFrame, *, side: int) -> np.ndarray:
    """Return ``[N, 3]`` points of the head for points relative to the semi-axes of a ventricle.

    Points of length 1 lie on its wall, longer ones outside. ``side`` is -1 left, 1 right.
    """
    x, y, z = (straight_N3 * frame.semi_axes_mm).T
    length = frame.semi_axes_mm[1]
    arch, flare = _ARCH / length, _FLARE / length
    bent = np.stack(
        [
            x + flare * ((y - length / 4) ** 2 - length**2 / 4) + _LEAN * z,
            y,
            z - arch * (y**2 - length**2 / 5),
        ],
        axis=1,
    )
    scale = frame.scale[side > 0]
    head = (bent * scale) @ frame.rotation.T
    head += [float(_middle_mm(frame, np.float32(scale))), _CENTER_Y_MM, _CENTER_Z_MM]
    head[:, 0] *= side
    return np.asarray(head)


def _middle_mm(frame: VentricleFrame, scale: np.ndarray | np.float32) -> np.ndarray:
    least = np.float32(frame.offset_mm)
    return np.asarray(np.maximum(least, np.float32(frame.semi_axes_mm[0]) * scale + 1))


def _straighten(local: Points, frame: VentricleFrame) -> Points:
    """Return points of the ventricle's frame in the frame of the ellipsoid it was bent from."""
    length = np.float32(frame.semi_axes_mm[1])
    arch, flare = np.float32(_ARCH) / length, np.float32(_FLARE) / length
    z = local.z + arch * (local.y**2 - length**2 / 5)
    x = local.x - flare * ((local.y - length / 4) ** 2 - length**2 / 4) - np.float32(_LEAN) * z
    return Points(x, local.y, z)
