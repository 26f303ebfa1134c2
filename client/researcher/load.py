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

_TABLE = "participants.tsv"
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


class _Row(NamedTuple):
    """What the table says of one sample; NaN where it says n/a."""

    subject: str
    asked: Mapping[str, float]
    measured: Mapping[str, float]


class LoadedRelease(Sequence[Sample]):
    """The samples of a release folder; an image is read, and its digest checked, when asked for."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest and the table of subjects, no image.

        Raises VerificationError for a recalled release and for a changed table, DataError for a
        folder that is none and for a table that cannot be used.
        """
        if (folder / "RECALLED.json").exists():
            raise VerificationError(
                "the release was recalled",
                why="RECALLED.json stands in its folder",
                fix="do not use it; 'vitrael verify' tells the reason",
            )
        self.folder = folder
        self._digests = _read_digests(folder)
        self._rows = _read_rows(_read_file(folder, _TABLE, self._digests))

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
        return [dict(row.measured) for row in self._rows]

    def _read(self, row: _Row) -> Sample:
        import nibabel  # noqa: PLC0415 - the command line imports this package and stays light
        import numpy  # noqa: ICN001, PLC0415 - as above

        prefix = f"{row.subject}/anat/{row.subject}_"
        paths = [p for p in self._digests if p.startswith(prefix) and p.endswith(".nii.gz")]
        if len(paths) != 1:
            raise DataError(
                f"the manifest lists {len(paths)} images of {row.subject}",
                why="there must be one",
                fix="get the release again",
            )
        data = _read_file(self.folder, paths[0], self._digests)
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
        voxels = numpy.asarray(image.get_fdata(dtype=numpy.float32))
        return Sample(voxels, numpy.asarray(image.affine), dict(row.asked))


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
    data = _read_file(folder, "manifest.json")
    try:
        files = json.loads(data)["files"]
        return {path: entry["digest"].removeprefix("sha256:") for path, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "manifest.json is not that of a release", fix="get the release again"
        ) from error


def _read_rows(data: bytes) -> list[_Row]:
    try:
        table = csv.DictReader(data.decode().splitlines(), delimiter="\t")
        columns = tuple(table.fieldnames or ())
        rows = [
            _Row(row["participant_id"], _numbers(row, _ASKED), _numbers(row, _MEASURED))
            for row in table
        ]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
        columns, rows = (), []
    if "participant_id" not in columns or not any(name.startswith(_ASKED) for name in columns):
        raise DataError(
            f"{_TABLE} cannot be used",
            why=f"it is no table, lacks participant_id or {_ASKED}..., or a cell is no number",
            fix="get the release again",
        )
    return rows


def _read_file(folder: Path, path: str, digests: Mapping[str, str] | None = None) -> bytes:
    """Return a file's bytes; with digests raise unless they list it and it is unchanged."""
    if digests is not None and path not in digests:
        raise DataError(f"the manifest lists no {path}", fix="get the release again")
    try:
        data = (folder / path).read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read", why=error.strerror or "", fix="get the release again"
        ) from error
    if digests is not None and hashlib.sha256(data).hexdigest() != digests[path]:
        raise VerificationError(f"{path} was changed", fix="get the release again")
    return data


def _numbers(row: Mapping[str, str], prefix: str) -> dict[str, float]:
    """Return the numbers of a row's columns of one kind; ValueError for NaN and infinity."""
    cells = {name: cell for name, cell in row.items() if name.startswith(prefix)}
    numbers = {name: float(cell) for name, cell in cells.items() if cell != "n/a"}
    if not all(map(math.isfinite, numbers.values())):
        msg = "a number is not finite"
        raise ValueError(msg)
    return {name.removeprefix(prefix): numbers.get(name, math.nan) for name in cells}
