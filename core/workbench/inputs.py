"""Local NIfTI files on the grid of a model: brought there by its recipe, or refused with a reason.

One file that cannot be used stops none of the others. What was made of a file has a record beside
it, so that it is kept when it is whole, and nothing is written over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.recipes import RecipeInput, prepare
from vitrael.core.data.scan import Scan
from vitrael.core.digest import Digest, digest_bytes, digest_file, write_atomically
from vitrael.core.errors import ScanError, StorageError, storage_error
from vitrael.core.geometry import Affine

if TYPE_CHECKING:
    from vitrael.core.workbench.folder import ModelDocument

D = TypeVar("D")
_SUFFIX: Final = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_TOLERANCE_MM: Final = 1e-3
_ROUNDING: Final = 1e-3
_MOST_CUT_FRAC: Final = 0.03
"""Of a brain; of one that a grid cuts by far, whatever is said would be of another brain."""
CUT_FRAC: Final = 0.005
"""From here on it is told: as when a site takes scans in."""
_KEY: Final = "RequestDigest"
_DIGESTS: Final = "FileDigests"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Input:
    """One file on the grid of a model."""

    number: int
    """Among all that were given, from 1."""
    path: Path
    image_CDHW: np.ndarray
    """float32 in [0, 1]."""
    affine: Affine
    cut_frac: float = 0.0
    """Share of the brain that lies outside the grid."""


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
        yield read_input(path, document, number=number, prepared=prepared)


def read_input(
    path: Path, document: ModelDocument, *, number: int = 1, prepared: bool = False
) -> Input | Refused:
    """Return one file on the model's grid, or why it cannot be used; see ``read_inputs``."""
    try:
        scan = read_nifti(path, label="it")
        if prepared:
            return Input(number, path, _as_it_is(scan, document), scan.affine)
        ready = prepare(RecipeInput(images={"T1w": scan}), document.recipe)
        demand_whole(ready.cut_frac)
    except ScanError as error:
        return Refused(number, path, reason_of(error))
    except OSError as error:
        return Refused(number, path, tell_unreadable(error))
    return Input(number, path, ready.arrays["image"], ready.affine, ready.cut_frac)


def tell_unreadable(error: OSError) -> str:
    """Return one clause: why a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    return error.strerror or "it cannot be opened"


def reason_of(error: ScanError) -> str:
    """Return one clause: why a file cannot be used."""
    what = error.what.removeprefix("it cannot be used").strip(" :")
    return ", ".join(part for part in (what, error.why) if part)


def stem_of(path: Path) -> str:
    """Return a file's name without the suffix of NIfTI."""
    return _SUFFIX.sub("", path.name)


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


def demand_whole(cut_frac: float) -> None:
    """Raise ScanError when a grid cuts off more than 3 percent of a brain."""
    if cut_frac > _MOST_CUT_FRAC:
        raise ScanError(
            "the model's grid is too small for the brain",
            why=f"{math.ceil(100 * cut_frac)} % of it would be cut off",
            fix="use a model with a larger grid or spacing",
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


def take_each(
    files: Sequence[Path],
    act: Callable[[int, Path], D | Refused],
    *,
    name: Callable[[Path], str] | None,
    twice: str,
    finished: Callable[[D], None] | None = None,
    refused: Callable[[Refused], None] | None = None,
) -> tuple[list[D], list[Refused]]:
    """Return what ``act`` makes of each file, counted from 1, and what cannot be used.

    A file whose result would have the ``name`` of another's is refused, and ``twice`` says so; None
    where no result is written. Both callbacks are told of each file as it ends. Raises
    StorageError, which says what is finished.
    """
    done: list[D] = []
    left_out: list[Refused] = []
    named: dict[str, int] = {}
    numbers: list[int] = []
    for number, path in enumerate(files, 1):
        own = str(number) if name is None else name(path)
        if own in named:
            result: D | Refused = Refused(
                number, path, f"file {named[own]} has the same name, {twice}"
            )
        else:
            try:
                result = act(number, path)
            except StorageError as error:
                raise tell_finished(error, numbers) from error
        if isinstance(result, Refused):
            left_out.append(result)
            if refused is not None:
                refused(result)
        else:
            named[own] = number
            numbers.append(number)
            done.append(result)
            if finished is not None:
                finished(result)
    return done, left_out


def read_record(path: Path, key: Digest, files: Sequence[Path]) -> dict[str, Any] | None:
    """Return the record of files that are there, whole, and made as ``key`` says; else None.

    Raises ScanError when what lies there is of another key, or was changed: nothing is written
    over. What was left unfinished is no obstacle.
    """
    record = _read_json(path)
    there = {file.name: digest_file(file) for file in files if file.exists()}
    digests = record.get(_DIGESTS)
    if record.get(_KEY) == key and isinstance(digests, dict) and there.items() <= digests.items():
        return record if len(there) == len(files) else None
    if there or (path.exists() and _KEY not in record):
        raise ScanError(
            "its result is there already and is kept",
            why="it was made of another scan, by another model or with other settings, or changed",
            fix="choose another folder, or remove it",
        )
    return None


def write_record(
    path: Path, key: Digest, facts: Mapping[str, Any], *, files: Mapping[Path, bytes], what: str
) -> None:
    """Write files with their record; it comes first, so that no file is there without it.

    Raises StorageError, which says ``what`` could not be written.
    """
    digests = {file.name: digest_bytes(data) for file, data in files.items()}
    text = json.dumps({**facts, _KEY: key, _DIGESTS: digests}, sort_keys=True, indent=1) + "\n"
    try:
        write_atomically(path, text.encode())
        for file, data in files.items():
            write_atomically(file, data)
    except OSError as error:
        raise storage_error(what, error) from error


def tell_finished(error: StorageError, numbers: Sequence[int]) -> StorageError:
    """Return an error that also says which files were finished before it."""
    finished = ", ".join(map(str, numbers)) or "none"
    why = "; ".join(part for part in (error.why, f"finished before it: {finished}") if part)
    return StorageError(error.what, why=why, fix=error.fix)


def _read_json(path: Path) -> dict[str, Any]:
    """Return an object; an empty one where none can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _as_it_is(scan: Scan, document: ModelDocument) -> np.ndarray:
    demand_grid(scan, document, fix="leave --prepared out")
    demand_unit_range(scan)
    return np.asarray(np.clip(scan.image_CDHW, 0, 1))
