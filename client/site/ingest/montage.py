"""Thumbnails of prepared items for the site's own report: PNG, gray, without any text.

A volume is cut through the middle in three planes, one row for each contrast: from above, from
behind, from the right, with the patient's left on the left of the picture. A clip shows its first
and its middle frame. Axes: C channels, D H W as x, y, z of a RAS+ image, T frames.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from PIL import Image

from vitrael.client.site.ingest.facts import kind_of
from vitrael.core.data.recipes import Prepared

EDGE_PX: Final = 96
_GAP_PX = 2
_MOST_ROWS = 3
_BYTE = 255


def thumbnail(prepared: Prepared) -> bytes:
    """Return a picture of an item as PNG; its longest edge is ``EDGE_PX`` in each plane."""
    image = prepared.arrays["image"]
    kind = kind_of(prepared)
    if kind == "clip":
        return _arrange([[image[0], image[len(image) // 2]]])
    if kind == "picture":
        return _arrange([[_to_bytes(image[0])]])
    return _arrange([_cut(image_DHW) for image_DHW in image[:_MOST_ROWS]])


def _cut(image_DHW: np.ndarray) -> list[np.ndarray]:
    x, y, z = (size // 2 for size in image_DHW.shape)
    planes = (image_DHW[:, :, z], image_DHW[:, y, :], image_DHW[x, :, :])
    return [_to_bytes(np.flipud(plane.T)) for plane in planes]


def _to_bytes(plane: np.ndarray) -> np.ndarray:
    return np.asarray(np.round(np.clip(plane, 0, 1) * _BYTE), dtype=np.uint8)


def _arrange(rows: list[list[np.ndarray]]) -> bytes:
    """Place the planes of a row side by side at one scale, each in a square."""
    scale = EDGE_PX / max(max(plane.shape) for row in rows for plane in row)
    step = EDGE_PX + _GAP_PX
    size = (max(len(row) for row in rows) * step - _GAP_PX, len(rows) * step - _GAP_PX)
    canvas = Image.new("L", size, 0)
    for i, row in enumerate(rows):
        for j, plane in enumerate(row):
            height, width = (max(1, round(edge * scale)) for edge in plane.shape)
            how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
            drawn = Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), how)
            corner = (j * step + (EDGE_PX - width) // 2, i * step + (EDGE_PX - height) // 2)
            canvas.paste(drawn, corner)
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return file.getvalue()
