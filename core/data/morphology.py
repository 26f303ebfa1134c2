"""Masks grown, shrunk, closed, opened and filled: by millimetres, on isotropic voxels, or by steps.

Millimetres are exact Euclidean distances; a step goes to the six next voxels. All of it is worked
out within the box of the mask, which is much smaller than the image, and 64 voxels at once, each
of them one bit.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]
"""A part of an image along each axis."""

_MOST_LABEL, _MOST_LABELS = 4096, 16
_WORD_BITS = 64
_ONE, _LAST = np.uint64(1), np.uint64(_WORD_BITS - 1)


def what_is_marked(values_DHW: np.ndarray) -> np.ndarray:
    """Return, as bool, what a drawn mask marks.

    A few different whole numbers are labels, and each but 0 counts: of tumors parts are often drawn
    as 1, 2 and 4, of brains tissues as 1, 2 and 3. All else are shares, as resampling leaves them:
    what is above half of the largest counts.
    """
    most = float(values_DHW.max())
    if most <= _MOST_LABEL and values_DHW.min() >= 0:
        whole = values_DHW.astype(np.uint16)
        labels = np.count_nonzero(np.bincount(whole.ravel())) - 1
        if labels <= _MOST_LABELS and np.array_equal(values_DHW, whole):
            return np.asarray(whole > 0)
    return np.asarray(values_DHW > 0.5 * most)


def box_of(mask_DHW: np.ndarray, margin_vox: int = 0) -> Box:
    """Return the box of a mask and a margin, within the image; of an empty mask an empty box."""
    box: list[slice] = []
    for axis, size in enumerate(mask_DHW.shape):
        others = tuple(other for other in range(mask_DHW.ndim) if other != axis)
        places = np.flatnonzero(mask_DHW.any(axis=others))
        if not places.size:
            return (slice(0, 0),) * mask_DHW.ndim
        start, stop = int(places[0]) - margin_vox, int(places[-1]) + 1 + margin_vox
        box.append(slice(max(0, start), min(size, stop)))
    return tuple(box)


def erode_mask(mask_DHW: np.ndarray, depth_mm: float, *, voxel_mm: float) -> np.ndarray:
    """Return what lies deeper than ``depth_mm``; the border of the image is a surface."""
    eroded = np.zeros(mask_DHW.shape, dtype=bool)
    box = box_of(mask_DHW)
    outside = np.pad(~mask_DHW[box], 1, constant_values=True)
    inside = (slice(1, -1),) * mask_DHW.ndim
    eroded[box] = ~_within(outside, depth_mm, voxel_mm)[inside]
    return eroded


def dilate_mask(mask_DHW: np.ndarray, reach_mm: float, *, voxel_mm: float) -> np.ndarray:
    """Return what lies within ``reach_mm`` of a mask; an empty mask stays empty."""
    dilated = np.zeros(mask_DHW.shape, dtype=bool)
    box = box_of(mask_DHW, int(np.ceil(reach_mm / voxel_mm)))
    dilated[box] = _within(mask_DHW[box], reach_mm, voxel_mm)
    return dilated


def close_mask(mask_DHW: np.ndarray, radius_mm: float, *, voxel_mm: float) -> np.ndarray:
    """Return a mask with all gaps closed that are narrower than twice the radius, and filled."""
    closed = np.zeros(mask_DHW.shape, dtype=bool)
    if not mask_DHW.any():
        return closed
    box = box_of(mask_DHW)
    margin = int(np.ceil(radius_mm / voxel_mm)) + 1
    wide = dilate_mask(np.pad(mask_DHW[box], margin), radius_mm, voxel_mm=voxel_mm)
    inside = (slice(margin, -margin),) * mask_DHW.ndim
    closed[box] = fill_holes(erode_mask(wide, radius_mm, voxel_mm=voxel_mm)[inside])
    return closed


def open_mask(mask_DHW: np.ndarray, radius_mm: float, *, voxel_mm: float) -> np.ndarray:
    """Return a mask without the parts that are thinner than twice the radius."""
    eroded = erode_mask(mask_DHW, radius_mm, voxel_mm=voxel_mm)
    return np.asarray(dilate_mask(eroded, radius_mm, voxel_mm=voxel_mm) & mask_DHW)


def erode_steps(mask_DHW: np.ndarray, steps: int = 1) -> np.ndarray:
    """Return a mask without its outermost voxels, so many times; outside the image is nothing."""
    return ~_spread(np.pad(~mask_DHW, 1, constant_values=True), steps)[
        (slice(1, -1),) * mask_DHW.ndim
    ]


def dilate_steps(mask_DHW: np.ndarray, steps: int = 1) -> np.ndarray:
    """Return a mask with the voxels next to it, so many times."""
    return _spread(mask_DHW, steps)


def fill_holes(mask_DHW: np.ndarray) -> np.ndarray:
    """Return a mask with all from which no way leads by steps to the border of the image."""
    labels, count = ndimage.label(~mask_DHW)
    is_open = np.zeros(count + 1, dtype=bool)
    for axis in range(mask_DHW.ndim):
        is_open[labels.take([0, -1], axis=axis)] = True
    is_open[0] = False
    return np.asarray(~is_open[labels])


def largest_piece(mask_DHW: np.ndarray) -> np.ndarray:
    """Return the largest connected piece of a mask."""
    box = box_of(mask_DHW)
    labels, count = ndimage.label(mask_DHW[box])
    if count <= 1:
        return mask_DHW
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    piece = np.zeros(mask_DHW.shape, dtype=bool)
    piece[box] = labels == sizes.argmax()
    return piece


def middle_of(mask_DHW: np.ndarray) -> np.ndarray:
    """Return the mean index of a mask along each axis; it must not be empty."""
    middle = []
    for axis in range(mask_DHW.ndim):
        others = tuple(other for other in range(mask_DHW.ndim) if other != axis)
        count_N = np.count_nonzero(mask_DHW, axis=others)
        middle.append((count_N * np.arange(len(count_N))).sum() / count_N.sum())
    return np.array(middle)


def _within(mask_DHW: np.ndarray, reach_mm: float, voxel_mm: float) -> np.ndarray:
    """Return what lies within a distance of a mask: a ball on each of its voxels, row by row."""
    squares = np.arange((int(reach_mm / voxel_mm) + 2) ** 2)
    most = int(np.flatnonzero(np.sqrt(squares) * voxel_mm <= reach_mm)[-1])
    reach = math.isqrt(most)
    rows = [_pack(mask_DHW)]
    for _ in range(reach):
        rows.append(_widen(rows[-1]))
    found = np.zeros_like(rows[0])
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if (left := most - down**2 - right**2) >= 0:
                to = _shifted(down), _shifted(right)
                found[to] |= rows[math.isqrt(left)][_shifted(-down), _shifted(-right)]
    return _unpack(found, mask_DHW.shape[-1])


def _spread(mask_DHW: np.ndarray, steps: int) -> np.ndarray:
    bits = _pack(mask_DHW)
    for _ in range(steps):
        before, bits = bits, _widen(bits)
        for there, here in ((slice(1, None), slice(-1)), (slice(-1), slice(1, None))):
            bits[there] |= before[here]
            bits[:, there] |= before[:, here]
    return _unpack(bits, mask_DHW.shape[-1])


def _shifted(step: int) -> slice:
    """Return the part of an axis that lies ``step`` after a part of the same size."""
    return slice(step, None) if step >= 0 else slice(step)


def _pack(mask_DHW: np.ndarray) -> np.ndarray:
    """Return a mask as bits of whole words along the last axis."""
    missing = -mask_DHW.shape[-1] % _WORD_BITS
    padded = np.pad(mask_DHW, ((0, 0), (0, 0), (0, missing)))
    return np.packbits(padded, axis=-1, bitorder="little").view("<u8")


def _unpack(bits: np.ndarray, size: int) -> np.ndarray:
    bytes_ = np.unpackbits(bits.view(np.uint8), axis=-1, count=size, bitorder="little")
    return np.asarray(bytes_.view(bool))


def _widen(bits: np.ndarray) -> np.ndarray:
    """Return bits with those next to them along the last axis."""
    wide = np.asarray(bits | (bits << _ONE) | (bits >> _ONE))
    wide[..., 1:] |= bits[..., :-1] >> _LAST
    wide[..., :-1] |= bits[..., 1:] << _LAST
    return wide
