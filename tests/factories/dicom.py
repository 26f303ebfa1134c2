"""Made-up DICOM files: series, clips and pictures of a few pixels, to be edited and broken."""

from __future__ import annotations

import copy
import hashlib
import hmac
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import config, dcmread, uid
from pydicom.dataset import Dataset as DicomHeader
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as DicomItems

from vitrael.core.data.dicom.instance import Instance, read_instance
from vitrael.core.data.dicom.write import DicomIdentity, made_uid, write_dicom_series
from vitrael.core.data.planar import Clip
from vitrael.core.data.scan import Scan

Edit = Callable[[DicomHeader], None]
IndexedEdit = Callable[[int, DicomHeader], None]

IDENTITY = DicomIdentity(
    patient_id="VX-20417",
    name="Amendoeira^Iris",
    birth_date=date(1957, 4, 9),
    sex="F",
    study_date=date(2021, 11, 30),
)

OBLIQUE = np.array(
    [
        [0.9396926, -0.3213938, 0.1169778, -31.5],
        [0.3420201, 0.8830222, -0.3213938, 22.25],
        [0.0, 0.3420201, 0.9396926, -7.125],
        [0.0, 0.0, 0.0, 1.0],
    ]
) @ np.diag([0.9, 1.1, 2.5, 1.0])
"""Turned by 20 degrees twice; voxels of 0.9, 1.1 and 2.5 mm."""


def code(text: str) -> str:
    """Return a keyed hash, as a site would make it."""
    return hmac.new(b"a site's key", text.encode(), hashlib.sha256).hexdigest()[:24]


def small_scan(
    *,
    shape: tuple[int, int, int] = (12, 10, 6),
    affine: np.ndarray = OBLIQUE,
    modality: str = "T1w",
    whole: bool = True,
) -> Scan:
    """Return a scan without symmetry: no turn or flip of it is the same."""
    x, y, z = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    image = 100 + 7.0 * x + 31.0 * y + 113.0 * z + 3.0 * x * y
    if not whole:
        image = image / 977
    return Scan(image.astype(np.float32)[None], np.asarray(affine, dtype=np.float64), modality)


def small_clip(*, frames: int = 4, size: tuple[int, int] = (24, 32), spacing: bool = True) -> Clip:
    """Return a clip of a bright bar that wanders to the right."""
    frames_THW = np.full((frames, *size), 16, np.uint8)
    for frame in range(frames):
        frames_THW[frame, 4:-4, 4 + 3 * frame : 9 + 3 * frame] = 200
    return Clip(frames_THW, 0.04 if frames > 1 else None, (0.5, 0.4) if spacing else None, "US")


def write_series(
    folder: Path, scan: Scan | None = None, *, edit: IndexedEdit | None = None, **options: Any
) -> list[Path]:
    """Write a series; ``edit`` changes the header of each slice by its index."""
    paths = write_dicom_series(scan or small_scan(), folder, identity=IDENTITY, seed=7, **options)
    if edit is not None:
        for index, path in enumerate(paths):
            edit_file(path, lambda header, index=index: edit(index, header))
    return list(paths)


def edit_file(path: Path, edit: Edit, *, to: Path | None = None, syntax: str = "") -> Path:
    """Change a file's header, or write it elsewhere, or in another uncompressed syntax."""
    with config.disable_value_validation():
        header = dcmread(path)
        edit(header)
        if syntax:
            if syntax == uid.ExplicitVRBigEndian and header.BitsAllocated == 16:
                swapped = np.frombuffer(header.PixelData, "<u2").astype(">u2")
                header["PixelData"].value = swapped.tobytes()
            header.file_meta.TransferSyntaxUID = syntax
        plain = DicomHeader(header)
        plain.file_meta = header.file_meta
        dcmwrite(to or path, plain, enforce_file_format=True)
    return to or path


def facts_of(paths: Iterable[Path]) -> list[Instance]:
    """Return the facts of files, in their order."""
    return [read_instance(path, code=code)[0] for path in paths]


def write_plane(
    path: Path,
    pixels: np.ndarray,
    *,
    sop_class: str = uid.ComputedRadiographyImageStorage,
    **more: Any,
) -> Path:
    """Write one image, or several frames, of any kind; ``more`` are elements by keyword."""
    header = DicomHeader()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = sop_class, made_uid(3, "instance", path.name)
    header.StudyInstanceUID, header.SeriesInstanceUID = made_uid(3, "study"), made_uid(3, "series")
    header.Modality, header.PatientID = "CR", IDENTITY.patient_id
    header.PatientName, header.StudyDate = IDENTITY.name, "20211130"
    colors = pixels.shape[-1] == 3 and pixels.ndim > 2
    sizes = pixels.shape[:-1] if colors else pixels.shape
    header.Rows, header.Columns = sizes[-2:]
    if len(sizes) == 3:
        header.NumberOfFrames = sizes[0]
    header.SamplesPerPixel = 3 if colors else 1
    if colors:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = "RGB" if colors else "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = np.ascontiguousarray(pixels).tobytes()
    header.add_new("PixelData", "OB" if pixels.dtype.itemsize == 1 else "OW", data)
    with config.disable_value_validation():
        for keyword, value in more.items():
            setattr(header, keyword, value)
        dcmwrite(path, header, enforce_file_format=True)
    return path


def write_enhanced(
    path: Path,
    slices: list[Path],
    *,
    order: list[int] | None = None,
    edit_frame: IndexedEdit | None = None,
) -> Path:
    """Write a series of slices as one enhanced MR file, its frames in any order."""
    headers = [dcmread(one) for one in slices]
    headers = [headers[index] for index in order or range(len(headers))]
    whole = DicomHeader(copy.deepcopy(headers[0]))
    whole.file_meta = FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    whole.SOPClassUID = uid.EnhancedMRImageStorage
    for keyword in (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
        "RescaleSlope", "RescaleIntercept", "EchoTime", "EchoNumbers",
    ):  # fmt: skip
        if keyword in whole:
            delattr(whole, keyword)
    whole.NumberOfFrames = len(headers)
    whole.PixelData = b"".join(header.PixelData for header in headers)
    whole.SharedFunctionalGroupsSequence = DicomItems([_shared_groups(headers[0])])
    frames = []
    for index, header in enumerate(headers):
        frame = _frame_groups(header)
        if edit_frame is not None:
            edit_frame(index, frame)
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = DicomItems(frames)
    dcmwrite(path, whole, enforce_file_format=True)
    return path


def _item(**elements: Any) -> DicomItems:
    item = DicomHeader()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return DicomItems([item])


def _shared_groups(header: DicomHeader) -> DicomHeader:
    shared = DicomHeader()
    shared.PlaneOrientationSequence = _item(ImageOrientationPatient=header.ImageOrientationPatient)
    shared.PixelMeasuresSequence = _item(
        PixelSpacing=header.PixelSpacing, SliceThickness=header.SliceThickness
    )
    shared.MREchoSequence = _item(EffectiveEchoTime=float(header.get("EchoTime") or 0))
    shared.MRImageFrameTypeSequence = _item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    return shared


def _frame_groups(header: DicomHeader) -> DicomHeader:
    frame = DicomHeader()
    frame.PlanePositionSequence = _item(ImagePositionPatient=header.ImagePositionPatient)
    frame.PixelValueTransformationSequence = _item(
        RescaleSlope=header.RescaleSlope,
        RescaleIntercept=header.RescaleIntercept,
        RescaleType="US",
    )
    frame.FrameContentSequence = _item(TemporalPositionIndex=1)
    return frame
