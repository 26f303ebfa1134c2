"""From one grid to another in world coordinates, and what of a volume is not background.

A grid whose axes run along those of the source, as most do, is reached one axis after the other:
each target plane is a weighted sum of a few source planes. All of it is float32 numbers multiplied
and added in a fixed order, so every machine gives the same bits. Only the part of a volume that is
not 0 is looked at.

Axes: D H W the index axes of a volume. World is RAS+ mm. J target planes along an axis, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine

Box = tuple[slice, ...]
"""A part of an image along each axis."""

FOREGROUND_FRAC = 0.15
"""Share of the bright level above which a voxel is foreground."""
BRIGHT_PERCENTILE = 99.0
"""Of the foreground: the bright level."""

_SIGMAS = 4.0
"""Where the Gaussian is cut off."""
_STRAIGHT_VOX = 1e-3
"""How far an axis may stray over a whole grid and still count as running along another one."""
_ROUNDING_VOX = 1e-6
"""What is nearer to a source voxel than this lies on it."""


def resample_volume(
    volume_DHW: np.ndarray, affine: Affine, target: Affine, *, shape: tuple[int, int, int]
) -> np.ndarray:
    """Return a volume at the voxels of another grid, 0 outside; world positions are kept.

    Before linear interpolation, a Gaussian of sigma (step - 1) / 2 source voxels is applied along
    each axis, where ``step`` is the target's spacing in voxels of the source; a finer grid needs
    none.
    """
    moved = np.zeros(shape, np.float32)
    box, part = _resample(volume_DHW, affine, target, shape=shape)
    moved[box] = part
    return moved


def resample_mask(
    mask_DHW: np.ndarray, affine: Affine, target: Affine, *, shape: tuple[int, int, int]
) -> np.ndarray:
    """Return, as bool, the voxels of another grid of which the mask fills at least a half."""
    placed = np.zeros(shape, bool)
    box, share = _resample(mask_DHW, affine, target, shape=shape)
    placed[box] = share >= np.float32(0.5)
    return placed


def support_of(volume_DHW: np.ndarray) -> Box:
    """Return the box of what is not 0; an empty one when all is."""
    box: list[slice] = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        part = volume_DHW[(*box, slice(None))]
        box.append(_run_of(np.any(part, axis=others)))
    return tuple(box)


def background_level(volume_DHW: np.ndarray) -> float:
    """Return the median of the outermost voxels."""
    faces = [np.take(volume_DHW, [0, -1], axis=axis).ravel() for axis in range(3)]
    return float(np.median(np.concatenate(faces)))


def above_background(volume_DHW: np.ndarray) -> np.ndarray:
    """Return the volume less its background level, nothing below 0; itself when it is that."""
    level = np.float32(background_level(volume_DHW))
    if level == 0 and volume_DHW.min() >= 0:
        return volume_DHW
    above = np.subtract(volume_DHW, level)
    return np.asarray(np.maximum(above, 0, out=above))


def percentile_of(values: np.ndarray, percent: float) -> float:
    """Return a percentile of some values, of which there is one at least; linear in between."""
    place = (values.size - 1) * percent / 100
    low = int(place)
    ordered = np.partition(values, low, axis=None)  # for one place alone it is several times faster
    below = float(ordered[low])
    if low == place:
        return below
    return below + (place - low) * (float(ordered[low + 1 :].min()) - below)


def find_foreground(volume_DHW: np.ndarray) -> np.ndarray:
    """Return, as bool, what is brighter than 15 % of the 99th percentile of all above 0.

    Raises ScanError when no voxel is above 0.
    """
    positive = volume_DHW[volume_DHW > 0]
    if positive.size == 0:
        raise ScanError("the scan shows no brain", why="nothing is brighter than the background")
    bright = percentile_of(positive, BRIGHT_PERCENTILE)
    return np.asarray(volume_DHW > np.float32(FOREGROUND_FRAC * bright))


class _Taps(NamedTuple):
    """What each target plane along one axis is made of."""

    run: slice
    """The target planes that the source reaches."""
    reached: slice
    """The source planes that they are made of."""
    index_KJ: np.ndarray
    """Of the source planes, from the first that is reached; any one where the weight is 0."""
    weight_KJ: np.ndarray
    """float32."""


def _resample(
    volume_DHW: np.ndarray, affine: Affine, target: Affine, *, shape: tuple[int, int, int]
) -> tuple[Box, np.ndarray]:
    """Return the box of the target grid that the volume reaches, and the values there, float32."""
    to_source = np.linalg.inv(affine) @ target
    step_vox = np.abs(to_source[:3, :3]).max(axis=1)
    sigma_vox = np.maximum(0, (step_vox - 1) / 2)
    support = support_of(volume_DHW)
    order = _straight(to_source, shape)
    if order is None:
        return _resample_obliquely(volume_DHW, to_source, sigma_vox, support, shape=shape)
    taps = [
        _taps_of(
            to_source[axis, 3] + to_source[axis, along] * np.arange(shape[along]),
            size=volume_DHW.shape[axis],
            support=support[axis],
            sigma=float(sigma_vox[axis]),
        )
        for axis, along in enumerate(np.argsort(order))
    ]
    return tuple(taps[axis].run for axis in order), _gather(volume_DHW, taps).transpose(order)


def _straight(to_source: Affine, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the source axis that each target axis runs along; None when one is oblique."""
    stray = np.abs(to_source[:3, :3]) * np.array(shape)
    order = tuple(int(axis) for axis in stray.argmax(axis=0))
    stray[list(order), range(3)] = 0
    return order if len(set(order)) == len(order) and stray.sum() <= _STRAIGHT_VOX else None


