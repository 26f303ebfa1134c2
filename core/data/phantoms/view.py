"""A phantom head in the scanner: which tissues lie at the points of a grid.

Axes: D H W index axes x, y, z of the grid, P points that are looked at, K tissues.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrael.core.data.phantoms.acquisition import Acquisition
from vitrael.core.data.phantoms.anatomy import Anatomy, semi_axes_mm
from vitrael.core.data.phantoms.forms import Points, rotation_of, turn
from vitrael.core.data.phantoms.head import add_head
from vitrael.core.data.phantoms.lesions import Lesions, place_lesions
from vitrael.core.data.phantoms.tissues import Mixture, mix_tissues, reach_of_surface
from vitrael.core.geometry import Affine, centered_affine


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Grid:
    """Where a scanner looks: world millimetres along three axes."""

    affine: Affine
    axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]
    spacing_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """D, H, W."""
        depth, height, width = (len(axis) for axis in self.axes_mm)
        return depth, height, width


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class View:
    """Tissues at those points of a grid where there are any."""

    grid: Grid
    index_P: np.ndarray
    """Into the flat grid."""
    head: Points
    mixture: Mixture

    def spread(self, value_P: np.ndarray) -> np.ndarray:
        """Return ``[D, H, W]``, zero where nothing was looked at."""
        image = np.zeros(self.grid.shape, dtype=value_P.dtype)
        image.reshape(-1)[self.index_P] = value_P
        return image


def center_grid(shape: tuple[int, int, int], spacing_mm: float) -> Grid:
    """Return an isotropic grid whose center is the world origin."""
    affine = centered_affine(shape, spacing=spacing_mm)
    x, y, z = (affine[i, 3] + spacing_mm * np.arange(n) for i, n in enumerate(shape))
    return Grid(affine, (x, y, z), spacing_mm)


def axial_plane(grid_px: tuple[int, int], spacing_mm: float, *, height_mm: float) -> Grid:
    """Return a grid of one axial slice at a height; ``grid_px`` is H, W of the upright picture."""
    rows, columns = grid_px
    grid = center_grid((columns, rows, 1), spacing_mm)
    x, y, _ = grid.axes_mm
    return Grid(grid.affine, (x, y, np.array([height_mm])), spacing_mm)


def look(anatomy: Anatomy, acquisition: Acquisition, lesions: Lesions, grid: Grid) -> View:
    """Return the tissues of a patient as he lies in the scanner."""
    x, y, z = (
        (axis - shift).astype(np.float32)
        for axis, shift in zip(grid.axes_mm, acquisition.shift_mm, strict=True)
    )
    whole = Points(x[:, None, None], y[:, None], z)
    head = turn(whole, rotation_of(acquisition.rotation_rad))
    index_P = np.arange(head.x.size)
    if not acquisition.head:
        reach = reach_of_surface(anatomy)
        scaled = (
            part / np.float32(axis * reach + grid.spacing_mm)
            for part, axis in zip(head, semi_axes_mm(anatomy), strict=True)
        )
        index_P = np.flatnonzero(sum(part * part for part in scaled) < 1)
    head = Points(*(part.reshape(-1)[index_P] for part in head))
    mixture = mix_tissues(anatomy, head, spacing_mm=grid.spacing_mm)
    place_lesions(lesions, head, mixture, spacing_mm=grid.spacing_mm)
    if acquisition.head:
        add_head(anatomy, head, mixture, spacing_mm=grid.spacing_mm)
    return View(grid, index_P, head, mixture)
