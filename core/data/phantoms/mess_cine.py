"""DICOM clips that cannot be used, or stand there twice."""

from __future__ import annotations

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset as DicomHeader
from pydicom.uid import ExplicitVRLittleEndian

from vitrael.core.data.dicom.write import made_uid
from vitrael.core.data.phantoms.mess_ground import Ground

_UNEVEN_MS = (20, 45)
_LEAST_FRAMES = 3
"""Two frames have one time between them, which is equal to itself."""


def plant_copy(ground: Ground, rng: np.random.Generator) -> int:
    """Write a clip again under other identifiers, pixels and patient being the same."""
    return _write(ground, rng, _read(ground, rng))


def plant_nobody(ground: Ground, rng: np.random.Generator) -> int:
    """Write a clip again without the patient's number."""
    header = _read(ground, rng)
    header.PatientID = header.OtherPatientIDs = ""
    return _write(ground, rng, header)


def plant_no_region(ground: Ground, rng: np.random.Generator) -> int:
    """Write a clip again without the region that tells where the picture is."""
    header = _read(ground, rng)
    del header.SequenceOfUltrasoundRegions
    return _write(ground, rng, header)


def plant_no_frames(ground: Ground, rng: np.random.Generator) -> int:
    """Write a clip again without a frame."""
    header = _read(ground, rng)
    header.NumberOfFrames = 0
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.add_new("PixelData", "OB", b"")
    return _write(ground, rng, header)


def plant_variable_rate(ground: Ground, rng: np.random.Generator) -> int:
    """Write a clip again whose frames are at unequal times."""
    header = _read(ground, rng)
    frames = int(header.NumberOfFrames)
    if frames < _LEAST_FRAMES:
        return 0
    header.FrameTimeVector = [0, *(_UNEVEN_MS * frames)[: frames - 1]]
    header.FrameIncrementPointer = 0x00181065
    del header.FrameTime
    return _write(ground, rng, header)


def _read(ground: Ground, rng: np.random.Generator) -> DicomHeader:
    header: DicomHeader = dcmread(ground.pick(rng))
    return header


def _write(ground: Ground, rng: np.random.Generator, header: DicomHeader) -> int:
    seed = int(rng.integers(2**62))
    header.SeriesInstanceUID = made_uid(seed, "series")
    header.SOPInstanceUID = made_uid(seed, "instance")
    header.save_as(ground.stranger(rng), enforce_file_format=True)
    return 1