def _taps_of(place_J: np.ndarray, *, size: int, support: slice, sigma: float) -> _Taps:
    """Return the taps of a Gaussian and of linear interpolation; beyond the source all is 0."""
    nearest_J = np.rint(place_J)
    place_J = np.where(np.abs(place_J - nearest_J) < _ROUNDING_VOX, nearest_J, place_J)
    floor_J = np.floor(place_J)
    frac_J = place_J - floor_J
    reach = int(_SIGMAS * sigma + 0.5)
    offset = np.arange(-reach, reach + 1)
    bell = np.exp(-0.5 * (offset / sigma) ** 2) if reach else np.ones(1)
    bell /= bell.sum()
    index_KJ = floor_J.astype(np.intp) + np.arange(-reach, reach + 2)[:, None]
    weight_KJ = np.append(bell, 0)[:, None] * (1 - frac_J) + np.append(0, bell)[:, None] * frac_J
    weight_KJ *= (place_J >= 0) & (place_J <= size - 1)
    weight_KJ *= (index_KJ >= support.start) & (index_KJ < support.stop)
    run = _run_of(weight_KJ.any(axis=0))
    used = np.flatnonzero(weight_KJ.any(axis=1))
    index_KJ, weight_KJ = index_KJ[used, run], weight_KJ[used, run].astype(np.float32)
    reached = _run_of(np.bincount(index_KJ[weight_KJ > 0], minlength=size))
    last = max(0, reached.stop - reached.start - 1)
    return _Taps(run, reached, np.clip(index_KJ - reached.start, 0, last), weight_KJ)


def _run_of(found_N: np.ndarray) -> slice:
    """Return the run from the first to the last that is not 0; an empty one without any."""
    places = np.flatnonzero(found_N)
    return slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, 0)


def _gather(source_DHW: np.ndarray, taps: Sequence[_Taps]) -> np.ndarray:
    """Return weighted sums of planes, of rows and of columns, one target plane after the other."""
    result = np.zeros([each.weight_KJ.shape[1] for each in taps], np.float32)
    planes, rows, columns = taps
    source_DHW = source_DHW[planes.reached, rows.reached, columns.reached]
    if result.size:
        for to, index_K, weight_K in zip(
            result, planes.index_KJ.T, planes.weight_KJ.T, strict=True
        ):
            sheet = np.zeros(source_DHW.shape[1:], np.float32)
            for index, weight in zip(index_K, weight_K, strict=True):
                if weight:
                    sheet += source_DHW[index] * weight
            to[...] = _blend(_blend(sheet, rows, axis=0), columns, axis=1)
    return result


def _blend(sheet: np.ndarray, taps: _Taps, *, axis: int) -> np.ndarray:
    blended = np.zeros(1, np.float32)
    for index_J, weight_J in zip(taps.index_KJ, taps.weight_KJ, strict=True):
        part = sheet.take(index_J, axis=axis, mode="clip")
        part *= weight_J if axis else weight_J[:, None]
        blended = part + blended
    return blended


def _resample_obliquely(
    volume_DHW: np.ndarray,
    to_source: Affine,
    sigma_vox: np.ndarray,
    support: Box,
    *,
    shape: tuple[int, int, int],
) -> tuple[Box, np.ndarray]:
    """Return the same for axes that cross: filtered and interpolated by SciPy, within the boxes."""
    margins = [int(_SIGMAS * sigma + 0.5) + 1 for sigma in sigma_vox]
    near = tuple(
        slice(max(0, run.start - margin), min(size, run.stop + margin))
        for run, margin, size in zip(support, margins, volume_DHW.shape, strict=True)
    )
    start, stop = (np.array([getattr(run, end) for run in near]) for end in ("start", "stop"))
    corners_3N = np.indices((2, 2, 2)).reshape(3, -1) * (stop - 1 - start)[:, None] + start[:, None]
    reached_3N = np.linalg.inv(to_source[:3, :3]) @ (corners_3N - to_source[:3, 3:])
    first = np.clip(np.floor(reached_3N.min(axis=1)), 0, shape).astype(int)
    last = np.clip(np.ceil(reached_3N.max(axis=1)) + 1, first, shape).astype(int)
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    if not (last > first).all() or not (stop > start).all():
        return box, np.zeros([b - a for a, b in zip(first, last, strict=True)], np.float32)
    source = volume_DHW[near].astype(np.float32, copy=False)
    if sigma_vox.any():
        source = ndimage.gaussian_filter(source, sigma_vox, mode="constant", truncate=_SIGMAS)
    matrix = to_source[:3, :3]
    moved: np.ndarray = ndimage.affine_transform(
        source,
        matrix,
        matrix @ first + to_source[:3, 3] - start,
        output_shape=tuple(last - first),
        order=1,
    )
    return box, moved
