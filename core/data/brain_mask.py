"""Where the brain is in a T1-weighted head, so that nothing else of the head is kept.

Method: threshold, erode, keep the piece in the middle, dilate within the threshold, close, fill;
the morphological school of brain extraction (Lemieux et al. 1999, Magn. Reson. Med. 42:127,
without its deformable steps). All on a 2 mm grid, in the upper 170 mm of the head.

1. *White level*: the 80th percentile within 45 mm of the middle of the head.
2. *Tissue*: 0.54 to 1.45 of that level, smoothed by a Gaussian of 1 mm: fluid and bone are darker.
3. For depths of 2.5, 3, 3.6, 4.2 and 5 mm: erode the tissue; take the piece with most voxels
   within 60 mm of the middle; dilate it by the depth and 2.5 mm within the tissue, close gaps of
   10 mm, fill holes, open by 3 mm.
4. The shallowest result that is plausible counts, never that of 5 mm: 700 to 2200 ml; at most 5 %
   of its surface on the border of the image; at most 10 % of it thinner than 16 mm; at most 2 % of
   it within 5 mm of the head's surface, where skin and face are, and that is taken off.
5. What hangs together with the brain by a bridge alone comes off when more is eroded. So at most
   1 % of the result may lie farther than 8 mm from that of 4.2 mm, and at most 6 % farther than
   15 mm from that of 5 mm.

A scan without a plausible result is refused; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy import ndimage

from vitrael.core.data.head import (
    COARSE_MM,
    LARGEST_BRAIN_ML,
    HeadView,
    has_shell,
    is_stripped,
    view_head,
)
from vitrael.core.data.morphology import (
    Box,
    box_of,
    close_mask,
    dilate_mask,
    erode_mask,
    erode_steps,
    largest_piece,
    open_mask,
    what_is_marked,
)
from vitrael.core.data.resample import background_level, percentile_of, resample_mask, support_of
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import voxel_volume_ml

STRIPPED, MASKED_BY_SITE, MASKED_HERE = (
    "without a skull as it came",
    "masked by the site's brain mask",
    "masked by the built-in brain extraction",
)
"""What was done about the face; one of these is in the notes of every prepared brain."""

_DEPTHS_MM = (2.5, 3.0, 3.6, 4.2)
_WITNESSES = ((4.2, 8.0, 0.01), (5.0, 15.0, 0.06))
"""Of which depth, how far from it in millimetres, and what share may lie farther."""
_REGROW_MM, _GAP_MM, _SPUR_MM = 2.5, 10.0, 3.0
_HEIGHT_MM, _LEVEL_MM, _NEAR_MM = 170.0, 45.0, 60.0
_LEVEL_PERCENTILE = 80.0
_TISSUE_FRACS = (0.54, 1.45)
_SMALLEST_ML = 700.0
_BORDER_FRAC, _THIN_FRAC, _THIN_MM, _SHALLOW_FRAC, _SHALLOW_MM = 0.05, 0.10, 8.0, 0.02, 5.0
_MASK_RANGE_ML = (200.0, 2500.0)
_MASK_INSIDE_FRAC = 0.8
_SUPPORT_MM = 2.0
_SHOWN_FRAC, _SHIFTED_FRAC = 0.8, 0.10


def bare_brain(scan: Scan, brain: Scan | None = None) -> tuple[Scan, str]:
    """Return a T1-weighted scan without a face, and which of the three ways was taken.

    With the site's ``brain`` mask, on a grid of its own, that mask is applied. A scan that shows
    no skull is returned as it is. From any other the built-in step takes the brain. Outside a
    mask every voxel is exactly 0. Raises ScanError when no way leads to a plausible brain.
    """
    if brain is not None:
        return _mask_by_site(scan, brain), MASKED_BY_SITE
    view = view_head(scan)
    if is_stripped(view):
        return scan, STRIPPED
    return apply_mask(scan, _to_grid_of(scan, view, _extract(view))), MASKED_HERE


def find_brain(scan: Scan, brain: Scan | None = None) -> tuple[np.ndarray, str]:
    """Return the brain as bool ``[D, H, W]`` on the scan's grid, and which way was taken.

    As ``bare_brain``; in a scan without a skull the brain is all that it shows, filled, and 2 mm
    around it.
    """
    if brain is not None:
        return place_mask(brain, scan), MASKED_BY_SITE
    view = view_head(scan)
    if is_stripped(view):
        support = dilate_mask(view.outline_DHW, _SUPPORT_MM, voxel_mm=view.voxel_mm)
        return _to_grid_of(scan, view, support), STRIPPED
    return _to_grid_of(scan, view, _extract(view)), MASKED_HERE


def extract_brain(scan: Scan) -> np.ndarray:
    """Return the brain of a T1-weighted head as bool ``[D, H, W]`` on the scan's own grid.

    Raises ScanError when no result of the method is plausible; see the module.
    """
    view = view_head(scan)
    return _to_grid_of(scan, view, _extract(view))


def place_mask(mask: Scan, scan: Scan) -> np.ndarray:
    """Return a site's mask as bool ``[D, H, W]`` on the grid of a scan, by world coordinates.

    Raises ScanError when it has not the volume of a brain or lies beside the scan.
    """
    inside = what_is_marked(mask.image_CDHW[0])
    mask_ml = float(inside.sum()) * voxel_volume_ml(mask.affine)
    shape = _volume_shape(scan)
    placed = resample_mask(inside, mask.affine, scan.affine, shape=shape)
    low, high = _MASK_RANGE_ML
    if not low <= mask_ml <= high:
        raise ScanError(
            "the brain mask is not that of a brain",
            why=f"a mask of {low:g} to {high:g} ml is accepted",
            fix="give a mask of the brain without skull and face",
        )
    if placed.sum() * voxel_volume_ml(scan.affine) < _MASK_INSIDE_FRAC * mask_ml:
        raise ScanError(
            "the brain mask does not lie over the scan",
            why="most of it is outside the image",
            fix="give the mask that was drawn on this scan",
        )
    return placed


def apply_mask(scan: Scan, mask_DHW: np.ndarray) -> Scan:
    """Return the scan less its background level, and exactly 0 outside the mask."""
    volume, box = scan.image_CDHW[0], support_of(mask_DHW)
    masked = np.zeros(volume.shape, np.float32)
    above = volume[box] - np.float32(background_level(volume))
    masked[box] = np.maximum(above, 0, out=above) * mask_DHW[box]
    if not masked[box].any():
        raise ScanError("the scan shows no brain", why="it is dark where its brain should be")
    return Scan(masked[None], scan.affine, scan.modality)


def demand_same_place(scan: Scan, brain_DHW: np.ndarray, *, brain_ml: float) -> None:
    """Raise ScanError unless a second contrast shows the brain where the mask of the first is.

    ``brain_DHW`` is on the scan's own grid, ``brain_ml`` the brain's whole volume. Something must
    be shown in at least 80 % of it; and in a head at most 10 % of it may lie within 5 mm of the
    surface, so that a shifted mask cannot keep a part of the face.
    """
    view = view_head(scan)
    mask = resample_mask(brain_DHW, scan.affine, view.affine, shape=_sizes(view.volume_DHW))
    shown_ml = float((mask & view.outline_DHW).sum()) * view.voxel_ml
    same = shown_ml >= _SHOWN_FRAC * brain_ml
    if same and not is_stripped(view):
        shallow_ml = float((mask & view.shallow(_SHALLOW_MM)).sum()) * view.voxel_ml
        same = shallow_ml <= _SHIFTED_FRAC * brain_ml
    if not same:
        raise ScanError(
            f"the {scan.modality} does not lie over the first image of the visit",
            why="it shows no brain where that one does",
            fix="give images of one visit that are aligned in world coordinates",
        )


def _mask_by_site(scan: Scan, brain: Scan) -> Scan:
    masked = apply_mask(scan, place_mask(brain, scan))
    if has_shell(view_head(masked)):
        raise ScanError(
            "the brain mask leaves skull or scalp in the scan",
            fix="give a mask of the brain without skull and face",
        )
    return masked


def _to_grid_of(scan: Scan, view: HeadView, mask: np.ndarray) -> np.ndarray:
    return resample_mask(mask, view.affine, scan.affine, shape=_volume_shape(scan))


def _volume_shape(scan: Scan) -> tuple[int, int, int]:
    return _sizes(scan.image_CDHW[0])


def _sizes(volume: np.ndarray) -> tuple[int, int, int]:
    x, y, z = volume.shape
    return x, y, z


def _extract(view: HeadView) -> np.ndarray:
    if view.voxel_mm <= COARSE_MM:
        window = _upper_part(view)
        shallow, border = view.shallow(_SHALLOW_MM)[window], view.border()[window]
        grow = _grower(view, window)
        beyond = [
            (~dilate_mask(grow(depth), reach_mm, voxel_mm=view.voxel_mm), share)
            for depth, reach_mm, share in _WITNESSES
        ]
        for depth in _DEPTHS_MM:
            candidate = grow(depth)
            if _is_plausible(candidate, shallow, border, view) and all(
                (candidate & far).sum() <= share * candidate.sum() for far, share in beyond
            ):
                found = np.zeros(view.volume_DHW.shape, dtype=bool)
                found[window] = candidate & ~shallow
                return found
    raise ScanError(
        "the face cannot be removed",
        why="no plausible brain is found in the scan",
        fix="give a brain mask, or the scan without its skull",
    )


def _upper_part(view: HeadView) -> Box:
    """Return the box of the head without what is more than 170 mm below its top."""
    x, y, z = box_of(view.outline_DHW)
    lowest = max(z.start, view.top - round(_HEIGHT_MM / view.voxel_mm))
    return x, y, slice(lowest, z.stop)


def _grower(view: HeadView, window: Box) -> Callable[[float], np.ndarray]:
    """Return what makes a brain of the tissue that is deeper than a number of millimetres."""
    voxel_mm = view.voxel_mm
    volume, head = view.volume_DHW[window], view.outline_DHW[window]
    start = np.array([part.start for part in window])
    x, y, z = (
        (np.arange(size) - middle) * voxel_mm
        for size, middle in zip(volume.shape, view.middle_vox() - start, strict=True)
    )
    middle_mm = np.sqrt(x[:, None, None] ** 2 + y[:, None] ** 2 + z**2)
    core = volume[(middle_mm < _LEVEL_MM) & head]
    white = percentile_of(core, _LEVEL_PERCENTILE) if core.size else np.inf
    smooth = ndimage.gaussian_filter(volume, 1.0 / voxel_mm)
    low, high = _TISSUE_FRACS
    near_middle = middle_mm < _NEAR_MM
    tissue = (smooth > low * white) & (smooth < high * white) & head

    @cache
    def grow(depth_mm: float) -> np.ndarray:
        labels, _ = ndimage.label(erode_mask(tissue, depth_mm, voxel_mm=voxel_mm))
        near = np.bincount(labels[near_middle], minlength=2)
        near[0] = 0
        seed = (labels == near.argmax()) & (labels > 0)
        grown = dilate_mask(seed, depth_mm + _REGROW_MM, voxel_mm=voxel_mm) & tissue
        closed = close_mask(largest_piece(grown), _GAP_MM, voxel_mm=voxel_mm)
        return largest_piece(open_mask(closed, _SPUR_MM, voxel_mm=voxel_mm))

    return grow


def _is_plausible(
    found: np.ndarray, shallow: np.ndarray, border: np.ndarray, view: HeadView
) -> bool:
    count = int(found.sum())
    if not _SMALLEST_ML <= count * view.voxel_ml <= LARGEST_BRAIN_ML:
        return False
    surface = int((found & ~erode_steps(found)).sum())
    thin = count - int(open_mask(found, _THIN_MM, voxel_mm=view.voxel_mm).sum())
    return (
        int((found & border).sum()) <= _BORDER_FRAC * surface
        and thin <= _THIN_FRAC * count
        and int((found & shallow).sum()) <= _SHALLOW_FRAC * count
    )
