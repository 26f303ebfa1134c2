"""Montages of volumes as PNG: each volume cut through the middle in three planes.

Volumes are ``image_BCDHW`` in [0, 1] with D H W the axes x y z of a RAS+ image: x to the patient's
right, y to the front, z to the top. Slices are shown as seen from above, from behind and from the
right, so that the patient's left is on the left of the picture.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image

from vitrael.core.checks import finite
from vitrael.core.errors import DataError

PLANES: Final = ("axial", "coronal", "sagittal")

_CELL_PX = 96
_GAP_PX = 4


def cut_planes(image_DHW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the axial, coronal and sagittal middle slice, rows from the top of the picture."""
    x, y, z = (size // 2 for size in image_DHW.shape)
    planes = (image_DHW[:, :, z], image_DHW[:, y, :], image_DHW[x, :, :])
    axial, coronal, sagittal = (np.flipud(plane.T) for plane in planes)
    return axial, coronal, sagittal


def draw_planes(image_BCDHW: np.ndarray) -> bytes:
    """Return a PNG with one column for each volume and one row for each of ``PLANES``."""
    _check(image_BCDHW)
    columns = [cut_planes(image_DHW) for image_DHW in image_BCDHW[:, 0]]
    return _arrange([[column[row] for column in columns] for row in range(len(PLANES))])


def draw_overview(image_BCDHW: np.ndarray, *, columns: int) -> bytes:
    """Return a PNG with the axial middle slice of every volume, row by row."""
    _check(image_BCDHW)
    slices = [cut_planes(image_DHW)[0] for image_DHW in image_BCDHW[:, 0]]
    return _arrange([slices[i : i + columns] for i in range(0, len(slices), columns)])


def _check(image_BCDHW: np.ndarray) -> None:
    if image_BCDHW.ndim != 5 or image_BCDHW.shape[1] != 1 or 0 in image_BCDHW.shape:  # noqa: PLR2004 - B C D H W
        raise DataError(
            f"images of shape {list(image_BCDHW.shape)} cannot be drawn",
            why="B, C, D, H, W with one channel is expected",
        )
    finite(images=image_BCDHW)


def _arrange(rows: list[list[np.ndarray]]) -> bytes:
    """Place slices on a grid of equal columns; what no slice covers stays transparent."""
    largest = max(max(s.shape) for row in rows for s in row)
    scale = max(1, round(_CELL_PX / largest))
    cell = largest * scale + _GAP_PX
    heights = [max(s.shape[0] for s in row) * scale + _GAP_PX for row in rows]
    width = max(len(row) for row in rows) * cell - _GAP_PX
    canvas = Image.new("LA", (width, sum(heights) - _GAP_PX), (0, 0))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, plane in enumerate(row):
            grey = Image.fromarray(np.round(np.clip(plane, 0, 1) * 255).astype(np.uint8))
            size = (plane.shape[1] * scale, plane.shape[0] * scale)
            enlarged = grey.resize(size, Image.Resampling.BICUBIC)
            left = column * cell + (cell - _GAP_PX - size[0]) // 2
            opaque = Image.new("L", size, 255)
            canvas.paste(Image.merge("LA", (enlarged, opaque)), (left, top))
        top += height
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return file.getvalue()
