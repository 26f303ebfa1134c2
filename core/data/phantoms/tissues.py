"""What lies where in a phantom brain: the share of every tissue in every voxel.

The order in which structures are laid decides who wins: fluid first, then deep gray and the hind
brain, and the folded layer takes what is left. All shapes are functions of head coordinates in
millimetres (RAS+, origin in the middle of the brain), so a head can be looked at on any grid.

Axes: K tissues, P points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from vitrael.core.data.phantoms.anatomy import Anatomy, semi_axes_mm
from vitrael.core.data.phantoms.cortex import Layer, folded_layer
from vitrael.core.data.phantoms.forms import (
    Points,
    ellipsoid_mm,
    inside,
    wave_sum,
    within,
)
from vitrael.core.data.phantoms.ventricles import (
    lateral_ventricles,
    third_ventricle,
    ventricle_frame,
)
from vitrael.core.rng import stream


class Tissue(IntEnum):
    """The labels of a phantom, in the order of the rows of ``fraction_KP``."""

    BACKGROUND = 0
    CSF = 1
    """In sulci, fissures and cisterns, and around the brain of a whole head."""
    CORTEX = 2
    WHITE = 3
    VENTRICLES = 4
    """Both lateral ones."""
    THIRD_VENTRICLE = 5
    THALAMUS = 6
    CAUDATE = 7
    PUTAMEN = 8
    HIPPOCAMPUS = 9
    CEREBELLUM_GRAY = 10
    CEREBELLUM_WHITE = 11
    BRAINSTEM = 12
    WMH = 13
    """White-matter hyperintensity."""
    TUMOR_CORE = 14
    TUMOR_RIM = 15
    EDEMA = 16
    SKULL = 17
    SCALP = 18
    """Skin and fat outside the skull, ears among it."""
    NECK = 19
    """Muscle."""
    FACE = 20
    """Nose, cheeks, jaw and orbits: what shows who somebody is."""
    EYES = 21


BRAIN = tuple(tissue for tissue in Tissue if Tissue.CSF <= tissue <= Tissue.EDEMA)
"""All that lies inside the brain mask."""

_FISSURE_DEPTH_MM = 26.0


@dataclass(frozen=True, slots=True, repr=False)
class Mixture:
    """The share of every tissue at some points; what is missing to 1 is background."""

    fraction_KP: np.ndarray
    """float32, rows as in ``Tissue``; the row of the background is not kept up."""
    brain_P: np.ndarray
    """How much of the voxel lies inside the brain's outer surface."""
    depth_mm_P: np.ndarray
    """Under the outer surface of the brain; negative outside."""


def reach_of_surface(anatomy: Anatomy) -> float:
    """Return a bound on the outer surface's radius, relative to the semi-axes."""
    return 1 + float(np.abs(anatomy.shape_waves[:, 4]).sum())


def mix_tissues(anatomy: Anatomy, head: Points, *, spacing_mm: float) -> Mixture:
    """Return the tissues of a healthy brain at points of the head, ``spacing_mm`` apart.

    Borders are softened over one voxel, which stands for partial volume.
    """
    axes = semi_axes_mm(anatomy)
    scaled = Points(*(part / np.float32(axis) for part, axis in zip(head, axes, strict=True)))
    rho = np.sqrt(scaled.x**2 + scaled.y**2 + scaled.z**2)
    inverse = 1 / np.maximum(rho, np.float32(1e-6))
    direction = Points(*(part * inverse for part in scaled))
    radius = np.float32(np.prod(axes) ** (1 / 3))
    depth = (1 + wave_sum(anatomy.shape_waves, direction) - rho) * radius
    brain = inside(depth, spacing_mm)
    fraction = np.zeros((len(Tissue), len(depth)), dtype=np.float32)
    rest = brain.copy()

    def lay(tissue: Tissue, cover: np.ndarray) -> None:
        share = cover * rest
        np.subtract(rest, share, out=rest)
        fraction[tissue] += share

    lay(Tissue.VENTRICLES, lateral_ventricles(anatomy, head, spacing_mm))
    lay(Tissue.THIRD_VENTRICLE, third_ventricle(anatomy, head, spacing_mm))
    sheets = _fissures(anatomy, head, axes, depth)
    for sheet in sheets:
        lay(Tissue.CSF, within(sheet.distance_mm, sheet.half_mm, 1.414 * spacing_mm))
    _lay_deep_gray(anatomy, head, spacing_mm, lay)
    _lay_hind_brain(anatomy, head, spacing_mm, lay)
    layer = Layer(direction, rho, depth, tuple(s.distance_mm - s.half_mm for s in sheets))
    csf, white = folded_layer(anatomy, layer, radius_mm=float(radius), spacing_mm=spacing_mm)
    fraction[Tissue.CSF] += rest * csf
    fraction[Tissue.WHITE] += rest * white
    fraction[Tissue.CORTEX] += rest * (1 - csf - white)
    return Mixture(fraction, brain, depth)


class _Sheet(NamedTuple):
    """A great fissure: the distance to its middle and half its width."""

    distance_mm: np.ndarray
    half_mm: float


