"""The folder that is made a mess of: its images, its table, and room for what is planted.

Whatever lay there stays as it was; all that is planted comes beside it. A *stranger* is an image of
somebody who has none else; a *twin* is one more image of a patient's visit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydicom import dcmread

from vitrael.core.data.dicom.instance import is_dicom
from vitrael.core.data.phantoms.orders import Kind
from vitrael.core.data.phantoms.paperwork import read_rows, write_rows
from vitrael.core.errors import DataError

Form = Literal["bids", "series", "cine", "videos", "pictures"]
"""NIfTI in BIDS, DICOM slices, DICOM clips, videos, pictures."""


class Columns(NamedTuple):
    """How a table names files and patients."""

    file: str
    """Empty where it names no files."""
    subject: str
    number: str
    """A column of numbers, where a formula may come to stand."""


_TABLES: Mapping[str, Columns] = {
    "participants.tsv": Columns("", "participant_id", "sex"),
    "FileList.csv": Columns("FileName", "PatientId", "EF"),
    "index.csv": Columns("path", "subject", "age"),
    "images.csv": Columns("image_id", "patient_id", "age"),
}
_KINDS: Mapping[Form, tuple[Kind, ...]] = {
    "bids": ("brain",),
    "series": ("brain",),
    "pictures": ("brain",),
    "cine": ("echo", "muscle"),
    "videos": ("echo", "muscle"),
}
_ENDINGS: Mapping[Form, str] = {"bids": ".nii.gz", "videos": ".mp4", "pictures": ".png"}
_DECIMAL = re.compile(r"-?\d+\.\d+")


@dataclass(slots=True, repr=False)
class Ground:
    """One folder while it is spoiled."""

    folder: Path
    form: Form
    images: tuple[Path, ...]
    """Those that were there, in the order of their paths; no masks and no localizers."""
    localizers: tuple[Path, ...]
    table: Path | None
    columns: Columns
    rows: list[dict[str, str]] = field(default_factory=list)
    """Of the table, those that are added included."""
    strangers: int = 0

    def __repr__(self) -> str:
        """Show counts alone."""
        return f"Ground({self.form}, {len(self.images)} images)"

    @property
    def ending(self) -> str:
        """How the names of images end; empty for DICOM."""
        return _ENDINGS.get(self.form, "")

    def pick(self, rng: np.random.Generator) -> Path:
        """Return one of the images."""
        return self.images[int(rng.integers(len(self.images)))]

    def stranger(self, rng: np.random.Generator) -> Path:
        """Return a free place for an image of a stranger, whom the table then lists."""
        self.strangers += 1
        who = f"X{self.strangers:03d}"
        if self.form == "bids":
            place = self.folder / f"sub-{who}" / "ses-1" / "anat" / f"sub-{who}_ses-1_T1w.nii.gz"
        else:
            place = self.pick(rng).with_name(f"{who}{self.ending}")
        place.parent.mkdir(parents=True, exist_ok=True)
        if self.columns.file:
            row = dict(self.rows[int(rng.integers(len(self.rows)))])
            self._list(row | {self.columns.subject: who}, place)
        return place

    def twin(self, image: Path, mark: str) -> Path:
        """Return a free place for one more image of the same visit, whose name holds ``mark``."""
        stem = image.name.removesuffix(self.ending)
        if self.form == "bids":
            start, contrast = stem.rsplit("_", 1)
            return image.with_name(f"{start}_acq-{mark}_{contrast}{self.ending}")
        place = image.with_name(f"{stem[:12]}{mark}{self.ending}")
        if self.columns.file:
            cell = self._cell(image)
            (row,) = (dict(row) for row in self.rows if row[self.columns.file] == cell)
            self._list(row, place)
        return place

    def save_table(self, *, is_from_spreadsheet: bool) -> None:
        """Write the table anew; of a spreadsheet program with its marks and decimal commas."""
        if self.table is None:
            return
        header = list(self.rows[0])
        lines = [header, *([row[name] for name in header] for row in self.rows)]
        if is_from_spreadsheet:
            lines = [
                [cell.replace(".", ",") if _DECIMAL.fullmatch(cell) else cell for cell in line]
                for line in lines
            ]
        tabbed = "\t" if self.table.suffix == ".tsv" else ","
        write_rows(self.table, lines, separator=";" if is_from_spreadsheet else tabbed)
        if is_from_spreadsheet:
            self.table.write_bytes(b"\xef\xbb\xbf" + self.table.read_bytes())

    def _list(self, row: dict[str, str], place: Path) -> None:
        # Names on disk may be decomposed, as one system writes them; tables never are.
        cell = unicodedata.normalize("NFC", self._cell(place))
        self.rows.append(row | {self.columns.file: cell})

    def _cell(self, place: Path) -> str:
        """Return how the table calls a file."""
        if self.columns.file == "path":
            return place.relative_to(self.folder).as_posix()
        return place.name if self.form == "pictures" else place.name.removesuffix(self.ending)


def survey(folder: Path, *, kind: Kind) -> Ground:
    """Return what a folder holds.

    Raises DataError when it has no phantoms of the kind, or links, which no writer leaves there.
    """
    every = sorted(folder.rglob("*"))
    if any(path.is_symlink() for path in every):
        raise DataError("the folder is a mess already", fix="write another one")
    files = [path for path in every if path.is_file()]
    form, images = _find_images(files)
    localizers: list[Path] = []
    if form == "series":
        folders = {path.parent: path for path in reversed(images)}
        scout = {place for place, path in folders.items() if _is_localizer(path)}
        localizers = [path for path in images if path.parent in scout]
        images = [path for path in images if path.parent not in scout]
    if not images or kind not in _KINDS[form]:
        raise DataError(f"the folder has no {kind} phantoms", fix="write some there")
    table = next((path for path in files if path.name in _TABLES), None)
    columns = Columns("", "", "") if table is None else _TABLES[table.name]
    ground = Ground(folder, form, tuple(images), tuple(localizers), table, columns)
    if table is not None:
        header, *lines = read_rows(table)
        ground.rows = [dict(zip(header, line, strict=True)) for line in lines]
    return ground


def _find_images(files: list[Path]) -> tuple[Form, list[Path]]:
    for form, ending in _ENDINGS.items():
        found = [path for path in files if path.name.endswith(ending)]
        if found:
            return form, [path for path in found if "mask" not in path.name]
    images = [path for path in files if is_dicom(path)]
    is_clip = bool(images) and dcmread(images[0], stop_before_pixels=True).Modality == "US"
    return ("cine" if is_clip else "series"), images


def _is_localizer(path: Path) -> bool:
    return "LOCALIZER" in dcmread(path, stop_before_pixels=True).ImageType
