"""Where a made-up hospital's DICOM files come to lie: deep folders whose names say nothing.

``numbers`` counts: ``DICOM/ST00007/SE00002/IM000123``. ``identifiers`` takes those of the headers,
``2.25.31.../2.25.104.../2.25.98...``. No file has an ending.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Literal

from pydicom import dcmread

from vitrael.core.data.phantoms.orders import Hospital
from vitrael.core.rng import stream

Naming = Literal["numbers", "identifiers"]


class Archive:
    """Files what the writers leave in its inbox; studies are numbered in no order of patients."""

    def __init__(self, folder: Path, hospital: Hospital, *, naming: Naming) -> None:
        """Choose the numbers of the studies."""
        rng = stream(hospital.seed, "archive", hospital.kind, hospital.site)
        self._order = rng.permutation(hospital.patients * hospital.visits)
        self._visits = hospital.visits
        self._folder = folder
        self._naming = naming
        self.inbox = folder / "inbox"

    def keep(
        self, paths: Sequence[Path], patient: int, visit: int, *, series: int
    ) -> tuple[PurePath, ...]:
        """Move the files of one series to their place; return it, as seen from the hospital's."""
        kept = []
        study = int(self._order[patient * self._visits + visit - 1]) + 1
        place = PurePath("DICOM", f"ST{study:05d}", f"SE{series:05d}")
        for number, path in enumerate(paths, start=1):
            name = f"IM{number:06d}"
            if self._naming == "identifiers":
                header = dcmread(path, stop_before_pixels=True)
                place = PurePath(str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
                name = str(header.SOPInstanceUID)
            kept.append(place / name)
            (self._folder / place).mkdir(parents=True, exist_ok=True)
            path.rename(self._folder / place / name)
        return tuple(kept)

    def close(self) -> None:
        """Remove the inbox."""
        self.inbox.rmdir()
