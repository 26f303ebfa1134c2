"""A scan of thick slices beside the grid of a model: along which axis, how thick, and where.

Two grids belong together: that of the model, and one whose voxels are ``factor`` of its voxels
along one axis. The model's grid runs along the scan's own slices, as most thick ones are tilted to
follow the head. It lies around the brain and is moved by at most half a slice, so that the thick
slices of its grid are the slices that were acquired; where they cannot all be, because they are
stretched, they are so in the middle of the grid. Slices that are thin, with gaps between them, are
each one slice of the model's grid. Axes: D H W, x y z of RAS+.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from vitrael.core.data.brain_mask import bare_brain
from vitrael.core.data.preprocess import center_brain, scale_intensity
from vitrael.core.data.resample import above_background, find_foreground, resample_volume
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine, spacing_mm
from vitrael.core.workbench.inputs import demand_unit_range, demand_whole

if TYPE_CHECKING:
    from vitrael.core.workbench.folder import ModelDocument

AxisName = Literal["left-right", "front-back", "up-down"]
AXES: Final[tuple[AxisName, ...]] = ("left-right", "front-back", "up-down")
"""Of RAS+ images, in order."""

ProfileName = Literal["thick", "thin"]
"""What a slice shows: the mean over its distance to the next, or one slice of the model alone."""

_THICK: Final = 1.5
"""How much longer than the others a voxel of a thick slice is, at least."""
_MOST_TILT_DEG: Final = 20.0
"""The model has seen heads upright along its axes; beyond this the tilt is not that of a head."""
_MISFIT: Final = 0.02
_TOLERANCE_MM: Final = 1e-3
_STRAIGHT: Final = 1e-6
_HALF: Final = 0.5


@dataclass(frozen=True, slots=True)
class Slices:
    """How a scan was acquired, as far as the model is concerned."""

    axis: int
    """Of D, H, W."""
    factor: int
    """Voxels of the model's grid from one slice to the next."""
    is_stretched: bool
    """Whether slices of ``factor`` voxels are only about as thick as those that were acquired."""
    profile: ProfileName = "thick"
    tilt_deg: float = 0.0
    """Angle of the turn from the body's axes to those of the slices."""

    @property
    def first(self) -> int:
        """The voxel of the model's grid that the first of thin slices is."""
        return (self.factor - 1) // 2

    @property
    def middle_vox(self) -> float:
        """Where the middle of the first slice lies on the model's grid."""
        return (self.factor - 1) / 2 if self.profile == "thick" else float(self.first)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ThickScan:
    """A scan on the grid of thick slices, and the model's grid that belongs to it."""

    low_CDHW: np.ndarray
    """float32 in [0, 1]; of thin slices on the model's grid, with 0 between them."""
    low_affine: Affine
    """Of the slices."""
    affine: Affine
    """Of the model's grid."""
    cut_frac: float = 0.0
    """Share of the brain that lies outside the model's grid."""
    gain: float = 1.0
    """From the intensities of ``low_CDHW`` back to those of the scan, whose background is 0."""


def find_slices(
    scan: Scan,
    document: ModelDocument,
    *,
    thickness_mm: float | None = None,
    factor: int | None = None,
    axis: AxisName | None = None,
    profile: ProfileName = "thick",
) -> Slices:
    """Return the direction and the thickness of a scan's slices, in voxels of the model.

    Without a wish they are those of the longest edge of a voxel. Raises ScanError for a scan whose
    voxels are about as long as wide unless ``axis`` is given, for slices that are turned from the
    body's axes by more than 20 degrees, and for a factor that does not divide the model's grid or
    leaves slices as they are.
    """
    sizes = np.array(spacing_mm(scan.affine))
    along = int(sizes.argmax()) if axis is None else AXES.index(axis)
    if axis is None and sizes[along] < _THICK * np.delete(sizes, along).max():
        raise ScanError(
            "its slices are not thick",
            why="voxels of {:.3g} x {:.3g} x {:.3g} mm have no longest edge".format(*sizes),
            fix="name the direction of the slices with --axis",
        )
    straight, turn = _straighten(scan, along)
    tilt_deg = _angle_deg(turn)
    if tilt_deg > _MOST_TILT_DEG:
        raise ScanError(
            "its slices are oblique to the axes of the body",
            why=f"they are turned by {tilt_deg:.0f} degrees, and {_MOST_TILT_DEG:.0f} are the most "
            "at which a model of upright heads is asked",
            fix="give a scan that was acquired less tilted",
        )
    apart_mm = float(straight.affine[along, along])
    thick_mm = apart_mm if thickness_mm is None else thickness_mm
    voxels = round(thick_mm / document.spacing_mm) if factor is None else factor
    _demand_factor(voxels, along, document)
    misfit = abs(voxels * document.spacing_mm - apart_mm) / apart_mm
    return Slices(along, voxels, bool(misfit > _MISFIT), profile, tilt_deg)


