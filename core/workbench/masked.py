"""A scan on the grid of a model of which some voxels were not measured, and the mask that says so.

A mask is one NIfTI file on the model's grid; what is not 0 was not measured. It belongs to every
scan that lies where it lies. Axes: C channels, D H W.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import ndimage

from vitrael.core.data.brain_mask import bare_brain
from vitrael.core.data.nifti import read_mask
from vitrael.core.data.preprocess import scale_intensity
from vitrael.core.data.resample import above_background
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ConfigError, ScanError
from vitrael.core.workbench.inputs import demand_grid, demand_unit_range

if TYPE_CHECKING:
    from vitrael.core.geometry import Affine
    from vitrael.core.workbench.folder import ModelDocument

_TOLERANCE_MM: Final = 1e-3


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HiddenVoxels:
    """Which voxels of a grid were not measured, and where the grid lies."""

    hidden_DHW: np.ndarray
    """bool; neither all nor none."""
    affine: Affine


def read_hidden(path: Path, document: ModelDocument) -> HiddenVoxels:
    """Return the voxels that a file marks; ConfigError for one that cannot be a mask of the model.

    It cannot when it hides everything or nothing, or has another grid.
    """
    try:
        mask = read_mask(path)
        if mask is not None:
            demand_grid(mask, document, fix="draw the mask on the model's grid")
    except ScanError as error:
        why = f"{error.what}, {error.why}" if error.why else error.what
        constant = "the image is constant" in why
        raise ConfigError(
            "the mask hides everything" if constant else "the mask cannot be used",
            why="every voxel is marked" if constant else why.removeprefix(_CANNOT),
            fix="leave what was measured at 0" if constant else error.fix,
        ) from None
    except OSError as error:
        raise ConfigError(
            "the mask cannot be used", why=error.strerror or "it cannot be opened"
        ) from None
    if mask is None or mask.image_CDHW.all():
        raise ConfigError(
            "the mask hides nothing" if mask is None else "the mask hides everything",
            fix="mark what was not measured, and leave what was at 0",
        )
    return HiddenVoxels(mask.image_CDHW[0] != 0, mask.affine)


def place_masked(
    scan: Scan, hidden: HiddenVoxels, document: ModelDocument, *, prepared: bool = False
) -> np.ndarray:
    """Return a scan as ``[1, D, H, W]``, float32 in [0, 1], without a face, 0 where it is hidden.

    What stands in hidden voxels has no influence. Raises ScanError for a scan on another grid than
    the model's or elsewhere than the mask, and for one of which nothing is left.
    """
    demand_grid(scan, document, fix="bring it to the model's grid")
    if not np.allclose(scan.affine, hidden.affine, rtol=0, atol=_TOLERANCE_MM):
        raise ScanError("it does not lie where the mask lies", fix="give a mask of this scan")
    whole = _fill(scan, hidden.hidden_DHW)
    if prepared:
        demand_unit_range(whole)
        volume = np.clip(whole.image_CDHW[0], 0, 1)
    else:
        volume = scale_intensity(above_background(bare_brain(whole)[0].image_CDHW[0]))
    seen = np.where(hidden.hidden_DHW, np.float32(0), volume)
    if not seen.any():
        raise ScanError("the mask leaves nothing of it", fix="give a mask of this scan")
    return np.asarray(seen[None], dtype=np.float32)


def _fill(scan: Scan, hidden_DHW: np.ndarray) -> Scan:
    """Return the scan with the nearest measured voxel in each hidden one: a hole is no brain's."""
    nearest = ndimage.distance_transform_edt(
        hidden_DHW, return_distances=False, return_indices=True
    )
    return Scan(np.ascontiguousarray(scan.image_CDHW[:, *nearest]), scan.affine, "T1w")


_CANNOT: Final = "the mask cannot be used, "
