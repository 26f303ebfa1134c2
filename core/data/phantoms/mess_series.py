"""DICOM series that are no volumes, or are one twice; and one that lies in another one's folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset as DicomHeader
from pydicom.uid import ExplicitVRLittleEndian

from vitrael.core.data.dicom.write import made_uid
from vitrael.core.data.phantoms.mess_ground import Ground

_LEAST_SLICES = 5
_SHIFT_FRAC = 0.4
_ASTRAY = "SE9{:04d}"


def plant_copy(ground: Ground, rng: np.random.Generator) -> int:
    """Write a series again under other identifiers, pixels and patient being the same."""
    return _write_series(ground, rng, _read_series(ground, rng))


def plant_missing(ground: Ground, rng: np.random.Generator) -> int:
    """Write a series again, a slice in its middle being lost."""
    slices = _read_series(ground, rng)
    del slices[len(slices) // 2]
    return _write_series(ground, rng, slices)


def plant_uneven(ground: Ground, rng: np.random.Generator) -> int:
    """Write a series again, a slice lying closer to its neighbor than the others do."""
    slices = _read_series(ground, rng)
    middle = len(slices) // 2
    here, there = (
        np.array([float(value) for value in slices[place].ImagePositionPatient])
        for place in (middle, middle + 1)
    )
    moved = here + _SHIFT_FRAC * (there - here)
    slices[middle].ImagePositionPatient = [f"{value:.6g}" for value in moved]
    return _write_series(ground, rng, slices)


def plant_constant(ground: Ground, rng: np.random.Generator) -> int:
    """Write a series again with one value in all pixels."""
    slices = _read_series(ground, rng)
    for header in slices:
        size_bytes = header.Rows * header.Columns * header.BitsAllocated // 8
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.add_new("PixelData", "OW", bytes(size_bytes))
    return _write_series(ground, rng, slices)


def plant_4d(ground: Ground, rng: np.random.Generator) -> int:
    """Write a series again with every slice at two moments."""
    early, late = _read_series(ground, rng), []
    for header in early:
        later = dcmread(str(header.filename))
        header.TemporalPositionIdentifier, later.TemporalPositionIdentifier = 1, 2
        late.append(later)
    return _write_series(ground, rng, [*early, *late])


def plant_repeated(ground: Ground, rng: np.random.Generator) -> int:
    """Copy one slice under another name into its own folder."""
    paths = _pick_series(ground, rng)
    path = paths[int(rng.integers(len(paths)))]
    path.with_name("copy").write_bytes(path.read_bytes())
    return 1


def plant_nobody(ground: Ground, rng: np.random.Generator) -> int:
    """Copy one file without the patient's number."""
    header = dcmread(ground.pick(rng))
    header.PatientID = header.OtherPatientIDs = ""
    header.SOPInstanceUID = made_uid(int(rng.integers(2**62)), "nobody")
    header.save_as(ground.stranger(rng), enforce_file_format=True)
    return 1


def plant_mixed(ground: Ground, rng: np.random.Generator) -> int:
    """Move a localizer into the folder of a scan of its study."""
    localizers = _by_folder(ground.localizers)
    if not localizers:
        return 0
    moved = localizers[int(rng.integers(len(localizers)))]
    study = moved[0].parents[1]
    home = next(path.parent for path in ground.images if path.parents[1] == study)
    for number, path in enumerate(moved, start=1):
        path.rename(home / f"L{number}")
    if not any(moved[0].parent.iterdir()):
        moved[0].parent.rmdir()
    return 1


def _by_folder(paths: Iterable[Path]) -> list[list[Path]]:
    """Return the files of every series; each lies in a folder of its own."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path)
    return list(folders.values())


def _pick_series(ground: Ground, rng: np.random.Generator) -> list[Path]:
    scans = _by_folder(ground.images)
    return scans[int(rng.integers(len(scans)))]


def _read_series(ground: Ground, rng: np.random.Generator) -> list[DicomHeader]:
    """Return the slices of a scan in order."""
    slices: list[DicomHeader] = [dcmread(path) for path in _pick_series(ground, rng)]
    return sorted(slices, key=lambda header: int(header.InstanceNumber))


def _write_series(ground: Ground, rng: np.random.Generator, slices: list[DicomHeader]) -> int:
    """Write slices as a series of its own beside the one that they come from."""
    if len(slices) < _LEAST_SLICES:
        return 0
    ground.strangers += 1
    seed = int(rng.integers(2**62))
    folder = Path(str(slices[0].filename)).parents[1] / _ASTRAY.format(ground.strangers)
    folder.mkdir()
    for number, header in enumerate(slices, start=1):
        header.SeriesInstanceUID = made_uid(seed, "series")
        header.SeriesNumber = 90 + ground.strangers
        header.SOPInstanceUID = made_uid(seed, "instance", number)
        header.InstanceNumber = number
        header.save_as(folder / f"IM{number:06d}", enforce_file_format=True)
    return 1
