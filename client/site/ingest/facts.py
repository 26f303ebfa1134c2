"""Facts of one item, measured in the worker that prepares it: sizes, intensities, a fingerprint.

They hold numbers of the image and nothing that a header says of a patient. They stay at the site.
Axes: C channels, D H W space (x, y, z of a RAS+ image), T frames, E fingerprint.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from pydantic import Field

from vitrael.core.configs import Section
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.recipes import Prepared, RecipeInput
from vitrael.core.data.scan import Scan
from vitrael.core.geometry import Affine, spacing_mm

Kind = Literal["volume", "clip", "picture"]
Plane = Literal["axial", "coronal", "sagittal", "isotropic"]

FINGERPRINT_SHAPE: Final[Mapping[Kind, tuple[int, ...]]] = {
    "volume": (8, 8, 8),
    "clip": (4, 12, 12),
    "picture": (12, 12),
}
MIRRORED_AXIS: Final[Mapping[Kind, int]] = {"volume": 0, "clip": 2, "picture": 1}
"""Of the fingerprint: the one from the left to the right of the picture."""

_MOST_VALUES = 500_000
"""Percentiles of a larger image are taken over about as many values at equal distances."""
_FOREGROUND = 0.05
_TISSUE_FRAC = 0.1
_THICK = 1.5
_INT16 = 32767
_FLAT = 1e-5
"""Differences of averages that are due to rounding."""


class ItemFacts(Section):
    """What was measured on one item, before and after it was prepared; JSON."""

    kind: Kind
    shape: tuple[int, ...]
    """Of the first source image: x y z in RAS+ order, frames rows columns, or rows columns."""
    spacing_mm: tuple[float, ...] | None = None
    """Along the same axes, without time; None where the source does not say."""
    orientation: str | None = None
    """Where the index axes of a volume point to in its file, such as ``LPS``; None for a series of
    slices, which has no such axes."""
    plane: Plane | None = None
    """How a volume was cut, told by the axis along which its voxels are longest."""
    frame_s: float | None = None
    source_percentiles: tuple[float, float, float]
    """1st, 50th, 99th, in the units of the source."""
    percentiles: tuple[float, float, float]
    """1st, 50th, 99th of the prepared image, which lies in [0, 1]."""
    foreground_frac: float = Field(ge=0, le=1)
    """Share of the prepared image, without what pads a picture, that is brighter than 0.05."""
    cut_frac: float = Field(default=0, ge=0, le=1)
    """Share of a brain that lay outside the grid and is lost; 0 for what is no brain."""
    fingerprint: str
    """``FINGERPRINT_SHAPE`` numbers, little-endian int16, base64; see ``read_fingerprint``."""

    def __repr__(self) -> str:
        """Show the kind alone: the fingerprint is an image of a patient."""
        return f"ItemFacts({self.kind})"

    __str__ = __repr__

    @property
    def slices(self) -> int | None:
        """How many slices a volume has along the axis in which it was cut."""
        if self.kind != "volume" or self.spacing_mm is None:
            return None
        return self.shape[int(np.argmax(self.spacing_mm))]

    @property
    def frames(self) -> int:
        """How many frames; 1 for what does not move."""
        return self.shape[0] if self.kind == "clip" else 1

    @property
    def extent_mm(self) -> tuple[float, ...] | None:
        """How far the source reaches along each axis of space."""
        if self.spacing_mm is None:
            return None
        sizes = self.shape[-len(self.spacing_mm) :]
        return tuple(size * step for size, step in zip(sizes, self.spacing_mm, strict=True))


def measure_facts(
    given: RecipeInput, prepared: Prepared, *, orientation: str | None = None
) -> ItemFacts:
    """Return the facts of an item; the first image speaks for a set of contrasts.

    ``orientation`` is that of the file: an image that was read lies in RAS+.
    """
    source = next(iter(given.images.values()))
    array = _array_of(source)
    image = prepared_image(prepared)
    affine = source.affine if isinstance(source, Scan) else None
    step = spacing_mm(source.affine) if isinstance(source, Scan) else source.spacing_mm
    return ItemFacts(
        kind=kind_of(prepared),
        shape=array.shape,
        spacing_mm=None if step is None else tuple(_significant(size) for size in step),
        orientation=orientation,
        plane=None if affine is None else _plane_of(affine),
        frame_s=source.frame_s if isinstance(source, Clip) else None,
        source_percentiles=_percentiles(array),
        percentiles=_percentiles(image),
        foreground_frac=_foreground_frac(image, array.shape, kind_of(prepared)),
        cut_frac=round(prepared.cut_frac, 4),
        fingerprint=fingerprint_of(image, kind_of(prepared)),
    )


def kind_of(prepared: Prepared) -> Kind:
    """Return what a prepared image is: bytes are a clip, three axes of floats a picture."""
    image = prepared.arrays["image"]
    if image.dtype == np.uint8:
        return "clip"
    return "volume" if image.ndim == 4 else "picture"  # noqa: PLR2004 - C, D, H, W


def prepared_image(prepared: Prepared) -> np.ndarray:
    """Return the prepared image as float32 in [0, 1] without the axis of channels.

    ``[D, H, W]``, the mean over the contrasts; ``[T, H, W]``; or ``[H, W]``.
    """
    image = prepared.arrays["image"]
    if kind_of(prepared) == "clip":
        return image.astype(np.float32) / np.float32(255)
    return image[0] if len(image) == 1 else np.asarray(image.mean(axis=0, dtype=np.float32))


def fingerprint_of(image: np.ndarray, kind: Kind) -> str:
    """Return an image's fingerprint: its area average on a coarse grid, without mean and gain.

    A volume is first moved so that the centroid of what is bright lies in the middle, because it
    has an empty margin; clips and pictures fill their frame and are not moved. A constant image
    has a fingerprint of zeros.
    """
    half = np.array(image.shape) / 2
    middle = _centroid(image) if kind == "volume" else half
    coarse = image
    for axis in reversed(range(image.ndim)):  # the last one leaves the fewest numbers soonest
        low, high = middle[axis] - half[axis], middle[axis] + half[axis]
        weight_NS = _overlap(image.shape[axis], low, high, FINGERPRINT_SHAPE[kind][axis])
        coarse = np.moveaxis(np.moveaxis(coarse, axis, -1) @ weight_NS.T, -1, axis)
    coarse = coarse.astype(np.float64) - coarse.mean(dtype=np.float64)
    largest = np.abs(coarse).max()
    steps = np.round(coarse / largest * _INT16) if largest > _FLAT else coarse * 0
    return base64.b64encode(steps.astype("<i2").tobytes()).decode("ascii")


def read_fingerprint(facts: ItemFacts) -> np.ndarray:
    """Return the fingerprint, float32 ``[E]``, of length 1 (or 0 for a constant image)."""
    steps = np.frombuffer(base64.b64decode(facts.fingerprint), dtype="<i2").astype(np.float32)
    length = float(np.linalg.norm(steps))
    return np.asarray(steps / np.float32(length or 1))


def _array_of(source: Scan | Clip | Picture) -> np.ndarray:
    if isinstance(source, Scan):
        return np.asarray(source.image_CDHW[0])
    return source.frames_THW if isinstance(source, Clip) else source.image_HW


def _percentiles(array: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.percentile(_sample(array), [1, 50, 99])
    return _significant(low), _significant(middle), _significant(high)


def _foreground_frac(image: np.ndarray, source: tuple[int, ...], kind: Kind) -> float:
    """Return the share that is bright; a picture was padded to the form of its grid with black."""
    filled = 1.0
    if kind == "picture":
        scale = min(edge / size for edge, size in zip(image.shape, source, strict=True))
        filled = float(np.prod([scale * size for size in source]) / image.size)
    return round(min(float((image > _FOREGROUND).mean()) / filled, 1.0), 4)


def _sample(array: np.ndarray) -> np.ndarray:
    step = max(1, array.size // _MOST_VALUES) | 1  # odd: rows of a power of two do not line up
    return np.asarray(array.ravel()[::step], dtype=np.float32)


def _plane_of(affine: Affine) -> Plane:
    steps = np.array(spacing_mm(affine))
    if steps.max() < _THICK * steps.min():
        return "isotropic"
    across = int(np.argmax(np.abs(affine[:3, int(np.argmax(steps))])))
    planes: tuple[Plane, ...] = ("sagittal", "coronal", "axial")
    return planes[across]


def _centroid(image: np.ndarray) -> np.ndarray:
    """Return the middle of what is bright along each axis, in voxels from the edge."""
    bright = np.maximum(image - np.float32(_TISSUE_FRAC * np.percentile(_sample(image), 99)), 0)
    middle = np.array(image.shape) / 2
    across, along = (bright.sum(axis=axis).astype(np.float64) for axis in (2, 0))
    profiles = (across.sum(axis=1), across.sum(axis=0), along.sum(axis=0))
    for axis, profile in enumerate(profiles):
        if profile.sum() > 0:
            middle[axis] = ((np.arange(len(profile)) + 0.5) * profile).sum() / profile.sum()
    return middle


def _overlap(size: int, low: float, high: float, cells: int) -> np.ndarray:
    """Return ``[cells, size]``: the share of each cell between low and high that a voxel covers."""
    edges = np.linspace(low, high, cells + 1)
    starts = np.arange(size)
    covered = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    return np.asarray(np.maximum(covered, 0) / ((high - low) / cells), dtype=np.float32)


def _significant(value: float) -> float:
    return float(f"{float(value):.5g}")
