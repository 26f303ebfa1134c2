"""Lesions of the white matter and tumors: where they lie, and how large they are.

White-matter hyperintensities are blobs close to the lateral ventricles, some of them deeper in the
white matter; they replace white matter only. A tumor is a dead core, a living rim that replaces any
tissue but the ventricles, and edema in the white matter around it. Counts are Poisson. The sizes
are solved on a grid of the head's own, so that what is asked for is present, whatever grid the scan
is taken on later.

Axes: L blobs, P points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from vitrael.core.data.phantoms.anatomy import EFFECTS, Anatomy, semi_axes_mm
from vitrael.core.data.phantoms.forms import Points, draw_waves, inside, wave_sum
from vitrael.core.data.phantoms.tissues import Mixture, Tissue, mix_tissues
from vitrael.core.data.phantoms.ventricles import around_ventricle, ventricle_frame
from vitrael.core.errors import DataError

_SOLVER_MM = 3.0
_MOST_GROWTH_MM = 40.0
_STEPS = 30
_WAVES, _WAVE_FREQUENCY, _WAVE_MM = 10, (0.25, 0.6), 0.4
"""Of the uneven borders: how many, radians per millimetre, and how high."""
_WMH_COUNT_AT_60, _MOST_WMH_ML, _MOST_WMH_BLOBS = 8.0, 60.0, 40
_DEEP_FRAC = 0.25
_TUMOR_COUNT = 1.2
_CORE_FRAC = 0.58
"""Radius of a tumor's core, relative to the whole."""
_FINEST_PART_MM = 4.0
_KEPT = (Tissue.VENTRICLES, Tissue.THIRD_VENTRICLE)
_REPLACED = tuple(t for t in Tissue if Tissue.CSF <= t <= Tissue.BRAINSTEM and t not in _KEPT)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Lesions:
    """Blobs of white-matter hyperintensity and tumors, in the head; see ``draw_lesions``."""

    wmh_L4: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    """Center and radius of every blob, millimetres; one with a radius below zero is not there."""
    tumor_L4: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    """Center and radius of core and rim."""
    edema_mm: float = 0.0
    """How far edema reaches beyond every rim."""
    waves: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))
    """[waves, 5] per millimetre: what makes the borders uneven."""
    asked_ml: Mapping[str, float] = field(default_factory=dict)
    """Of ``wmh``, ``tumor`` (core and rim) and ``edema``."""


NO_LESIONS = Lesions(asked_ml={"wmh": 0.0, "tumor": 0.0, "edema": 0.0})


def draw_lesions(
    rng: np.random.Generator,
    anatomy: Anatomy,
    *,
    wmh_ml: float | None = None,
    tumor_ml: float = 0.0,
    edema_ml: float | None = None,
) -> Lesions:
    """Return the lesions of a patient, of the volumes that are asked for.

    Without ``wmh_ml`` the load follows age by the law in ``EFFECTS``, and a Poisson count of zero
    leaves none. What is asked for comes in at least one blob. Without ``edema_ml`` a tumor has half
    as much again as its own volume. Raises DataError when the white matter has no room.
    """
    count = int(rng.poisson(_expected_count(anatomy, wmh_ml)))
    typical = EFFECTS["wmh_ml.at_60"] * np.exp(
        EFFECTS["wmh_log.per_year"] * (anatomy.age_years - 60)
    )
    drawn = float(typical * np.exp(rng.normal(0, EFFECTS["wmh_log.sd"])))
    if wmh_ml is None:
        wmh_ml = min(drawn, _MOST_WMH_ML) if count else 0.0
    if edema_ml is None:
        edema_ml = 1.5 * tumor_ml
    tumors = max(1, int(rng.poisson(_TUMOR_COUNT))) if tumor_ml else 0
    blobs = min(max(1, count), _MOST_WMH_BLOBS) if wmh_ml else 0
    lesions = Lesions(
        wmh_L4=_draw_blobs(rng, anatomy, blobs),
        tumor_L4=_draw_tumors(rng, anatomy, tumors),
        waves=draw_waves(rng, _WAVES, frequency=_WAVE_FREQUENCY, amplitude=_WAVE_MM),
        asked_ml={"wmh": wmh_ml, "tumor": tumor_ml, "edema": edema_ml},
    )
    return _fit_volumes(lesions, anatomy)


def age_lesions(lesions: Lesions, anatomy: Anatomy, *, years: float) -> Lesions:
    """Return the same lesions in the older ``anatomy``: hyperintensities grow, tumors stay.

    The load grows by the law in ``EFFECTS``. Raises DataError when the white matter has no room.
    """
    growth = float(np.exp(EFFECTS["wmh_log.per_year"] * years))
    asked_ml = {**lesions.asked_ml, "wmh": lesions.asked_ml["wmh"] * growth}
    return _fit_volumes(replace(lesions, asked_ml=asked_ml), anatomy)


