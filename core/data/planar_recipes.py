"""Clips and pictures, brought to a small square: the sector of an ultrasound, a whole X-ray.

Axes: T frames, H rows, W columns. An affine maps ``(column, row, 0)`` of the result to the world
of the source's plane: millimetres, or pixels where the source gives no spacing; see ``planar``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from vitrael.core.data.planar import Clip, Picture
from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine

CHANGE_LEVELS = 8
"""Gray levels by which a pixel must change over a clip to be part of the moving picture."""
SHORTEST_S = 0.5
LONGEST_FRAME_S = 0.1
WINDOW_PERCENTILES = (0.5, 99.5)
"""Of a picture, which become 0 and 1."""

_SMALLEST_SECTOR_FRAC = 0.05
_SAME_RATE_FRAC = 0.01
_FRAMES_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Square:
    """A square window of a source's plane, sampled by pixels of equal size."""

    first_mm: tuple[float, float]
    """World position (row, column) of the corner, half a pixel before the first centre."""
    edge_mm: float
    """Of the window; pixels of the source where ``unit`` is px."""
    pixels: int
    spacing: tuple[float, float]
    """Of the source, rows and columns; 1 where it gives none."""
    unit: Literal["mm", "px"]

    @property
    def affine(self) -> Affine:
        """``(column, row, 0)`` of the square to the plane's world."""
        step = self.edge_mm / self.pixels
        affine = np.diag([step, step, 1.0, 1.0])
        affine[0, 3] = self.first_mm[1] + step / 2
        affine[1, 3] = self.first_mm[0] + step / 2
        return affine


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PreparedClip:
    """The sector of a clip."""

    frames_THW: np.ndarray
    """uint8, 0 outside the sector."""
    sector_HW: np.ndarray
    """uint8 0 or 1."""
    square: Square
    frame_s: float
    """Between the frames as they are: the source's own where it was right within 1 %."""


def prepare_clip(clip: Clip, *, pixels: int, frame_s: float) -> PreparedClip:
    """Return the sector of a clip on ``pixels`` x ``pixels``, a frame every ``frame_s``.

    The sector (see ``find_sector``) is cut out with everything around it 0, padded to a square,
    and sampled with an antialiasing triangle filter. Times between two frames are interpolated
    linearly; a clip whose rate is right within 1 % keeps its frames as they are. Raises ScanError
    for a still, for a clip shorter than half a second or with fewer than 10 frames a second, and
    when no sector is found.
    """
    if clip.frames_THW.shape[0] < 2 or clip.frame_s is None:  # noqa: PLR2004 - it must move
        raise ScanError("the clip is a still", fix="give clips of at least one heartbeat")
    if clip.frame_s > LONGEST_FRAME_S:
        raise ScanError(
            "the clip has too few frames a second",
            why=f"at least {1 / LONGEST_FRAME_S:g} are needed",
            fix="give clips as the scanner recorded them",
        )
    if (clip.frames_THW.shape[0] - 1) * clip.frame_s < SHORTEST_S:
        raise ScanError(
            "the clip is too short",
            why=f"at least {SHORTEST_S:g} s are needed",
            fix="give clips of at least one heartbeat",
        )
    sector_HW = find_sector(clip.frames_THW)
    square = square_around(sector_HW, clip.spacing_mm, pixels=pixels)
    share_HW = sample_square(sector_HW[None].astype(np.float32), square)[0]
    small_HW = share_HW >= 0.5  # noqa: PLR2004 - a half
    weight_HW = np.where(small_HW, share_HW, np.float32(1))
    times, kept_s = _times_in_frames(clip.frames_THW.shape[0], clip.frame_s, frame_s=frame_s)
    frames_THW = np.zeros((len(times), pixels, pixels), dtype=np.uint8)
    for start in range(0, len(times), _FRAMES_AT_ONCE):
        part = slice(start, start + _FRAMES_AT_ONCE)
        source = _frames_at(clip.frames_THW, times[part]) * sector_HW
        frames = sample_square(source, square) / weight_HW
        frames_THW[part] = np.where(small_HW, np.clip(np.rint(frames), 0, 255), 0)
    return PreparedClip(frames_THW, small_HW.astype(np.uint8), square, kept_s)


def prepare_picture(picture: Picture, *, pixels: int) -> tuple[np.ndarray, Square]:
    """Return ``(image_HW, square)``: float32 in [0, 1], nothing of the picture cut off.

    The 0.5th percentile of all pixels becomes 0, the 99.5th becomes 1; the shorter side is padded
    by 0 to a square around the middle, which is sampled with an antialiasing triangle filter.
    """
    image = picture.image_HW
    low, high = np.percentile(image, WINDOW_PERCENTILES)
    if not low < high:  # a few bright pixels on one gray
        low, high = float(image.min()), float(image.max())
    scaled = np.clip((image.astype(np.float64) - low) / (high - low), 0, 1)
    whole_HW = np.ones(image.shape, dtype=bool)
    square = square_around(whole_HW, picture.spacing_mm, pixels=pixels)
    sampled = sample_square(scaled[None].astype(np.float32), square)[0]
    return np.clip(sampled, 0, 1).astype(np.float32), square


