"""A folder that looks like a hospital's, from one order: images, tables, and perhaps a mess.

Nobody in it exists. The truth of every image is returned, and can be written elsewhere; nothing of
it lies in the folder but what hospitals know themselves. Equal orders give equal bytes on one
machine, with one set of libraries; another encoder may write other bytes into a video.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitrael.core.data.phantoms.hospital_brain import write_bids, write_dicom, write_slices
from vitrael.core.data.phantoms.hospital_clips import (
    write_echo_dicom,
    write_echo_videos,
    write_muscle_dicom,
    write_muscle_videos,
)
from vitrael.core.data.phantoms.mess import plant_mess
from vitrael.core.data.phantoms.orders import FileFormat, Hospital, Kind, TruthRow
from vitrael.core.data.phantoms.paperwork import write_json, write_rows
from vitrael.core.errors import UsageError

Progress = Callable[[int, int], None]
"""Called with how many images are written, and how many there will be."""

TRUTH, PLANTED = "truth.csv", "planted.json"

_WRITERS: Mapping[tuple[Kind, FileFormat], Callable[[Path, Hospital], Iterator[TruthRow]]] = {
    ("brain", "nifti"): write_bids,
    ("brain", "dicom"): write_dicom,
    ("brain", "png"): write_slices,
    ("echo", "mp4"): write_echo_videos,
    ("echo", "dicom"): write_echo_dicom,
    ("muscle", "mp4"): write_muscle_videos,
    ("muscle", "dicom"): write_muscle_dicom,
}


@dataclass(frozen=True, slots=True, repr=False)
class Written:
    """What was written."""

    truth: tuple[TruthRow, ...]
    """One row an image, in the order of patients and visits."""
    planted: Mapping[str, int] = field(default_factory=dict)
    """Kind of mess -> how often; see ``plant_mess``."""

    def __repr__(self) -> str:
        """Show counts alone."""
        return f"Written({len(self.truth)} images, {sum(self.planted.values())} planted)"


def write_hospital(
    folder: Path,
    hospital: Hospital,
    *,
    is_messy: bool = False,
    truth: Path | None = None,
    tell: Progress = lambda _done, _total: None,
) -> Written:
    """Write a hospital's folder, and its truth into another one.

    The folder is made, or is empty; it is filled at the end, so that whoever is interrupted, or has
    no room for the truth, has no half of a hospital. ``truth`` receives ``truth.csv`` and, of a
    mess, ``planted.json``. Raises UsageError, and writes nothing, as ``check_places`` does.
    """
    check_places(folder, truth=truth)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    planted: Mapping[str, int] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
        made = Path(name)
        for row in _WRITERS[hospital.kind, hospital.file_format](made, hospital):
            rows.append(row)
            tell(len(rows), hospital.images)
        if is_messy:
            planted = plant_mess(made, kind=hospital.kind, seed=hospital.seed)
        if truth is not None:
            write_truth(truth / TRUTH, rows)
            if is_messy:
                write_json(truth / PLANTED, dict(planted))
        for path in sorted(made.iterdir()):
            path.rename(folder / path.name)
    return Written(tuple(rows), planted)


def check_places(folder: Path, *, truth: Path | None = None) -> None:
    """Raise UsageError unless the folder can be filled and the truth lies outside of it."""
    if folder.is_dir():
        is_free = next(folder.iterdir(), None) is None
    else:
        is_free = not (folder.exists() or folder.is_symlink())
    if not is_free:
        raise UsageError(
            "the folder is not empty",
            why="what lies there could be taken for a part of the phantoms",
            fix="name another folder, or remove this one",
        )
    if truth is None:
        return
    if truth.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            "the truth would lie in the hospital's folder",
            why="an intake would see it",
            fix="name a folder beside it with --truth",
        )
    if any((truth / name).exists() for name in (TRUTH, PLANTED)):
        raise UsageError("there is a truth in that folder", fix="name another one with --truth")


def write_truth(path: Path, rows: list[TruthRow]) -> None:
    """Write rows of truth as CSV: path, subject, session, taken, then every fact in a column."""
    facts = list(dict.fromkeys(name for row in rows for name in row.facts))
    lines = [("path", "subject", "session", "taken", *facts)]
    for row in rows:
        known = (str(row.facts.get(name, "")) for name in facts)
        place = (row.path.as_posix(), row.subject, row.session, row.taken.isoformat())
        lines.append((*place, *known))
    write_rows(path, lines)
