"""A Scan: one image with its place in the world, carried together from file to file.

Axes: C channels, D H W the index axes x, y, z of a RAS+ image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine, check_affine

MAX_VOXELS = 512**3
"""Of one volume: more than any clinical brain scan; 512 MiB as float32."""

_CDHW_AXES = 4


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Scan:
    """One image, its voxel-to-world map, and what kind of picture it is.

    A Scan that exists is usable: the constructor runs ``check_scan``.
    """

    image_CDHW: np.ndarray
    """float32."""
    affine: Affine
    """[4, 4] float64, voxel index to RAS+ world in millimetres."""
    modality: str
    """BIDS suffix, such as ``T1w``."""

    def __post_init__(self) -> None:
        """Raise ScanError unless the scan can be used."""
        check_scan(self)

    def __repr__(self) -> str:
        """Show shape and modality, nothing of a patient."""
        shape = "x".join(str(size) for size in self.image_CDHW.shape)
        return f"Scan({shape}, {self.modality})"


def check_scan(scan: Scan) -> None:
    """Raise ScanError unless image and affine can be used; no value of the image is told.

    The image is float32 with the axes C, D, H, W, each of D, H, W at least 2 voxels; every value
    is finite; not all are equal; the affine is finite and not singular.
    """
    image = scan.image_CDHW
    if image.ndim != _CDHW_AXES:
        raise ScanError(
            f"the image has {image.ndim} axes", why="channels and three of space are expected"
        )
    if image.dtype != np.float32:
        raise ScanError(f"the image is {image.dtype}", why="float32 is expected")
    if image.shape[0] < 1 or min(image.shape[1:]) < 2:  # noqa: PLR2004 - a volume, not a slice
        raise ScanError(
            "the image is not a volume",
            why="an axis has fewer than 2 voxels",
            fix="give three-dimensional scans",
        )
    check_affine(scan.affine)
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # NaN and infinity reach min or max
        raise ScanError(
            "the image holds values that are not finite", fix="export the scan again without NaN"
        )
    if low == high:
        raise ScanError("the image is constant", why="every voxel has one and the same value")
