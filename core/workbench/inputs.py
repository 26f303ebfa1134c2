"""Local NIfTI files on the grid of a model: brought there by its recipe, or refused with a reason.

One file that cannot be used stops none of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.recipes import RecipeInput, prepare
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine

if TYPE_CHECKING:
    from vitrael.core.workbench.folder import ModelDocument

_SUFFIX: Final = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_TOLERANCE_MM: Final = 1e-3
_ROUNDING: Final = 1e-3


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Input:
    """One file on the grid of a model."""

    number: int
    """Among all that were given, from 1."""
    path: Path
    image_CDHW: np.ndarray
    """float32 in [0, 1]."""
    affine: Affine


@dataclass(frozen=True, slots=True, repr=False)
class Refused:
    """One file that cannot be used."""

    number: int
    path: Path
    reason: str


def read_inputs(
    files: Sequence[Path], document: ModelDocument, *, prepared: bool = False
) -> Iterator[Input | Refused]:
    """Yield each file on the model's grid, or why it cannot be used, in the given order.

    ``prepared`` files lie on the model's grid, with intensities in [0, 1], and are taken as they
    are; all others go through the model's recipe.
    """
    for number, path in enumerate(files, 1):
        try:
            scan = read_nifti(path, label="it")
            placed = _as_it_is(scan, document) if prepared else _by_recipe(scan, document)
        except ScanError as error:
            yield Refused(number, path, reason_of(error))
        except OSError as error:
            yield Refused(number, path, error.strerror or "it cannot be opened")
        else:
            yield Input(number, path, placed.image_CDHW, placed.affine)


def reason_of(error: ScanError) -> str:
    """Return one clause: why a file cannot be used."""
    what = error.what.removeprefix("it cannot be used").strip(" :")
    return ", ".join(part for part in (what, error.why) if part)


def stem_of(path: Path) -> str:
    """Return a file's name without the suffix of NIfTI."""
    return _SUFFIX.sub("", path.name)


def _by_recipe(scan: Scan, document: ModelDocument) -> Scan:
    ready = prepare(RecipeInput(images={"T1w": scan}), document.recipe)
    return Scan(ready.arrays["image"], ready.affine, "T1w")


def demand_grid(scan: Scan, document: ModelDocument, *, fix: str) -> None:
    """Raise ScanError, which advises ``fix``, unless a scan has the grid of the model."""
    shape = scan.image_CDHW.shape[1:]
    wanted = np.eye(3) * document.spacing_mm
    if shape != document.grid_vox or not np.allclose(
        scan.affine[:3, :3], wanted, rtol=0, atol=_TOLERANCE_MM
    ):
        grid = " x ".join(map(str, document.grid_vox))
        raise ScanError(
            "its grid is not that of the model",
            why=f"{grid} voxels of {document.spacing_mm:g} mm are expected",
            fix=fix,
        )


def demand_unit_range(scan: Scan) -> None:
    """Raise ScanError unless the intensities of a prepared scan lie in [0, 1]."""
    low, high = float(scan.image_CDHW.min()), float(scan.image_CDHW.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ScanError(
            "its intensities lie outside [0, 1]",
            why="those of a prepared file do not",
            fix="leave --prepared out",
        )


def _as_it_is(scan: Scan, document: ModelDocument) -> Scan:
    demand_grid(scan, document, fix="leave --prepared out")
    demand_unit_range(scan)
    return Scan(np.clip(scan.image_CDHW, 0, 1), scan.affine, "T1w")