def _fissures(
    anatomy: Anatomy, head: Points, axes: np.ndarray, depth: np.ndarray
) -> tuple[_Sheet, ...]:
    """Return the fissure between the hemispheres and the two lateral ones."""
    years = anatomy.age_years - 20
    own = stream(anatomy.detail_seed, "fissures").normal(0, 1, 4).astype(np.float32)
    above = head.z - np.float32(0.55 * axes[2])
    rim = np.minimum(_FISSURE_DEPTH_MM + 3 * own[0] - depth, head.z + np.float32(0.25 * axes[2]))
    beside = np.maximum(-np.maximum(above, rim), 0)
    middle = np.sqrt(head.x**2 + beside**2)
    rise = np.float32(0.32) + np.float32(0.08) * own[1]
    course = 2 + 3 * own[2] + rise * head.y + 3 * np.sin(head.y / 9 + own[3])
    slope = head.z + course + (np.abs(head.x) - 48) / 3
    deep = np.maximum(depth - 20, 0)
    ends = np.maximum(np.abs(head.y - 4) - 26, 0)
    lateral = np.sqrt((np.float32(0.85) * slope) ** 2 + deep**2 + ends**2)
    return (
        _Sheet(middle, 0.75 + 0.015 * years),
        _Sheet(lateral, 0.6 + 0.012 * years),
    )


def _lay_deep_gray(
    anatomy: Anatomy,
    head: Points,
    spacing_mm: float,
    lay: Callable[[Tissue, np.ndarray], None],
) -> None:
    """Lay thalamus, caudate, putamen and hippocampus, each on both sides."""
    distance, height, radius, contrast = anatomy.nuclei
    size, aside, up = radius / 11, distance - 20, height + 6
    # Large ventricles push their neighbors away, rather than swallow them.
    wide, _, high = ventricle_frame(anatomy).semi_axes_mm
    push, drop = max(0.0, wide - 6.5), max(0.0, high - 10)
    x = np.abs(head.x)
    y = head.y + 14
    nuclei = (
        (Tissue.THALAMUS, (11 + aside + 0.8 * push, -13, up - 0.7 * drop), (8.5, 14, 9.5), 0.3),
        (Tissue.CAUDATE, (17 + aside + 1.2 * push, 17, 6 + up), (5, 13, 9), 0.4),
        (Tissue.PUTAMEN, (27 + aside + 0.6 * push, 3, up), (5.5, 16, 10), -0.25),
    )
    for tissue, center, half_axes, yaw in nuclei:
        shift = np.float32(yaw) * (head.y - np.float32(center[1]))
        local = Points(
            x - np.float32(center[0]) + shift,
            head.y - np.float32(center[1]),
            head.z - np.float32(center[2]),
        )
        cover = _ellipsoid(local, size * np.array(half_axes), spacing_mm)
        lay(tissue, cover * np.float32(min(contrast, 1)))
    form = np.array([6.5, 21.0, 6.2])
    axes = form * (anatomy.hippocampus_ml * 500 / (4 / 3 * np.pi * np.prod(form))) ** (1 / 3)
    curved = Points(x - 27 + np.float32(0.008) * y * y, y, head.z + 21 - np.float32(0.006) * y * y)
    lay(Tissue.HIPPOCAMPUS, _ellipsoid(curved, axes, spacing_mm))


def _ellipsoid(points: Points, axes_mm: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return a soft-edged ellipsoid of the right volume, even where a voxel is as large as it.

    A border softened over one voxel adds volume wherever it is curved; the shift takes it back.
    """
    shift = spacing_mm**2 * float(np.sum(1 / axes_mm)) / 36
    return inside(ellipsoid_mm(points, axes_mm) - np.float32(shift), spacing_mm)


def _lay_hind_brain(
    anatomy: Anatomy,
    head: Points,
    spacing_mm: float,
    lay: Callable[[Tissue, np.ndarray], None],
) -> None:
    """Lay the brainstem, the cisterns before and around it, and the cerebellum."""
    x, y, z = head
    axes = semi_axes_mm(anatomy)
    own = np.exp(stream(anatomy.detail_seed, "hind brain").normal(0, 0.07, 5))
    axis_y = -6 + (z + 14) * np.float32(1 / 3)
    radius = np.interp(z, [-62, -48, -40, -32, -22, -12], [8, 9, 13, 14, 11, 13])
    across = np.sqrt(np.float32(0.8) * x * x + (y - axis_y) ** 2)
    stem = np.minimum(radius.astype(np.float32) - across, -10 - z)
    lay(Tissue.BRAINSTEM, inside(stem, spacing_mm))
    front = Points(x, y - 2 - np.float32(0.3) * z - 13, z + 46)
    cistern = np.maximum(
        ellipsoid_mm(front, np.array([15.0, 8.0, 17.0])), np.minimum(stem + 3, -16 - z)
    )
    lay(Tissue.CSF, inside(cistern, spacing_mm) * (y > axis_y))
    center = Points(
        x, y + np.float32(0.50 * own[0] * axes[1]), z + np.float32(0.57 * own[1] * axes[2])
    )
    form = np.array([0.74, 0.40, 0.40]) * own[2:] * axes
    whole = ellipsoid_mm(center, form)
    near = np.flatnonzero(whole > -spacing_mm - 2)
    part = center.take(near)
    cover, white = np.zeros_like(x), np.zeros_like(x)
    cover[near] = inside(whole[near], spacing_mm)
    white[near] = _arbor(part, whole[near], spacing_mm)
    lay(Tissue.CEREBELLUM_WHITE, cover * white)
    lay(Tissue.CEREBELLUM_GRAY, cover)
    lay(Tissue.CSF, within(np.abs(whole + 1), 1.0, spacing_mm))


def _arbor(part: Points, depth_mm: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the white matter of the cerebellum: a core with branches, or their mean."""
    core = inside(depth_mm - 16, spacing_mm)
    angle = np.arctan2(part.z + np.float32(0.3) * np.abs(part.x), part.y - 6)
    branch = np.clip(np.cos(13 * angle + np.float32(0.12) * np.abs(part.x)) * 1.6 - 0.6, 0, 1)
    fine = float(np.clip((6.5 - spacing_mm) / 2.5, 0, 1))
    mixed = fine * branch + (1 - fine) * np.float32(0.25)
    return np.asarray(np.maximum(core, mixed * inside(depth_mm - 3, spacing_mm)))
