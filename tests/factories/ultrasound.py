"""Made-up DICOM objects with pixels: ultrasound with its regions, and whatever is to be masked."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset as DicomHeader

from tests.factories.planted_dicom import decode, encode, item, made_up_header

TISSUE, ECG, SPECTRUM, BAR = (1, 1), (4, 10), (3, 3), (5, 14)
"""Region Spatial Format and Region Data Type."""


def region(kind: tuple[int, int], left: int, top: int, right: int, bottom: int) -> DicomHeader:
    return item(
        RegionSpatialFormat=kind[0],
        RegionDataType=kind[1],
        RegionLocationMinX0=left,
        RegionLocationMinY0=top,
        RegionLocationMaxX1=right,
        RegionLocationMaxY1=bottom,
    )


def ultrasound(*regions: DicomHeader, **values: object) -> DicomHeader:
    """Return the header of an image of 16 rows and 24 columns."""
    header = made_up_header("US")
    header.SOPClassUID = uid.UltrasoundMultiFrameImageStorage
    if regions:
        header.SequenceOfUltrasoundRegions = list(regions)
    for keyword, value in values.items():
        setattr(header, keyword, value)
    return header


def with_pixels(header: DicomHeader, frames: np.ndarray, **values: Any) -> DicomHeader:
    """Return the object whose header this is, as it is read from its file."""
    header.Rows, header.Columns = frames.shape[1:3]
    header.NumberOfFrames = len(frames)
    header.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
    header.BitsAllocated = 8 * frames.itemsize
    header.BitsStored = values.pop("bits", 8 * frames.itemsize)
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(frames.dtype.kind == "i")
    if frames.ndim == 4:
        header.PlanarConfiguration = 0
        header.PhotometricInterpretation = "RGB"
    for keyword, value in values.items():
        setattr(header, keyword, value)
    header.PixelData = frames.tobytes()
    header["PixelData"].VR = "OB" if frames.itemsize == 1 else "OW"
    return decode(encode(header))


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(5).integers(1, 100, shape).astype(dtype)
