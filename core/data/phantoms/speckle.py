"""How an echo becomes gray: scatterers, the point spread, the envelope, and log compression.

All arrays are on the grid of the beams, ``[..., R, A]``: R samples in depth, A beams. Scatterers
are complex Gaussian numbers. Those of a tissue hang on its own coordinates, so that speckle moves
with it. The envelope of many such scatterers has a Rayleigh distribution: mean over standard
deviation is 1.91 wherever the reflectivity is uniform (Wagner et al. 1983, IEEE Trans. Sonics
Ultrason. 30:156).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vitrael.core.errors import DataError

RAYLEIGH_SNR = 1.9131
"""sqrt(pi / (4 - pi))."""
CELL_STEPS = 1.5
"""Size of a scatterer's cell in steps of depth: smaller ones lose the tissue as it moves by parts
of a sample, larger ones show."""
_TABLE_BITS = 17
_STEPS = (73_856_093, 19_349_663, 83_492_791)
_REACH = 4.0
_ATTACHED, _FRESH = 0.85, 0.53
"""Amplitudes of what moves with the tissue and of what is new in each frame; powers sum to 1."""


@dataclass(frozen=True, slots=True)
class PointSpread:
    """Standard deviations of the point spread, in samples of the grid."""

    depth_px: float
    beam_px: float


def draw_scatterers(rng: np.random.Generator) -> np.ndarray:
    """Return a table of independent complex numbers of unit power, complex64."""
    return draw_noise(rng, (1 << _TABLE_BITS,))


def draw_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return independent complex Gaussian numbers of unit power, complex64."""
    pairs = rng.standard_normal((*shape, 2), dtype=np.float32)
    pairs *= np.float32(np.sqrt(0.5))
    return pairs.view(np.complex64)[..., 0]


def find_scatterers(
    table: np.ndarray, coordinates_mm: tuple[np.ndarray, ...], *, cell_mm: float
) -> np.ndarray:
    """Return the scatterer of the cell in which each point lies, complex64, shaped as the points.

    Two points share one where they lie in one cell, or so far apart that it does not matter.
    """
    place = np.zeros(coordinates_mm[0].shape, np.int32)
    for axis_mm, step in zip(coordinates_mm, _STEPS, strict=False):
        place += np.floor(axis_mm * np.float32(1 / cell_mm)).astype(np.int32) * np.int32(step)
    return np.asarray(table[place & np.int32(len(table) - 1)])


def mix_scatterers(
    attached_RA: np.ndarray, fresh_RA: np.ndarray, *, scale_R: np.ndarray, spread: PointSpread
) -> np.ndarray:
    """Return the field that has unit power once spread; ``scale_R`` as ``attached_scale`` says."""
    fresh = _FRESH / np.sqrt(_kept_power(spread.depth_px, 0.0) * _kept_power(spread.beam_px, 0.0))
    weight_R1 = (_ATTACHED * scale_R).astype(np.float32)[:, None]
    return np.asarray(attached_RA * weight_R1 + fresh_RA * np.float32(fresh))


def attached_scale(
    beam_gap_R_mm: np.ndarray, *, depth_step_mm: float, cell_mm: float, spread: PointSpread
) -> np.ndarray:
    """Return what attached scatterers are multiplied with, ``[R]``, to keep unit power at depth.

    Neighboring samples share a cell where the grid is finer than the cells, as it is near the
    probe; the spread then averages less away. ``beam_gap_R_mm`` is the distance between beams.
    """
    along = _kept_power(spread.depth_px, cell_mm / depth_step_mm)
    across_R = [_kept_power(spread.beam_px, cell_mm / float(gap)) for gap in beam_gap_R_mm]
    return np.asarray(1 / np.sqrt(along * np.array(across_R)), dtype=np.float32)


def envelope(field_RA: np.ndarray, spread: PointSpread) -> np.ndarray:
    """Return the magnitude of the spread field, float32."""
    if not np.iscomplexobj(field_RA):
        raise DataError("an envelope is of a complex field", fix="mix scatterers first")
    wide = ndimage.gaussian_filter1d(field_RA, spread.beam_px, axis=-1, truncate=_REACH)
    both = ndimage.gaussian_filter1d(wide, spread.depth_px, axis=-2, truncate=_REACH)
    return np.asarray(np.abs(both))


def compress(
    envelope_RA: np.ndarray, *, reference: float, range_db: float, gain_db: float
) -> np.ndarray:
    """Return gray in [0, 1]: decibels over ``reference`` plus gain, spread over the range."""
    floor = np.float32(1e-6 * reference)
    level = np.log10(np.maximum(envelope_RA, floor) * np.float32(1 / reference))
    gray = level * np.float32(20 / range_db) + np.float32(1 + gain_db / range_db)
    return np.asarray(np.clip(gray, 0, 1))


def _kept_power(sigma_px: float, shared_px: float) -> float:
    """Return the power that a Gaussian filter leaves of unit noise shared by so many samples."""
    reach = max(1, int(_REACH * sigma_px + 0.5))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    taps /= taps.sum()
    overlap = np.correlate(taps, taps, "full")
    lag = np.abs(np.arange(len(overlap)) - len(overlap) // 2)
    alike = np.maximum(1 - lag / shared_px, 0) if shared_px > 0 else (lag == 0).astype(float)
    return float(overlap @ alike)
