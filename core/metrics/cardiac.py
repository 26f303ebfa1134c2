"""Ejection fraction and volumes of the left ventricle by slice summation, from masks alone.

The measurer sees a mask of the cavity and the pixel spacing. It takes the largest connected piece,
finds the long axis as the axis of largest spread of the piece, cuts it into disks across this axis
and adds their volumes (the modified Simpson rule; Lang et al. 2015, J. Am. Soc. Echocardiogr.
28:1, section 1.1): ``pi / 4 * sum(width^2) * height`` from one plane, ``pi / 4 * sum(width_a *
width_b) * height`` from two. A mask is sampled twice as finely as its pixels, so that a turned
picture measures the same. Axes: T frames, H rows, W columns.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from vitrael.core.metrics.piece import measured_piece

DISKS = 20
"""Of the biplane rule, as the guideline has it."""
_ORGAN = "ventricle"
_FINER = 2.0


def ejection_fraction(
    mask_ed_HW: np.ndarray, mask_es_HW: np.ndarray, *, spacing_mm: tuple[float, float]
) -> float:
    """Return ``1 - ESV / EDV`` from one plane at end-diastole and end-systole.

    It is negative where the second mask holds more than the first. Raises DataError as
    ``disk_volume_ml``.
    """
    edv_ml = disk_volume_ml(mask_ed_HW, spacing_mm=spacing_mm)
    return 1 - disk_volume_ml(mask_es_HW, spacing_mm=spacing_mm) / edv_ml


def biplane_ejection_fraction(
    masks_ed: tuple[np.ndarray, np.ndarray],
    masks_es: tuple[np.ndarray, np.ndarray],
    *,
    spacings_mm: tuple[tuple[float, float], tuple[float, float]],
) -> float:
    """Return ``1 - ESV / EDV`` from two planes through the long axis, such as A4C and A2C."""
    edv_ml = biplane_volume_ml(masks_ed, spacings_mm=spacings_mm)
    return 1 - biplane_volume_ml(masks_es, spacings_mm=spacings_mm) / edv_ml


def disk_volume_ml(mask_HW: np.ndarray, *, spacing_mm: tuple[float, float]) -> float:
    """Return the volume of the body whose cuts across the long axis are disks.

    Raises DataError as ``measured_piece``.
    """
    width_N_mm, height_mm = _widths(mask_HW, spacing_mm)
    return float(math.pi / 4 * (width_N_mm**2).sum() * height_mm / 1000)


def biplane_volume_ml(
    masks: tuple[np.ndarray, np.ndarray],
    *,
    spacings_mm: tuple[tuple[float, float], tuple[float, float]],
) -> float:
    """Return the volume of 20 elliptic disks whose two diameters come from two planes.

    The height is that of the longer of the two axes; the second one is taken the way round in which
    its disks match those of the first. Of two equal planes it is ``disk_volume_ml``. Raises
    DataError as ``disk_volume_ml``.
    """
    profiles = [_widths(mask, s) for mask, s in zip(masks, spacings_mm, strict=True)]
    length_mm = max(len(width) * height for width, height in profiles)
    first, second = (_disks(width) for width, _ in profiles)
    across_mm2 = max((first * second).sum(), (first * second[::-1]).sum())
    return float(math.pi / 4 * across_mm2 * length_mm / DISKS / 1000)


def volume_curve_ml(mask_THW: np.ndarray, *, spacing_mm: tuple[float, float]) -> np.ndarray:
    """Return the volume of each frame ``[T]``: its largest is end-diastole, its smallest systole.

    Raises DataError as ``disk_volume_ml``.
    """
    return np.array([disk_volume_ml(mask, spacing_mm=spacing_mm) for mask in mask_THW])


def long_axis(
    mask_HW: np.ndarray, *, spacing_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return centre and unit direction (row, column) of the mask's long axis, in mm.

    The sign of the direction is the one that points down the picture. Raises DataError as
    ``disk_volume_ml``.
    """
    piece = measured_piece(mask_HW, spacing_mm=spacing_mm, organ=_ORGAN)
    place_N2_mm = np.argwhere(piece) * np.array(spacing_mm)
    centre = place_N2_mm.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((place_N2_mm - centre).T))
    axis = vectors[:, -1]
    return centre, axis if axis[0] >= 0 else -axis


def _widths(mask_HW: np.ndarray, spacing_mm: tuple[float, float]) -> tuple[np.ndarray, float]:
    """Return the widths across the long axis, from end to end of it, and their distance, mm."""
    piece = measured_piece(mask_HW, spacing_mm=spacing_mm, organ=_ORGAN)
    centre, axis = long_axis(piece, spacing_mm=spacing_mm)
    size = np.array(spacing_mm)
    step = float(size.min()) / _FINER
    offset_N2 = np.argwhere(piece) * size - centre
    across = np.array([-axis[1], axis[0]])
    reach = [np.abs(offset_N2 @ d).max() + 2 * size.max() for d in (axis, across)]
    along_mm, across_mm = (np.arange(-r, r + step, step) for r in reach)
    place = centre[:, None, None] + axis[:, None, None] * along_mm[None, :, None]
    place = (place + across[:, None, None] * across_mm[None, None, :]) / size[:, None, None]
    sampled = ndimage.map_coordinates(piece.astype(np.float32), place, order=1, cval=0.0)
    width_N_mm = sampled.sum(axis=1) * step
    inside = np.flatnonzero(width_N_mm > 0)
    return width_N_mm[inside[0] : inside[-1] + 1], step


def _disks(width_N: np.ndarray) -> np.ndarray:
    """Return the diameters of 20 disks that hold as much as the slices do that each replaces.

    One slice in five would be at the mercy of single pixels.
    """
    whole_N = np.concatenate([[0.0], np.cumsum(width_N**2)])
    edges = np.linspace(0, len(width_N), DISKS + 1)
    held = np.diff(np.interp(edges, np.arange(len(whole_N)), whole_N))
    return np.asarray(np.sqrt(held * DISKS / len(width_N)))
