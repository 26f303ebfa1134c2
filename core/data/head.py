"""Is a scan a head or a brain without its skull? Judged by what lies around the brain.

All is measured on an isotropic RAS+ grid of 2 mm, or of the scan's own finest spacing where that
is larger than 3 mm. A scan counts as stripped when every one of these holds.

1. *Size*: the foreground, closed and filled, has 300 to 2200 ml; the head of an adult has 2600
   and more.
2. *Border*: the image cuts it nowhere over more than 25 square centimetres; a neck has more.
3. *Shell*: along rays from the middle of the upper part outward, a thin bright layer (scalp)
   over a dark one (bone) is met last on at most a quarter of the rays.
4. *Rest*: outside it there is, after smoothing, no more than 50 ml that is brighter than 5 %.

On 60 public scans stripped by others at most 9 % of the rays met a shell, on 14 heads, some of
them defaced, at least 56 %. Voxels of 5 mm and more do not resolve the bone: there only the size
speaks. The measure is ours; no published source.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vitrael.core.data.morphology import (
    box_of,
    close_mask,
    dilate_mask,
    dilate_steps,
    erode_steps,
    largest_piece,
    middle_of,
)
from vitrael.core.data.resample import (
    above_background,
    find_foreground,
    percentile_of,
    resample_volume,
)
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine, spacing_mm

FINE_MM, COARSE_MM = 2.0, 3.0
LARGEST_BRAIN_ML = 2200.0
_SMALLEST_BRAIN_ML = 300.0

_MOST_VOX = 40_000_000
_CUT_CM2 = 25.0
_SHELL_FRAC = 0.25
_REST_ML, _REST_FRAC, _REST_MM = 50.0, 0.05, 6.0
_JOIN_MM = 8.0
_UPPER_MM = 110.0
_RAYS, _RAY_MM, _STEP_MM = 600, 140.0, 1.0
_CORE_MM = 60.0
_SCALP_MM, _BONE_MM = 16.0, 3.0
_SURFACE_FRACS = (0.15, 0.3)
_LEVEL_PERCENTILE = 80.0
_ROUNDING = 1e-4


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HeadView:
    """A scan on the grid on which it is judged, with the outline of what it shows."""

    volume_DHW: np.ndarray
    """float32, background 0."""
    affine: Affine
    voxel_mm: float
    outline_DHW: np.ndarray
    """bool: the largest piece of foreground, closed by 8 mm and filled."""
    field_DHW: np.ndarray
    """bool: what lies within the scan, whose own axes may be oblique to these."""

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return self.voxel_mm**3 / 1000

    @property
    def top(self) -> int:
        """Index of the outline's uppermost plane."""
        return int(np.flatnonzero(self.outline_DHW.any(axis=(0, 1)))[-1])

    def border(self) -> np.ndarray:
        """Return, as bool, the outermost voxels of the field."""
        return np.asarray(self.field_DHW & ~erode_steps(self.field_DHW))

    def shallow(self, depth_mm: float) -> np.ndarray:
        """Return, as bool, what lies outside the outline or less than ``depth_mm`` within it.

        Where the field cuts the outline is no surface.
        """
        outside = self.field_DHW & ~self.outline_DHW
        return dilate_mask(outside, np.nextafter(depth_mm, 0), voxel_mm=self.voxel_mm)

    def middle_vox(self) -> np.ndarray:
        """Return the centre of mass of the outline's upper 110 mm, which leaves out the neck."""
        lowest = max(0, self.top - round(_UPPER_MM / self.voxel_mm))
        return np.asarray(middle_of(self.outline_DHW[..., lowest:]) + np.array([0, 0, lowest]))


def view_head(scan: Scan) -> HeadView:
    """Return a scan on the grid on which it is judged.

    Raises ScanError when the scan shows nothing or is far larger than a head can be.
    """
    affine, shape, voxel_mm = _isotropic_grid(scan)
    volume = resample_volume(above_background(scan.image_CDHW[0]), scan.affine, affine, shape=shape)
    piece = largest_piece(dilate_steps(erode_steps(find_foreground(volume))))
    if not piece.any():
        raise ScanError("the scan shows no brain", why="nothing in it is larger than a few voxels")
    outline = close_mask(piece, _JOIN_MM, voxel_mm=voxel_mm)
    return HeadView(volume, affine, voxel_mm, outline, _field(scan, affine, shape))


def is_stripped(view: HeadView) -> bool:
    """Return whether the scan shows a brain without skull and scalp; see the module."""
    return (
        _SMALLEST_BRAIN_ML <= view.outline_DHW.sum() * view.voxel_ml <= LARGEST_BRAIN_ML
        and _largest_cut_cm2(view) <= _CUT_CM2
        and shell_share(view) <= _SHELL_FRAC
        and _rest_ml(view) <= _REST_ML
    )


def has_shell(view: HeadView) -> bool:
    """Return whether a thin bright layer over a dark one surrounds what the scan shows."""
    return shell_share(view) > _SHELL_FRAC