def place_lesions(lesions: Lesions, head: Points, mixture: Mixture, *, spacing_mm: float) -> None:
    """Lay lesions into a mixture, in place: tumor, then edema, then hyperintensities."""
    fraction = mixture.fraction_KP
    margin_mm = float(np.abs(lesions.waves[:, 4]).sum()) + spacing_mm
    if len(lesions.tumor_L4):
        edge_mm = max(lesions.edema_mm, 0) + margin_mm
        near = _near(lesions.tumor_L4, head, edge_mm)
        where = head.take(near)
        core, whole, around = (
            _cover(blobs, lesions.waves, where, spacing_mm)
            for blobs in (
                _core(lesions),
                lesions.tumor_L4,
                _grown(lesions.tumor_L4, lesions.edema_mm),
            )
        )
        brain = mixture.brain_P[near] - sum(fraction[tissue, near] for tissue in _KEPT)
        for tissue in _REPLACED:
            fraction[tissue, near] *= 1 - whole
        fraction[Tissue.TUMOR_CORE, near] = brain * core
        fraction[Tissue.TUMOR_RIM, near] = brain * (whole - core)
        _turn_white(fraction, near, around, into=Tissue.EDEMA)
    if len(lesions.wmh_L4):
        near = _near(lesions.wmh_L4, head, margin_mm)
        cover = _cover(lesions.wmh_L4, lesions.waves, head.take(near), spacing_mm)
        _turn_white(fraction, near, cover, into=Tissue.WMH)


def _turn_white(
    fraction_KP: np.ndarray, near: np.ndarray, cover: np.ndarray, *, into: Tissue
) -> None:
    """Turn the covered part of the white matter into another tissue, in place."""
    white = fraction_KP[Tissue.WHITE, near]
    fraction_KP[into, near] = white * cover
    fraction_KP[Tissue.WHITE, near] = white * (1 - cover)


def _expected_count(anatomy: Anatomy, wmh_ml: float | None) -> float:
    """Return the mean count: it grows with age, or with the square root of what is asked."""
    if wmh_ml is not None:
        return 4 + 4 * float(np.sqrt(wmh_ml))
    return float(
        _WMH_COUNT_AT_60 * np.exp(EFFECTS["wmh_log.per_year"] / 2 * (anatomy.age_years - 60))
    )


def _draw_blobs(rng: np.random.Generator, anatomy: Anatomy, count: int) -> np.ndarray:
    """Return ``[count, 4]``: caps of the horns and bands along the roof; some deep and apart."""
    frame, axes = ventricle_frame(anatomy), semi_axes_mm(anatomy)
    blobs_L4 = np.empty((count, 4))
    for blob in blobs_L4:
        side = 1 if rng.random() < 0.5 else -1  # noqa: PLR2004 - a coin
        if rng.random() < _DEEP_FRAC:
            direction = rng.normal(size=3)
            direction[2] = abs(direction[2]) + 0.3
            blob[:3] = direction / np.linalg.norm(direction) * rng.uniform(0.45, 0.66) * axes
        else:
            along = rng.choice([-1.0, 0.0, 1.0], p=[0.35, 0.3, 0.35])
            wall = np.array([0.5, along, 0.6 - 0.3 * abs(along)]) + rng.normal(0, 0.25, 3)
            wall *= rng.uniform(1.02, 1.15) / np.linalg.norm(wall)
            blob[:3] = around_ventricle(wall[None], frame, side=side)[0]
        blob[3] = rng.lognormal(0.9, 0.4)
    return blobs_L4


def _draw_tumors(rng: np.random.Generator, anatomy: Anatomy, count: int) -> np.ndarray:
    """Return ``[count, 4]``: away from the midline and from the surface."""
    axes = semi_axes_mm(anatomy)
    tumors_L4 = np.empty((count, 4))
    for tumor in tumors_L4:
        side = 1 if rng.random() < 0.5 else -1  # noqa: PLR2004 - a coin
        where = np.array([side * rng.uniform(0.42, 0.6), rng.uniform(-0.4, 0.45), 0])
        where[2] = rng.uniform(0.0, 0.42)
        tumor[:3] = where * axes
        tumor[3] = rng.lognormal(2.0, 0.3)
    return tumors_L4


