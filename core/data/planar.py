"""Pictures in one plane: a Clip over time, a Picture without; both with their pixel spacing.

Axes: T frames, H rows, W columns. The plane's own world is millimetres along columns (x, to the
right) and rows (y, downward) from the centre of the first pixel; where the source gives no
spacing, it is pixels of the source.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrael.core.errors import ScanError

SPACING_RANGE_MM = (0.001, 50.0)
MOST_PIXELS = 512 << 20
"""Of one clip or picture, over all frames: half a gigabyte at one byte each."""
_LEAST_EDGE_PX = 8


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Clip:
    """Gray frames of one plane at equal intervals; one that exists is usable."""

    frames_THW: np.ndarray
    """uint8, at least one frame."""
    frame_s: float | None
    """Seconds from frame to frame; None for a still."""
    spacing_mm: tuple[float, float] | None
    """Of rows (down) and columns (right); None where the source does not say."""
    modality: str
    """``US`` for an ultrasound."""

    def __post_init__(self) -> None:
        """Raise ScanError unless the clip can be used."""
        frames = self.frames_THW
        if frames.ndim != 3 or frames.dtype != np.uint8:  # noqa: PLR2004 - T, H, W
            raise ScanError("the clip is not one gray byte a pixel", fix="export it as gray video")
        if frames.shape[0] < 1:
            raise ScanError("the clip has no frame", fix="export it again")
        _check_plane(frames.shape[1:], self.spacing_mm)
        if self.frame_s is not None and not 0 < self.frame_s <= 60:  # noqa: PLR2004 - a minute
            raise ScanError("the clip's frame time is absurd", fix="export it with its frame rate")
        if frames.shape[0] > 1 and self.frame_s is None:
            raise ScanError("the clip has no frame time", fix="export it with its frame rate")
        if int(frames.min()) == int(frames.max()):
            raise ScanError("the clip is constant", why="every pixel has one and the same value")

    def __repr__(self) -> str:
        """Show shape and modality, nothing of a patient."""
        return f"Clip({_sizes(self.frames_THW)}, {self.modality})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Picture:
    """One gray image of one plane; one that exists is usable."""

    image_HW: np.ndarray
    """float32, in the units of the source."""
    spacing_mm: tuple[float, float] | None
    """Of rows (down) and columns (right); None where the source does not say."""
    modality: str
    """DICOM's word, such as ``CR`` or ``DX``; ``OT`` where the source does not say."""

    def __post_init__(self) -> None:
        """Raise ScanError unless the picture can be used."""
        image = self.image_HW
        if image.ndim != 2 or image.dtype != np.float32:  # noqa: PLR2004 - H, W
            raise ScanError("the picture is not one gray value a pixel", fix="export it as gray")
        _check_plane(image.shape, self.spacing_mm)
        low, high = float(image.min()), float(image.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ScanError("the picture holds values that are not finite", fix="export it again")
        if low == high:
            raise ScanError("the picture is constant", why="every pixel has one and the same value")

    def __repr__(self) -> str:
        """Show shape and modality, nothing of a patient."""
        return f"Picture({_sizes(self.image_HW)}, {self.modality})"


def _check_plane(shape: tuple[int, ...], spacing_mm: tuple[float, float] | None) -> None:
    if min(shape) < _LEAST_EDGE_PX:
        raise ScanError(
            "the image is too small", why=f"an edge has fewer than {_LEAST_EDGE_PX} pixels"
        )
    low, high = SPACING_RANGE_MM
    if spacing_mm is not None and not all(low <= size <= high for size in spacing_mm):
        raise ScanError(
            "the header gives an absurd pixel size", why=f"{low:g} to {high:g} mm are read"
        )


def _sizes(array: np.ndarray) -> str:
    return "x".join(str(size) for size in array.shape)
