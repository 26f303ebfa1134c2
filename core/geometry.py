"""Voxels and world: what an affine matrix says and must hold. World is RAS+ in millimetres."""

from __future__ import annotations

import numpy as np

from vitrael.core.errors import ScanError

Affine = np.ndarray
"""[4, 4] float64: homogeneous voxel index (x, y, z) to RAS+ world, millimetres."""


def check_affine(affine: Affine) -> None:
    """Raise ScanError unless the matrix is a finite, invertible voxel-to-world map."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ScanError("the affine is not a finite 4x4 matrix")
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:  # noqa: PLR2004 - singular to rounding
        raise ScanError("the affine is singular", fix="export the scan again with its geometry")


def spacing_mm(affine: Affine) -> tuple[float, float, float]:
    """Return the voxel size along the three index axes, millimetres."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def centered_affine(shape: tuple[int, int, int], *, spacing: float) -> Affine:
    """Return the RAS+ affine of an isotropic grid whose centre is the world origin."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    return affine


def voxel_volume_ml(affine: Affine) -> float:
    """Return the volume of one voxel in millilitres."""
    return float(abs(np.linalg.det(affine[:3, :3])) / 1000)