def place_slices(
    scan: Scan, slices: Slices, document: ModelDocument, *, prepared: bool = False
) -> ThickScan:
    """Return a scan on the grid of its slices, without a face, intensities in [0, 1].

    A scan that lies on such a grid already is not moved. A ``prepared`` one shows a brain alone,
    with intensities in [0, 1], and is only moved. Both grids run along the scan's slices. Raises
    ScanError for one without a brain, and for one that the model's grid cuts by more than 3
    percent.
    """
    if prepared:
        demand_unit_range(scan)
    bare = scan if prepared else bare_brain(scan)[0]  # up is where the world says it is
    straight, turn = _straighten(bare, slices.axis)
    volume = straight.image_CDHW[0] if prepared else above_background(straight.image_CDHW[0])
    shape = list(document.grid_vox)
    shape[slices.axis] //= slices.factor
    cut_frac = 0.0
    if _lies_on(straight, tuple(shape), slices, document):
        affine = _fine_affine(straight.affine, slices)
        low, low_affine = volume, straight.affine
    else:
        ready, _ = center_brain(straight, document.grid_vox, document.spacing_mm)
        x, y, z = shape
        affine = _meet_slices(ready.affine, straight.affine, slices, shape=(x, y, z))
        cut_frac = _cut_frac(volume, np.linalg.inv(affine) @ straight.affine, document.grid_vox)
        demand_whole(cut_frac)
        low_affine = _coarse_affine(affine, slices)
        low = resample_volume(volume, straight.affine, low_affine, shape=(x, y, z))
    scaled = np.clip(low, 0, 1) if prepared else scale_intensity(low)
    gain = 1.0 if prepared else _gain(low, scaled)
    low = scaled
    if slices.profile == "thin":
        low = _set_apart(low, slices)
    low_CDHW = np.asarray(low[None], dtype=np.float32)
    return ThickScan(low_CDHW, turn @ low_affine, turn @ affine, cut_frac, gain)


def _gain(volume: np.ndarray, scaled: np.ndarray) -> float:
    """Return by what the intensities were divided, told from those that were not cut."""
    whole = (scaled > 0) & (scaled < 1)
    return float(np.median(volume[whole] / scaled[whole])) if whole.any() else 1.0


def _straighten(scan: Scan, axis: int) -> tuple[Scan, Affine]:
    """Return a scan whose slices lie across an axis of the body, and the turn that takes it back.

    The turn is a rotation about the world's origin: it takes the axis to the normal of the slices,
    exactly, and the other two as near to the rows and columns of a slice as right angles allow. It
    is the unit matrix for slices that lie so already.
    """
    turn = np.eye(4)
    directions = scan.affine[:3, :3] / np.array(spacing_mm(scan.affine))
    normal = np.linalg.inv(scan.affine[:3, :3])[axis]
    directions[:, axis] = normal / np.linalg.norm(normal)
    if np.allclose(directions, np.eye(3), rtol=0, atol=_STRAIGHT):
        return scan, turn
    left, _, right = np.linalg.svd(directions)
    turn[:3, :3] = left @ right
    return Scan(scan.image_CDHW, turn.T @ scan.affine, scan.modality), turn


