"""The folded layer of a phantom brain: sulci, the gray ribbon along them, white blades between.

Sulci are the zero sets of a band-limited random field over the brain's surface, drawn inward to
the bottom of the layer: labyrinths of sheets at much the distance of real ones. The gray ribbon is
what lies within a few millimetres of the surface or of a sulcus. Where voxels are too coarse for a
sulcus, the layer is drawn as the mean of what it holds, so that volumes agree between grids.

Axes: P points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vitrael.core.data.phantoms.anatomy import EFFECTS, Anatomy
from vitrael.core.data.phantoms.forms import (
    Points,
    draw_waves,
    inside,
    wave_level_mm,
    wave_sum,
    within,
)
from vitrael.core.rng import stream

_MEAN_FLUID_FRAC, _MEAN_FLUID_PER_YEAR, _MEAN_WHITE_FRAC = 0.10, 0.00095, 0.18
"""What the folded layer holds at 20 years and gains a year, found by drawing it finely."""
_FIELDS, _FIELD_WAVES = 2, 18
_FIELD_FREQUENCY = (11.0, 16.0)
"""Radians over the radius of the brain: sheets of both fields are about 8 mm apart together."""
_RIBBON_MM = 3.2
_SULCUS_HALF_MM, _SULCUS_HALF_PER_YEAR_MM = 0.38, 0.0055
_FINE_MM, _COARSE_MM = 4.0, 6.5
"""Voxels up to the first show sulci; from the second on, their mean alone."""
_LEAST_SLOPE_FRAC = 0.4
_YOUNG_YEARS = 20.0


class Layer(NamedTuple):
    """Points with what the layer's shape depends on."""

    direction: Points
    """On the unit sphere, after division by the semi-axes."""
    rho: np.ndarray
    depth_mm: np.ndarray
    """Under the outer surface."""
    fissures_mm: tuple[np.ndarray, ...]
    """Distance to the wall of each great fissure, whose walls are cortex too."""


def folded_layer(
    anatomy: Anatomy, layer: Layer, *, radius_mm: float, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of the brain's substance is fluid and how much white matter, ``[P]`` each."""
    years = anatomy.age_years - _YOUNG_YEARS
    cortex = (
        EFFECTS["cortex_frac_of_radius.at_20"] + EFFECTS["cortex_frac_of_radius.per_year"] * years
    )
    thickness = (cortex - wave_sum(anatomy.fold_waves, layer.direction)) * np.float32(radius_mm)
    core = inside(layer.depth_mm - thickness, spacing_mm)
    fluid = (1 - core) * np.float32(_MEAN_FLUID_FRAC + _MEAN_FLUID_PER_YEAR * years)
    white = core + (1 - core) * np.float32(_MEAN_WHITE_FRAC)
    fine = float(np.clip((_COARSE_MM - spacing_mm) / (_COARSE_MM - _FINE_MM), 0, 1))
    if fine > 0:
        fine_fluid, fine_white = _folds(
            anatomy, layer, thickness, radius_mm=radius_mm, spacing_mm=spacing_mm
        )
        fluid += np.float32(fine) * (fine_fluid - fluid)
        white += np.float32(fine) * (fine_white - white)
    return fluid, white


def _folds(
    anatomy: Anatomy,
    layer: Layer,
    thickness: np.ndarray,
    *,
    radius_mm: float,
    spacing_mm: float,
) -> tuple[np.ndarray, np.ndarray]:
    years = anatomy.age_years - _YOUNG_YEARS
    fluid = np.zeros_like(layer.depth_mm)
    distance = layer.depth_mm.copy()
    near = np.flatnonzero(
        (layer.depth_mm > -spacing_mm)
        & (layer.depth_mm < thickness + np.float32(_RIBBON_MM + spacing_mm))
    )
    # Half radial: the sheets run inward from the surface, but not quite straight.
    radial = 0.5 + 0.5 * layer.rho[near]
    where = Points(*(part * radial for part in layer.direction.take(near)))
    rng = stream(anatomy.detail_seed, "sulci")
    across = np.minimum.reduce([_sheets(rng, where) for _ in range(_FIELDS)])
    across *= np.float32(radius_mm)
    floor = np.maximum(layer.depth_mm[near] - (thickness[near] - np.float32(_RIBBON_MM)), 0)
    sulcus = np.sqrt(across * across + floor * floor)
    half = _SULCUS_HALF_MM + _SULCUS_HALF_PER_YEAR_MM * years
    fluid[near] = within(sulcus, half, spacing_mm)
    distance[near] = np.minimum(distance[near], sulcus - np.float32(half))
    for wall in layer.fissures_mm:
        np.minimum(distance, wall, out=distance)
    white = inside(distance - np.float32(_RIBBON_MM), spacing_mm)
    return fluid, np.minimum(white, 1 - fluid)


def _sheets(rng: np.random.Generator, where: Points) -> np.ndarray:
    """Return the distance to the zeros of a new field."""
    waves = draw_waves(rng, _FIELD_WAVES, frequency=_FIELD_FREQUENCY, amplitude=1.0)
    spread = float(np.sqrt(np.square(waves[:, 4]).sum() / 2))
    slope = _LEAST_SLOPE_FRAC * spread * float(np.mean(_FIELD_FREQUENCY))
    return wave_level_mm(waves, where, least_slope=slope)
