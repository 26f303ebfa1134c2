"""The plane of the probe: beams, samples in depth, and the picture they are converted to.

Plane coordinates are millimetres: *across*, to the right of the picture, and *depth*, downward,
from the point where the beams of a sector meet. A linear probe has parallel beams. Axes: R samples
in depth, A beams, H rows, W columns, P pixels inside the sector in row order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from vitrael.core.errors import DataError

_BEAMS_PER_PX, _SAMPLES_PER_PX = 1.0, 1.25
_LEAST_EDGE_PX = 16


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Sector:
    """Where the samples of the beams and the pixels of the picture lie."""

    depth_R_mm: np.ndarray
    """Way along the beam, from the point where beams meet; of a linear probe, from its face."""
    beam_A: np.ndarray
    """Angle of each beam in radians, positive to the right; of a linear probe, its place in mm."""
    sample_2RA_mm: np.ndarray
    """Across and depth of each sample, float32."""
    pixel_2P_mm: np.ndarray
    """Across and depth of each pixel inside, float32."""
    sector_HW: np.ndarray
    """bool: where the picture shows the body."""
    spacing_mm: tuple[float, float]
    """Of rows and columns."""
    origin_px: tuple[float, float]
    """Row and column of the origin of the plane coordinates."""
    diverging: bool
    weights: sparse.csr_matrix
    """``[P, R * A]``: bilinear interpolation from samples to pixels."""

    @property
    def depth_step_mm(self) -> float:
        """Way between two samples of a beam."""
        return float(self.depth_R_mm[1] - self.depth_R_mm[0])

    @property
    def beam_gap_mm(self) -> np.ndarray:
        """Distance between neighboring beams at each depth, ``[R]``."""
        step = float(self.beam_A[1] - self.beam_A[0])
        return self.depth_R_mm * step if self.diverging else np.full(len(self.depth_R_mm), step)


def make_sector(
    *,
    edge_px: int,
    angle_rad: float,
    reach_mm: tuple[float, float],
    tilt_rad: float = 0.0,
    fill_frac: float = 0.92,
    aspect: float = 1.0,
) -> Sector:
    """Return a sector that stands in a square picture with its point up.

    ``reach_mm`` is the first and last depth; the last takes ``fill_frac`` of the picture's height.
    ``tilt_rad`` turns it to the right; ``aspect`` is the width of a pixel over its height. What is
    wider than the picture is cut off. Raises DataError for a picture below 16 pixels.
    """
    _check_edge(edge_px)
    near, far = reach_mm
    row_mm = far / (fill_frac * edge_px)
    column_mm = row_mm * aspect
    origin_px = ((1 - fill_frac) / 2 * edge_px - 0.5, (edge_px - 1) / 2)
    row, column = np.mgrid[:edge_px, :edge_px]
    across, depth = (column - origin_px[1]) * column_mm, (row - origin_px[0]) * row_mm
    radius, turn = np.hypot(across, depth), np.arctan2(across, depth) - tilt_rad
    inside_HW = (radius >= near) & (radius <= far) & (np.abs(turn) <= angle_rad / 2)
    inside_HW &= depth > 0
    depth_R = np.linspace(near, far, round(_SAMPLES_PER_PX * edge_px))
    beam_A = np.linspace(-angle_rad / 2, angle_rad / 2, round(_BEAMS_PER_PX * edge_px))
    cosine, sine = np.cos(beam_A + tilt_rad), np.sin(beam_A + tilt_rad)
    return Sector(
        depth_R_mm=depth_R,
        beam_A=beam_A + tilt_rad,
        sample_2RA_mm=np.stack([np.outer(depth_R, sine), np.outer(depth_R, cosine)]).astype("f4"),
        pixel_2P_mm=np.stack([across[inside_HW], depth[inside_HW]]).astype(np.float32),
        sector_HW=inside_HW,
        spacing_mm=(row_mm, column_mm),
        origin_px=origin_px,
        diverging=True,
        weights=_bilinear(radius[inside_HW], turn[inside_HW], depth_R, beam_A),
    )


def make_linear(*, edge_px: int, depth_mm: float, width_mm: float) -> Sector:
    """Return the field of a linear probe: it fills a square picture, whose pixels may not be."""
    _check_edge(edge_px)
    row_mm, column_mm = depth_mm / edge_px, width_mm / edge_px
    origin_px = (-0.5, (edge_px - 1) / 2)
    row, column = np.mgrid[:edge_px, :edge_px]
    across, depth = (column - origin_px[1]) * column_mm, (row - origin_px[0]) * row_mm
    depth_R = np.linspace(0.0, depth_mm, round(_SAMPLES_PER_PX * edge_px))
    beam_A = np.linspace(-width_mm / 2, width_mm / 2, round(_BEAMS_PER_PX * edge_px))
    sample_2RA = np.stack(np.broadcast_arrays(beam_A[None, :], depth_R[:, None]))
    return Sector(
        depth_R_mm=depth_R,
        beam_A=beam_A,
        sample_2RA_mm=sample_2RA.astype(np.float32),
        pixel_2P_mm=np.stack([across.ravel(), depth.ravel()]).astype(np.float32),
        sector_HW=np.ones((edge_px, edge_px), dtype=bool),
        spacing_mm=(row_mm, column_mm),
        origin_px=origin_px,
        diverging=False,
        weights=_bilinear(depth.ravel(), across.ravel(), depth_R, beam_A),
    )


def convert_scan(gray_RA: np.ndarray, sector: Sector) -> np.ndarray:
    """Return the picture ``[H, W]`` float32 of samples ``[R, A]``; 0 outside the sector."""
    picture_HW = np.zeros(sector.sector_HW.shape, np.float32)
    picture_HW[sector.sector_HW] = sector.weights @ gray_RA.ravel()
    return picture_HW


def to_pixels(point_2N_mm: np.ndarray, sector: Sector) -> np.ndarray:
    """Return rows and columns ``[N, 2]`` of points given by across and depth."""
    across, depth = point_2N_mm
    row = sector.origin_px[0] + depth / sector.spacing_mm[0]
    return np.stack([row, sector.origin_px[1] + across / sector.spacing_mm[1]], axis=-1)


def _check_edge(edge_px: int) -> None:
    if edge_px < _LEAST_EDGE_PX:
        raise DataError("the picture is too small", fix=f"ask for {_LEAST_EDGE_PX} pixels or more")


def _bilinear(
    depth_P: np.ndarray, beam_P: np.ndarray, depth_R: np.ndarray, beam_A: np.ndarray
) -> sparse.csr_matrix:
    rows, beams = len(depth_R), len(beam_A)
    i, row_part = _split((depth_P - depth_R[0]) / (depth_R[1] - depth_R[0]), rows)
    j, beam_part = _split((beam_P - beam_A[0]) / (beam_A[1] - beam_A[0]), beams)
    columns, weights = [], []
    for row, row_weight in ((i, 1 - row_part), (i + 1, row_part)):
        for beam, beam_weight in ((j, 1 - beam_part), (j + 1, beam_part)):
            columns.append(row * beams + beam)
            weights.append(row_weight * beam_weight)
    pointers = np.arange(0, 4 * len(depth_P) + 1, 4)
    data, index = np.stack(weights, -1).astype(np.float32), np.stack(columns, -1)
    shape = (len(depth_P), rows * beams)
    return sparse.csr_matrix((data.ravel(), index.ravel(), pointers), shape=shape)


def _split(place: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the whole and the remaining part, such that whole + 1 is still a sample."""
    whole = np.clip(np.floor(place), 0, count - 2).astype(np.int64)
    return whole, np.clip(place - whole, 0, 1)