def _fit_volumes(lesions: Lesions, anatomy: Anatomy) -> Lesions:
    """Return the lesions grown or shrunk, all blobs of a kind alike, to the volumes asked for."""
    if not len(lesions.wmh_L4) and not len(lesions.tumor_L4):
        return lesions
    axes = semi_axes_mm(anatomy)
    lines = [np.arange(-a, a + _SOLVER_MM, _SOLVER_MM, dtype=np.float32) for a in axes]
    grid = np.meshgrid(*lines, indexing="ij")
    ball = sum(np.square(line / np.float32(a)) for line, a in zip(grid, axes, strict=True)) < 1
    head = Points(*(line[ball] for line in grid))
    mixture = mix_tissues(anatomy, head, spacing_mm=_SOLVER_MM)
    if len(lesions.tumor_L4):
        free = mixture.brain_P - mixture.fraction_KP[np.array(_KEPT)].sum(0)
        level = _level(lesions.tumor_L4, lesions.waves, head)
        growth = _growth_mm(level, free, lesions.asked_ml["tumor"])
        lesions = replace(lesions, tumor_L4=_grown(lesions.tumor_L4, growth))
        white = mixture.fraction_KP[Tissue.WHITE] * (1 - inside(level + growth, _SOLVER_MM))
        reach = _growth_mm(level + growth, white, lesions.asked_ml["edema"])
        lesions = replace(lesions, edema_mm=reach)
        alone = replace(lesions, wmh_L4=lesions.wmh_L4[:0])
        place_lesions(alone, head, mixture, spacing_mm=_SOLVER_MM)
    if len(lesions.wmh_L4):
        level = _level(lesions.wmh_L4, lesions.waves, head)
        growth = _growth_mm(level, mixture.fraction_KP[Tissue.WHITE], lesions.asked_ml["wmh"])
        lesions = replace(lesions, wmh_L4=_grown(lesions.wmh_L4, growth))
    return lesions


def _growth_mm(level: np.ndarray, free: np.ndarray, asked_ml: float) -> float:
    """Return what is added to a level so that it covers the volume asked for, by bisection."""
    low, high = -_MOST_GROWTH_MM, _MOST_GROWTH_MM
    voxel_ml = _SOLVER_MM**3 / 1000
    near = level > -_MOST_GROWTH_MM - _SOLVER_MM
    level, free = level[near], free[near]
    if not asked_ml:
        return low
    if float(free.sum()) * voxel_ml < asked_ml:
        raise DataError(
            "the lesions do not fit into the brain",
            why="more is asked for than there is of the tissue that they replace",
            fix="ask for smaller volumes",
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        present_ml = float((free * inside(level + np.float32(middle), _SOLVER_MM)).sum()) * voxel_ml
        low, high = (middle, high) if present_ml < asked_ml else (low, middle)
    return (low + high) / 2


def _grown(blobs_L4: np.ndarray, growth_mm: float) -> np.ndarray:
    return np.asarray(blobs_L4 + np.array([0.0, 0.0, 0.0, growth_mm]))


def _core(lesions: Lesions) -> np.ndarray:
    return np.asarray(lesions.tumor_L4 * np.array([1.0, 1.0, 1.0, _CORE_FRAC]))


def _near(blobs_L4: np.ndarray, head: Points, margin_mm: float) -> np.ndarray:
    """Return the numbers of the points in the box around all blobs."""
    reach = np.maximum(blobs_L4[:, 3:], 0) + margin_mm
    low, high = (blobs_L4[:, :3] - reach).min(0), (blobs_L4[:, :3] + reach).max(0)
    inner = np.ones(head.x.shape, dtype=bool)
    for part, least, most in zip(head, low, high, strict=True):
        inner &= (part > np.float32(least)) & (part < np.float32(most))
    return np.flatnonzero(inner)


def _cover(blobs_L4: np.ndarray, waves: np.ndarray, head: Points, spacing_mm: float) -> np.ndarray:
    """Return how much of every voxel the blobs cover; coarse voxels are looked at in parts."""
    parts = int(np.ceil(spacing_mm / _FINEST_PART_MM))
    step = spacing_mm / parts
    offsets = (np.arange(parts, dtype=np.float32) - (parts - 1) / 2) * np.float32(step)
    total = np.zeros_like(head.x)
    for x, y, z in product(offsets, repeat=3):
        moved = Points(head.x + x, head.y + y, head.z + z)
        total += inside(_level(blobs_L4, waves, moved), step)
    return total / np.float32(parts**3)


def _level(blobs_L4: np.ndarray, waves: np.ndarray, head: Points) -> np.ndarray:
    """Return the distance inside the union of the blobs, with its uneven border."""
    level = np.full_like(head.x, -1e3)
    for *center, radius in blobs_L4.astype(np.float32):
        x, y, z = (part - middle for part, middle in zip(head, center, strict=True))
        np.maximum(level, radius - np.sqrt(x * x + y * y + z * z), out=level)
    if len(waves):
        near = level > -_MOST_GROWTH_MM
        level[near] += wave_sum(waves, head.take(near))
    return level