def _angle_deg(turn: Affine) -> float:
    """Return by how much a rotation turns."""
    return float(np.degrees(np.arccos(np.clip((np.trace(turn[:3, :3]) - 1) / 2, -1, 1))))


def _demand_factor(factor: int, axis: int, document: ModelDocument) -> None:
    size = document.grid_vox[axis]
    fitting = [str(k) for k in range(2, size // 2 + 1) if size % k == 0]
    if factor < 2:  # noqa: PLR2004 - a slice of one voxel lacks nothing
        raise ScanError(
            "its slices are as thin as the model's",
            why=f"the model has voxels of {document.spacing_mm:g} mm",
            fix="give a scan of thicker slices",
        )
    if size % factor or factor > size // 2:
        raise ScanError(
            f"slices of {factor} voxels do not fill the model's grid",
            why=f"it has {size} voxels in their direction",
            fix=f"give --factor, one of {', '.join(fitting)}",
        )


def _cut_frac(volume_DHW: np.ndarray, to_grid: Affine, grid_vox: tuple[int, int, int]) -> float:
    """Return the share of a brain's voxels whose middles lie in no voxel of a grid."""
    index_3N = np.stack(np.nonzero(find_foreground(volume_DHW)))
    place_3N = to_grid[:3, :3] @ index_3N + to_grid[:3, 3:]
    size_31 = np.array(grid_vox)[:, None]
    inside_3N = (place_3N >= -_HALF) & (place_3N <= size_31 - _HALF)
    return float(1 - inside_3N.all(axis=0).mean())


def _lies_on(scan: Scan, shape: tuple[int, ...], slices: Slices, document: ModelDocument) -> bool:
    steps = np.full(3, document.spacing_mm)
    steps[slices.axis] *= slices.factor
    return scan.image_CDHW.shape[1:] == shape and np.allclose(
        scan.affine[:3, :3], np.diag(steps), rtol=0, atol=_TOLERANCE_MM
    )


def _set_apart(low_DHW: np.ndarray, slices: Slices) -> np.ndarray:
    """Return the model's grid, where each slice is one of its own and all others are 0."""
    shape = list(low_DHW.shape)
    shape[slices.axis] *= slices.factor
    fine = np.zeros(shape, dtype=low_DHW.dtype)
    np.moveaxis(fine, slices.axis, 0)[slices.first :: slices.factor] = np.moveaxis(
        low_DHW, slices.axis, 0
    )
    return fine


def _fine_affine(coarse: Affine, slices: Slices) -> Affine:
    """Return the grid of which ``factor`` voxels make one of ``coarse``."""
    fine = coarse.copy()
    step = coarse[:3, slices.axis] / slices.factor
    fine[:3, slices.axis] = step
    fine[:3, 3] -= step * slices.middle_vox
    return fine


def _coarse_affine(fine: Affine, slices: Slices) -> Affine:
    """Return the grid of which one voxel is ``factor`` of ``fine``."""
    coarse = fine.copy()
    step = fine[:3, slices.axis]
    coarse[:3, slices.axis] = step * slices.factor
    coarse[:3, 3] += step * slices.middle_vox
    return coarse


def _meet_slices(
    affine: Affine, acquired: Affine, slices: Slices, *, shape: tuple[int, int, int]
) -> Affine:
    """Return the model's grid, moved by at most half a slice onto the middles of what was acquired.

    ``shape`` is that of the thick slices' grid. Slices that are stretched meet in its middle alone;
    where two share it, each is as far from its own as the other.
    """
    axis = slices.axis
    moved = affine.copy()
    middle_vox = (np.array(shape) - 1) / 2
    to_acquired = np.linalg.inv(acquired) @ _coarse_affine(affine, slices)
    place = float(to_acquired[axis, :3] @ middle_vox + to_acquired[axis, 3]) - middle_vox[axis]
    moved[axis, 3] -= (place - round(place)) / np.linalg.inv(acquired)[axis, axis]
    return moved
