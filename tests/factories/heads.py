"""Heads with a face whose brain is known: procedural ones, and label maps turned into T1 images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.phantoms.acquisition import STYLES, draw_acquisition
from vitrael.core.data.phantoms.brain import draw_anatomy, image_brain
from vitrael.core.data.phantoms.tissues import Tissue
from vitrael.core.data.scan import Scan
from vitrael.core.rng import stream

_WHITE = (2, 41, 7, 46, 16, 28, 60, 77, 85)
_FLUID = (24, 4, 43, 5, 44, 14, 15, 72)
_OUTER = {502: 0.3, 506: 0.22, 508: 0.4, 509: 0.35, 512: 0.8, 514: 0.3, 515: 0.1, 530: 0.5}
_CORD, _SINUS = 512, 514
_OUTSIDE = 500
"""Labels from here on are not of the brain: skull, skin, eyes and the like."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Head:
    """A T1-weighted head and what is known of it, on the scan's own grid."""

    scan: Scan
    brain_DHW: np.ndarray
    """bool: with ventricles and sulci."""
    face_DHW: np.ndarray
    """bool: skin, fat, muscle, eyes and bone."""


def phantom_head(seed: int, *, spacing_mm: float = 3.0) -> Head:
    """Return a procedural head."""
    rng = stream(seed, "head")
    anatomy = draw_anatomy(rng)
    acquisition = draw_acquisition(rng, style=STYLES["whole-head"])
    x, y, z = (round(edge / spacing_mm) for edge in (192, 240, 228))
    session = image_brain(anatomy, acquisition, grid_vox=(x, y, z), spacing_mm=spacing_mm)
    labels = session.truth.labels_DHW
    return Head(session.scans["T1w"], session.truth.brain_DHW, labels >= Tissue.SKULL)


def label_head(path: Path, seed: int) -> Head:
    """Return a head from a map of labels: intensities, noise and receive field by the seed."""
    label_scan = read_nifti(path)
    labels = label_scan.image_CDHW[0].astype(int)
    rng = stream(seed, "label-head")
    fat, muscle, marrow, skin = rng.uniform([0.2, 0.3, 0.2, 0.3], [1.3, 0.65, 1.2, 0.8])
    outer = {**_OUTER, 507: muscle, 511: skin, 516: marrow}
    level = np.zeros(labels.max() + 1)
    level[1:] = 0.6  # gray matter
    level[list(_WHITE)], level[list(_FLUID)] = 0.85, 0.18
    level[_OUTSIDE:] = [outer.get(label, 0.4) for label in range(_OUTSIDE, len(level))]
    image = level[labels]
    image[(labels == 507) & (_depth_mm(labels) < 10)] = fat
    image += rng.normal(0, 0.06, image.shape) * (labels > 0)
    image = ndimage.gaussian_filter(image, 0.45) * _field(rng, labels.shape)
    noise = rng.uniform(0.01, 0.06) * rng.normal(size=(2, *labels.shape))
    image = 1000 * np.hypot(image + noise[0], noise[1])
    tissue = (labels > 0) & (labels < _OUTSIDE) & (labels != _FLUID[0])
    closed = ndimage.binary_closing(np.pad(tissue, 6), iterations=3)
    brain = ndimage.binary_fill_holes(closed)[6:-6, 6:-6, 6:-6] & (labels > 0)
    return Head(
        Scan(image.astype(np.float32)[None], label_scan.affine, "T1w"),
        brain & (labels < _OUTSIDE),
        (labels >= _OUTSIDE) & (labels != _CORD) & (labels != _SINUS),
    )


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the overlap of two masks, 1 when they are the same."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def _depth_mm(labels: np.ndarray) -> np.ndarray:
    air, _ = ndimage.label(labels == 0)
    outside = air == air[0, 0, -1]
    return np.asarray(ndimage.distance_transform_edt(~outside) * 2)


def _field(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    coarse = ndimage.gaussian_filter(rng.normal(size=[size // 8 for size in shape]), 2)
    zoom = [size / small for size, small in zip(shape, coarse.shape, strict=True)]
    return np.exp(
        rng.uniform(0.1, 0.5) * ndimage.zoom(coarse / np.abs(coarse).max(), zoom, order=1)
    )
