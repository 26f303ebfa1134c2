"""Use a release in three lines, with numpy and nibabel alone.

::

    from vitrael.client.researcher import load
    for image_DHW, affine, conditions in load("brain-demo@1"):
        ...

Loading trusts the folder but for damage: ``vitrael verify`` is what checks signatures.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

from vitrael.core.errors import DataError, UsageError, VerificationError

if TYPE_CHECKING:
    import numpy as np

_ASKED = "asked_"
_MEASURED = "measured_"


class Sample(NamedTuple):
    """One synthetic image; unpacks as ``image_DHW, affine, conditions``."""

    image_DHW: np.ndarray
    """float32 in [0, 1]; D, H, W are the index axes x, y, z of a RAS+ image."""
    affine: np.ndarray
    """[4, 4] float64, voxel index to RAS+ world in millimetres."""
    conditions: Mapping[str, float]
    """What was asked for, in the unit that the name ends with."""


class LoadedRelease(Sequence[Sample]):
    """The samples of a release folder; an image is read, and its digest checked, when asked for."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest and the table of subjects, no image.

        Raises VerificationError for a recalled release, DataError for a folder that is none.
        """
        if (folder / "RECALLED.json").exists():
            raise VerificationError(
                "the release was recalled",
                why="RECALLED.json stands in its folder",
                fix="do not use it; 'vitrael verify' tells the reason",
            )
        self.folder = folder
        self._digests = _read_digests(folder)
        self._rows = _read_rows(folder)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """Return one sample, or a list of them; raise VerificationError for a changed file."""
        if isinstance(index, slice):
            return [self._read(row) for row in self._rows[index]]
        return self._read(self._rows[index])

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples in their order, one in memory at a time."""
        return map(self._read, self._rows)

    def __repr__(self) -> str:
        """Show the folder and the count."""
        return f"LoadedRelease({str(self.folder)!r}, {len(self)} samples)"

    @property
    def measured(self) -> list[dict[str, float]]:
        """What was measured on each image; NaN where nothing could be."""
        return [_numbers(row, _MEASURED) for row in self._rows]

    def _read(self, row: Mapping[str, str]) -> Sample:
        import nibabel  # noqa: PLC0415 - the command line imports this package and stays light
        import numpy  # noqa: ICN001, PLC0415 - as above

        subject = row["participant_id"]
        prefix = f"{subject}/anat/{subject}_"
        path = next((path for path in self._digests if path.startswith(prefix)), None)
        if path is None:
            raise DataError(
                f"the manifest lists no image of {subject}", fix="get the release again"
            )
        data = _read_file(self.folder / path, shown=path)
        if hashlib.sha256(data).hexdigest() != self._digests[path]:
            raise VerificationError(f"{path} was changed", fix="get the release again")
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        voxels = numpy.asarray(image.get_fdata(dtype=numpy.float32))
        return Sample(voxels, numpy.asarray(image.affine), _numbers(row, _ASKED))


def load(release: str | Path) -> LoadedRelease:
    """Return the samples of a release folder, or of ``NAME@VERSION`` as ``vitrael pull`` left it.

    ``pull`` leaves ``brain-demo@1`` in ``./brain-demo-1`` unless told otherwise. Raises UsageError
    when there is no such folder, else as ``LoadedRelease``.
    """
    folder = Path(release)
    if not folder.is_dir() and isinstance(release, str) and "@" in release:
        folder = default_folder(*release.split("@", maxsplit=1))
    if not folder.is_dir():
        raise UsageError(
            f"there is no release at {folder}",
            why="it is no folder",
            fix="give the folder that 'vitrael pull' wrote, or run it first",
        )
    return LoadedRelease(folder)


def default_folder(name: str, version: str | int) -> Path:
    """Return where ``pull`` leaves a release when it is not told: below the current folder."""
    return Path(f"{name}-{version}")


def _read_digests(folder: Path) -> dict[str, str]:
    data = _read_file(folder / "manifest.json", shown="manifest.json")
    try:
        files = json.loads(data)["files"]
        return {path: entry["digest"].removeprefix("sha256:") for path, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "manifest.json is not that of a release", fix="get the release again"
        ) from error


def _read_rows(folder: Path) -> list[dict[str, str]]:
    text = _read_file(folder / "participants.tsv", shown="participants.tsv").decode()
    return list(csv.DictReader(text.splitlines(), delimiter="\t"))


def _read_file(path: Path, *, shown: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{shown} cannot be read", why=error.strerror or "", fix="get the release again"
        ) from error


def _numbers(row: Mapping[str, str], prefix: str) -> dict[str, float]:
    return {
        column.removeprefix(prefix): math.nan if cell == "n/a" else float(cell)
        for column, cell in row.items()
        if column.startswith(prefix)
    }