def shell_share(view: HeadView) -> float:
    """Return the share of rays that meet scalp over bone last, of those not far downward.

    Outward from the middle, in steps of 1 mm. The level of the brain is the 80th percentile of
    the inner 60 mm. The surface is where a ray is brighter than a share of it for the last time,
    once taken at 15 % and once at 30 %; the larger of the two results counts.
    """
    rays_3R = _directions()
    steps_vox = np.arange(0, _RAY_MM, _STEP_MM) / view.voxel_mm
    points = view.middle_vox()[:, None, None] + rays_3R[:, :, None] * steps_vox
    profile_RS = ndimage.map_coordinates(
        view.volume_DHW, points.reshape(3, -1), order=1, cval=0.0
    ).reshape(rays_3R.shape[1], -1)
    level = percentile_of(profile_RS[:, : round(_CORE_MM / _STEP_MM)], _LEVEL_PERCENTILE)
    return max(float(_meets_shell(profile_RS > frac * level).mean()) for frac in _SURFACE_FRACS)


def _isotropic_grid(scan: Scan) -> tuple[Affine, tuple[int, int, int], float]:
    finest = min(spacing_mm(scan.affine))
    voxel_mm = FINE_MM if finest <= COARSE_MM else finest
    last = np.array(scan.image_CDHW.shape[1:]) - 1
    corners_3N = np.indices((2, 2, 2)).reshape(3, -1) * last[:, None]
    world_3N = scan.affine[:3, :3] @ corners_3N + scan.affine[:3, 3:]
    low, high = world_3N.min(axis=1), world_3N.max(axis=1)
    counts = np.ceil((high - low) / voxel_mm - 1e-6) + 1
    if counts.prod() > _MOST_VOX:
        raise ScanError(
            "the scan is far larger than a head", fix="check the voxel size in the file's header"
        )
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = low
    x, y, z = (max(2, int(count)) for count in counts)
    return affine, (x, y, z), voxel_mm


def _field(scan: Scan, affine: Affine, shape: tuple[int, int, int]) -> np.ndarray:
    to_source = np.linalg.inv(scan.affine) @ affine
    last = np.array(scan.image_CDHW.shape[1:]) - 1
    field = np.ones(shape, dtype=bool)
    for axis in range(3):
        steps = to_source[axis, :3]
        index = to_source[axis, 3] + sum(
            (step * np.arange(size)).reshape([-1 if a == along else 1 for a in range(3)])
            for along, (step, size) in enumerate(zip(steps, shape, strict=True))
            if step  # most axes run along those of the scan
        )
        field &= (index > -_ROUNDING) & (index < last[axis] + _ROUNDING)
    return field


def _largest_cut_cm2(view: HeadView) -> float:
    cut = view.outline_DHW & view.border()
    if not cut.any():
        return 0.0
    labels, _ = ndimage.label(cut[box_of(cut)], np.ones((3, 3, 3)))
    return float(np.bincount(labels.ravel())[1:].max() * view.voxel_mm**2 / 100)


def _rest_ml(view: HeadView) -> float:
    bright = percentile_of(view.volume_DHW[view.outline_DHW], _LEVEL_PERCENTILE)
    sigma_vox = max(1.0, _REST_MM / view.voxel_mm)
    around = dilate_mask(view.outline_DHW, 2 * _REST_MM, voxel_mm=view.voxel_mm)
    rest = np.where(around, np.float32(0), view.volume_DHW)
    near = box_of(rest != 0, int(4 * sigma_vox) + 1)  # as far as the filter reaches
    smooth = ndimage.gaussian_filter(rest[near], sigma_vox, truncate=4.0)
    return float((smooth > np.float32(_REST_FRAC * bright)).sum() * view.voxel_ml)


def _directions() -> np.ndarray:
    """Return ``[3, R]`` unit vectors spread evenly (Fibonacci), none of them far downward."""
    index = np.arange(_RAYS) + 0.5
    polar, turn = np.arccos(1 - 2 * index / _RAYS), np.pi * (1 + 5**0.5) * index
    rays = np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)])
    return np.asarray(rays[:, rays[2] > -0.1])  # noqa: PLR2004 - below lies the neck


def _meets_shell(bright_RS: np.ndarray) -> np.ndarray:
    """Return, as bool ``[R]``, on which rays the last bright run is thin and lies over a gap."""
    inward = bright_RS[:, ::-1]
    steps = inward.shape[1]
    surface = inward.argmax(axis=1)
    reach = np.arange(steps)
    after = reach >= surface[:, None]
    gap = np.where(after & ~inward, reach, steps).min(axis=1)
    under = np.where((reach >= gap[:, None]) & inward, reach, steps).min(axis=1)
    scalp_mm, bone_mm = (gap - surface) * _STEP_MM, (under - gap) * _STEP_MM
    found = inward.any(axis=1) & (under < steps)
    return np.asarray(found & (scalp_mm <= _SCALP_MM) & (bone_mm >= _BONE_MM))