def find_sector(frames_THW: np.ndarray) -> np.ndarray:
    """Return, as bool ``[H, W]``, the convex hull of the largest piece that moves.

    A pixel moves when it spans at least 8 gray levels over the clip; single pixels are left out
    by an opening, gaps of a few pixels are closed. Text that stands still beside the sector is
    not part of it; text inside the hull is, and must be masked before. Raises ScanError when less
    than 5 % of the plane moves in one piece.
    """
    span = frames_THW.max(axis=0).astype(np.int16) - frames_THW.min(axis=0)
    moves = ndimage.binary_closing(np.pad(span >= CHANGE_LEVELS, 3), iterations=2)
    moves = ndimage.binary_opening(moves)[3:-3, 3:-3]
    labels, count = ndimage.label(moves, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=2)
    sizes[0] = 0
    if count == 0 or sizes.max() < _SMALLEST_SECTOR_FRAC * span.size:
        raise ScanError(
            "no ultrasound sector is found in the clip",
            why="too little of the picture moves",
            fix="give clips of a moving organ",
        )
    return _fill_hull(labels == sizes.argmax())


def square_around(
    inside_HW: np.ndarray, spacing_mm: tuple[float, float] | None, *, pixels: int
) -> Square:
    """Return the smallest square window, around the middle, that holds all of a mask's pixels."""
    spacing = spacing_mm or (1.0, 1.0)
    bounds = []
    for axis in (0, 1):
        used = np.flatnonzero(inside_HW.any(axis=1 - axis))
        bounds.append(((used[0] - 0.5) * spacing[axis], (used[-1] + 0.5) * spacing[axis]))
    edge = max(high - low for low, high in bounds)
    top, left = ((low + high - edge) / 2 for low, high in bounds)
    unit: Literal["mm", "px"] = "px" if spacing_mm is None else "mm"
    return Square((float(top), float(left)), float(edge), pixels, spacing, unit)


def sample_square(frames_THW: np.ndarray, square: Square) -> np.ndarray:
    """Return ``[T, pixels, pixels]`` float32: frames seen through a window, 0 beside them.

    Each output pixel is a mean under a triangle as wide as two pixels, of the source or of the
    result, whichever is larger: linear interpolation where the result is finer, an average over
    the pixel's neighbourhood where it is coarser.
    """
    weights_PH, weights_PW = (
        _triangle_weights(
            frames_THW.shape[1 + axis],
            first=square.first_mm[axis] / square.spacing[axis],
            step=square.edge_mm / square.pixels / square.spacing[axis],
            pixels=square.pixels,
        )
        for axis in (0, 1)
    )
    sampled: np.ndarray = weights_PH @ frames_THW.astype(np.float32, copy=False) @ weights_PW.T
    return sampled


def _triangle_weights(size: int, *, first: float, step: float, pixels: int) -> np.ndarray:
    """Return ``[pixels, size]``: rows sum to 1, and to 0 where the centre is beside the source."""
    centre_P = first + step * (np.arange(pixels) + 0.5)
    width = max(1.0, step)
    weights = np.clip(1 - np.abs(np.arange(size) - centre_P[:, None]) / width, 0, None)
    weights[np.abs(centre_P - (size - 1) / 2) > size / 2] = 0
    total = weights.sum(axis=1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1), dtype=np.float32)


def _times_in_frames(frames: int, source_s: float, *, frame_s: float) -> tuple[np.ndarray, float]:
    """Return when the new frames are taken, in frames of the source, and the time between them."""
    step = frame_s / source_s
    if abs(step - 1) <= _SAME_RATE_FRAC:
        return np.arange(frames, dtype=np.float64), source_s
    last = int(np.floor((frames - 1) / step + 1e-6))
    return np.minimum(np.arange(last + 1) * step, frames - 1), frame_s


def _frames_at(frames_THW: np.ndarray, times_T: np.ndarray) -> np.ndarray:
    before = np.floor(times_T).astype(int)
    after = np.minimum(before + 1, frames_THW.shape[0] - 1)
    share_T11 = (times_T - before)[:, None, None].astype(np.float32)
    first = np.asarray(frames_THW[before], dtype=np.float32)
    if not share_T11.any():
        return first
    return np.asarray(first + share_T11 * (frames_THW[after] - first))


def _fill_hull(mask_HW: np.ndarray) -> np.ndarray:
    """Return, as bool, the pixels whose centres lie within the convex hull of a mask's pixels."""
    rows = np.flatnonzero(mask_HW.any(axis=1))
    first = mask_HW[rows].argmax(axis=1)
    last = mask_HW.shape[1] - 1 - mask_HW[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([rows, first], 1), np.stack([rows, last], 1)])
    corners = np.concatenate([ends + shift for shift in ([0.4, 0], [-0.4, 0], [0, 0.4], [0, -0.4])])
    hull = ConvexHull(corners)
    row, column = np.indices(mask_HW.shape)
    inside = np.ones(mask_HW.shape, dtype=bool)
    for a, b, c in np.unique(np.round(hull.equations, 12), axis=0):
        inside &= a * row + b * column + c <= 0
    return inside
