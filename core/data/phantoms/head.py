"""What surrounds a phantom brain: fluid, skull, skin, and a face that belongs to somebody.

Eyes, nose, cheeks and jaw stand out in front, below the brow. Their proportions are the patient's
own, so that a scan with a face shows who it is, and a step that should remove the face can be
measured against ``Tissue.FACE`` and ``Tissue.EYES``.
"""

from __future__ import annotations

import numpy as np

from vitrael.core.data.phantoms.anatomy import Anatomy, semi_axes_mm
from vitrael.core.data.phantoms.forms import Points, ellipsoid_mm, inside
from vitrael.core.data.phantoms.tissues import Mixture, Tissue
from vitrael.core.rng import stream

_FLUID_MM, _FLUID_PER_YEAR_MM = 1.5, 0.035
_SKULL_MM, _SCALP_MM = 6.5, 6.0
_BROW = -0.12
"""Height above which a forehead is no face, relative to the brain's half height."""
_CHEEKS = 0.40
"""How far in front a face begins, relative to the brain's half length."""


def add_head(anatomy: Anatomy, head: Points, mixture: Mixture, *, spacing_mm: float) -> None:
    """Lay what is outside the brain into a mixture, in place."""
    axes = semi_axes_mm(anatomy)
    fraction, rest = mixture.fraction_KP, 1 - mixture.brain_P
    away = _away_mm(head, axes, mixture.depth_mm_P)

    def lay(tissue: Tissue, cover: np.ndarray) -> None:
        share = cover * rest
        np.subtract(rest, share, out=rest)
        fraction[tissue] += share

    lay(Tissue.NECK, inside(_spinal_cord_mm(head, axes), spacing_mm))
    skull_mm = _FLUID_MM + _FLUID_PER_YEAR_MM * (anatomy.age_years - 20)
    lay(Tissue.CSF, inside(np.float32(skull_mm) - away, spacing_mm))
    lay(Tissue.SKULL, inside(np.float32(skull_mm + _SKULL_MM) - away, spacing_mm))
    eyes, air, front, back, neck = _outlines(anatomy, head, axes)
    np.maximum(back, np.float32(skull_mm + _SKULL_MM + _SCALP_MM) - away, out=back)
    lay(Tissue.EYES, inside(eyes, spacing_mm))
    np.multiply(rest, 1 - inside(air, spacing_mm), out=rest)
    whole = np.maximum(front, back)
    is_face = (head.z < np.float32(_BROW * axes[2])) & (head.y > np.float32(_CHEEKS * axes[1]))
    is_face |= front > back
    cover = inside(whole, spacing_mm)
    lay(Tissue.FACE, cover * is_face)
    lay(Tissue.NECK, inside(neck - _SCALP_MM, spacing_mm))
    lay(Tissue.SCALP, cover)


def _away_mm(head: Points, axes: np.ndarray, depth_mm: np.ndarray) -> np.ndarray:
    """Return the distance from the brain's surface, to first order in every direction.

    ``depth_mm`` takes the brain for a sphere; far outside, that would make a skull of uneven
    thickness.
    """
    radius = np.prod(axes) ** (1 / 3)
    a, b, c = (np.float32(radius / axis) for axis in axes)
    x, y, z = head.x * a, head.y * b, head.z * c
    length = np.sqrt(x * x + y * y + z * z)
    slope = np.sqrt((x * a) ** 2 + (y * b) ** 2 + (z * c) ** 2)
    return np.asarray(-depth_mm * length / np.maximum(slope, np.float32(1e-6)))


def _spinal_cord_mm(head: Points, axes: np.ndarray) -> np.ndarray:
    """Return the distance inside the cord, by which the brain hangs together with the neck."""
    across = np.sqrt(head.x**2 + (head.y + 22) ** 2)
    return np.asarray(np.minimum(4.5 - across, np.float32(-0.7 * axes[2]) - head.z))


def _outlines(anatomy: Anatomy, head: Points, axes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the distances inside eyes, airways, face, neck with ears, and neck (millimetres)."""
    own = np.exp(stream(anatomy.detail_seed, "face").normal(0, 0.1, 8))
    wide, long, high = (float(axis) for axis in axes)
    x = np.abs(head.x)

    def blob(
        x_mm: np.ndarray, center: tuple[float, float, float], form: tuple[float, float, float]
    ) -> np.ndarray:
        at = (np.float32(part) for part in center)
        local = Points(*(p - c for p, c in zip((x_mm, head.y, head.z), at, strict=True)))
        return ellipsoid_mm(local, np.array(form))

    eye_y, eye_z = 0.88 * long, -0.50 * high
    eyes = blob(x, (0.50 * wide * own[0], eye_y, eye_z), (12, 12, 12))
    cheeks = blob(head.x, (0, 0.50 * long, -0.95 * high), (0.88 * wide * own[1], 0.74 * long, 60))
    chin = blob(head.x, (0, 0.80 * long * own[2] ** 0.5, -1.75 * high), (20, 24, 16))
    nose = blob(head.x, (0, 1.12 * long, -0.80 * high), (9 * own[3], 21 * own[4], 17 * own[5]))
    lids = blob(x, (0.50 * wide * own[0], eye_y - 2, eye_z), (17, 13, 14))
    brow = blob(x, (0.35 * wide, 0.90 * long, -0.18 * high), (22, 16 * own[6], 9))
    front = np.maximum.reduce([cheeks, chin, nose, lids, brow])
    nasal = blob(x, (5, 0.92 * long, -0.86 * high), (4.5, 26, 15))
    mouth = blob(head.x, (0, 0.85 * long, -1.42 * high), (20, 20, 3.5))
    throat = blob(head.x, (0, 0.32 * long, -1.45 * high), (9, 9, 40))
    air = np.maximum.reduce([nasal, mouth, throat])
    round_mm = np.sqrt(head.x**2 + (0.95 * (head.y + np.float32(0.25 * long))) ** 2)
    neck = np.minimum(np.float32(0.85 * wide) - round_mm, -head.z - np.float32(0.5 * high))
    ears = blob(x, (1.22 * wide, -0.15 * long, -0.45 * high), (6, 12, 24 * own[7]))
    return eyes, air, front, np.maximum(neck, ears), neck
