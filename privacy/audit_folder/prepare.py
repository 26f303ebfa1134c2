"""One image on the grid of an audit: the same for real and synthetic, one image at a time.

What is prepared depends on the stored values alone. Voxel size, origin and tilt, which a header
tells, do not enter: generators write synthetic volumes with any header or with none, and a copy
must not escape by one. So a volume is turned to the nearest RAS order, its own foreground is put
into a box that fills the grid along each axis, and its values are scaled by itself. A clip and a
picture are shown whole; nothing is found in them that another copy might show elsewhere.

Axes: C = 1, D H W the index axes x, y, z of a volume; frames, rows and columns of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.planar_recipes import (
    WINDOW_PERCENTILES,
    prepare_picture,
    sample_square,
    square_around,
)
from vitrael.core.data.resample import (
    BRIGHT_PERCENTILE,
    background_level,
    find_foreground,
    percentile_of,
    resample_volume,
)
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ConfigError, ScanError

Kind = Literal["picture", "clip", "volume"]

LEAST_VOX: Final = 8
"""Of a volume along each axis."""

_TRIM: Final = 0.005
"""Share of the foreground at each end of an axis that does not count for its box: specks."""
_MARGIN: Final = 0.05
"""Of the box's length, at each end: for what was trimmed."""
_TISSUE_FRAC: Final = 0.15
"""From here on, of the range of a volume, its outermost voxels are no background."""
_LONGEST_EDGE: Final = 512


@dataclass(frozen=True, slots=True)
class Grid:
    """To which size all images of an audit are brought."""

    edge_px: int = 64
    """Of a picture and of a frame, which are square."""
    frames: int = 16
    """Of a clip, evenly over its whole length."""
    edge_vox: int = 32
    """Of a volume, which is a cube."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a grid on which nothing could be told."""
        edges = (self.edge_px, self.edge_vox)
        if not all(LEAST_VOX <= edge <= _LONGEST_EDGE for edge in edges) or self.frames < 2:  # noqa: PLR2004 - it moves
            raise ConfigError(
                "the grid of the audit cannot be used",
                why=f"edges of {LEAST_VOX} to {_LONGEST_EDGE} and at least 2 frames are needed",
                fix="choose others",
            )

    def shape(self, kind: Kind) -> tuple[int, int, int]:
        """Return D, H, W of every image of a kind."""
        if kind == "volume":
            return (self.edge_vox,) * 3
        return (1 if kind == "picture" else self.frames, self.edge_px, self.edge_px)


def prepare_image(image: Scan | Clip | Picture, grid: Grid) -> np.ndarray:
    """Return ``[1, D, H, W]``, float32 in [0, 1]; no other image has any part in it.

    Raises ScanError for a clip of one frame, for a volume with an axis of fewer than 8 voxels, and
    for an image of which nothing is left on the grid.
    """
    if isinstance(image, Scan):
        prepared_DHW = _prepare_volume(image.image_CDHW[0], edge_vox=grid.edge_vox)
    elif isinstance(image, Clip):
        prepared_DHW = _prepare_clip(image.frames_THW, grid)
    else:
        plain = replace(image, spacing_mm=None)
        prepared_DHW = prepare_picture(plain, pixels=grid.edge_px)[0][None]
    low, high = float(prepared_DHW.min()), float(prepared_DHW.max())
    if not low < high:
        raise ScanError("the image is all but constant", why="nothing of it is left when small")
    return np.ascontiguousarray(prepared_DHW[None], dtype=np.float32)


def foreground_box(volume_DHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the box around the foreground begins, and its length, in voxels of each axis.

    Voxel i reaches from i to i + 1. Half a percent of the foreground lies outside at each end,
    then the box is widened by a twentieth of its length at each end.
    """
    inside = find_foreground(volume_DHW)
    ends_A2 = np.empty((3, 2))
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        reached_N = np.cumsum(np.concatenate([[0], np.count_nonzero(inside, axis=others)]))
        wanted = reached_N[-1] * np.array([_TRIM, 1 - _TRIM])
        ends_A2[axis] = np.interp(wanted, reached_N, np.arange(len(reached_N)))
    length_A = ends_A2[:, 1] - ends_A2[:, 0]
    return ends_A2[:, 0] - _MARGIN * length_A, (1 + 2 * _MARGIN) * length_A


def _prepare_volume(volume_DHW: np.ndarray, *, edge_vox: int) -> np.ndarray:
    if min(volume_DHW.shape) < LEAST_VOX:
        raise ScanError(
            "the volume is too thin",
            why=f"an axis has {min(volume_DHW.shape)} voxels, and {LEAST_VOX} are needed",
            fix="give whole volumes",
        )
    above_DHW = _above_surroundings(volume_DHW)
    if not above_DHW.any():
        raise ScanError("nothing of the volume stands out from its background")
    first_A, length_A = foreground_box(above_DHW)
    step_A = length_A / edge_vox
    target = np.diag([*step_A, 1.0])
    # From the ends of voxels to their centers; and one voxel further, for what is added around.
    target[:3, 3] = first_A + step_A / 2 - 0.5 + 1
    around_DHW = np.pad(above_DHW, 1, mode="edge")
    placed_DHW = resample_volume(around_DHW, np.eye(4), target, shape=(edge_vox,) * 3)
    bright = percentile_of(placed_DHW[find_foreground(placed_DHW)], BRIGHT_PERCENTILE)
    return np.clip(placed_DHW / np.float32(bright), 0, 1)


def _above_surroundings(volume_DHW: np.ndarray) -> np.ndarray:
    """Return a volume less its background, nothing below 0.

    That is the median of the outermost voxels, unless they are tissue, as in a slab.
    """
    low, high = (percentile_of(volume_DHW, percent) for percent in WINDOW_PERCENTILES)
    level = background_level(volume_DHW)
    if level > low + _TISSUE_FRAC * (high - low):
        level = low
    return np.maximum(volume_DHW - np.float32(level), np.float32(0))


def _prepare_clip(frames_THW: np.ndarray, grid: Grid) -> np.ndarray:
    length = len(frames_THW)
    if length < 2:  # noqa: PLR2004 - it must move
        raise ScanError("the clip is a still", fix="give it as a picture")
    chosen = np.rint(np.linspace(0, length - 1, grid.frames)).astype(int)
    whole_HW = np.ones(frames_THW.shape[1:], dtype=bool)
    square = square_around(whole_HW, None, pixels=grid.edge_px)
    inside_HW = sample_square(whole_HW[None], square)[0] > 0
    small_THW = sample_square(frames_THW[chosen], square)
    low, high = np.percentile(small_THW[:, inside_HW], WINDOW_PERCENTILES)
    if not low < high:  # a few bright pixels on one gray
        low, high = float(small_THW[:, inside_HW].min()), float(small_THW.max())
    if not low < high:
        raise ScanError("the clip is constant", why="its frames show nothing at this size")
    scaled_THW = np.clip((small_THW - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(scaled_THW * inside_HW)
