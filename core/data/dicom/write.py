"""Phantoms as a hospital would send them: DICOM files with made-up identifiers in all places.

For rehearsals and tests of what a site does with real files. What is written reads back to the
same place in the world, and to the same values within half a step of the stored numbers. Nothing
here marks an image as free of identifiers: ``DicomIdentity`` says what was planted.

Axes: T frames, H rows, W columns; S R C slices, rows and columns of DICOM.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from nibabel import orientations
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset as DicomHeader
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as DicomItems
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from vitrael.core.data.planar import Clip
from vitrael.core.data.scan import Scan
from vitrael.core.digest import canonical_json
from vitrael.core.errors import ScanError
from vitrael.core.geometry import Affine

Plane = Literal["axial", "coronal", "sagittal"]
SeriesCompression = Literal["none", "rle", "jpeg-ls", "jpeg-2000"]
ClipCompression = Literal["none", "rle", "jpeg"]
Colors = Literal["gray", "rgb"]

_SYNTAXES: Final = {
    "none": ExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg-ls": JPEGLSLossless,
    "jpeg-2000": JPEG2000Lossless,
    "jpeg": JPEGBaseline8Bit,
}
_DIRECTIONS: Final[Mapping[Plane, tuple[str, str, str]]] = {
    "axial": ("L", "P", "S"),
    "coronal": ("L", "I", "P"),
    "sagittal": ("P", "I", "L"),
}
"""Where column, row and slice numbers grow, as radiologists look at slices."""

_TIMING_MS: Final[Mapping[str, tuple[str, float, float, float, float]]] = {
    "T1w": ("GR\\IR", 2300.0, 2.98, 900.0, 9.0),
    "T2w": ("SE", 5500.0, 100.0, 0.0, 90.0),
    "FLAIR": ("SE\\IR", 9000.0, 120.0, 2500.0, 90.0),
}
"""Sequence, repetition, echo and inversion time, flip angle: as clinical scanners are set."""

_MOST_LEVELS: Final = 65535
_JPEG_QUALITY: Final = 95


@dataclass(frozen=True, slots=True, repr=False)
class DicomIdentity:
    """A made-up patient and visit. Every text of it stands in the files, some in several places."""

    patient_id: str
    name: str
    """Family name, ``^``, given name."""
    birth_date: date
    sex: Literal["F", "M", "O"]
    study_date: date
    address: str = "14 Rua das Amendoeiras, Vilarinho"
    telephone: str = "+000 555 014 220"
    institution: str = "Hospital de Vilarinho"
    physician: str = "Quintela^Ines"
    operator: str = "Bastos^Rui"
    accession: str = "ACC-550142"
    comments: str = "Lives with a sister, asks for the morning"

    def __repr__(self) -> str:
        """Show nothing, as for a real patient."""
        return "DicomIdentity(private)"

    def texts(self) -> tuple[str, ...]:
        """Return every text that must not be found in a file that was de-identified."""
        values = [getattr(self, field.name) for field in fields(self) if field.name != "sex"]
        dates = {value: f"{value:%Y%m%d}" for value in values if isinstance(value, date)}
        return tuple(dates.get(value, value) for value in values)


def write_dicom_series(
    scan: Scan,
    folder: Path,
    *,
    identity: DicomIdentity,
    seed: int,
    series: int = 1,
    plane: Plane = "axial",
    compression: SeriesCompression = "none",
) -> tuple[Path, ...]:
    """Write a one-channel scan as one file a slice, and return the files in order.

    CT where the scan says so, else MR with the timing of its contrast. Whole numbers of 16 bits
    are stored as they are; others with a slope and an intercept, half a step of
    (max - min) / 65535 is lost. Equal arguments give equal files. Raises ScanError when the scan
    has channels or a sheared affine, which slices cannot have.
    """
    if scan.image_CDHW.shape[0] != 1:
        raise ScanError("the scan has channels", why="a slice holds one gray value a pixel")
    stack_SRC, affine = _as_slices(scan, plane=plane)
    stored_SRC, slope, intercept = _quantized(stack_SRC)
    geometry = _geometry(affine)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, values_RC in enumerate(stored_SRC):
        header = _patient_header(identity, seed=seed, series=series, instance=index + 1)
        _set_slice(header, scan.modality, series=series)
        position = affine[:3, 3] + index * affine[:3, 2]
        header.ImagePositionPatient = [format_number_as_ds(float(value)) for value in position]
        for keyword, value in geometry.items():
            setattr(header, keyword, value)
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
        header.InstanceNumber = index + 1
        _set_pixels(header, values_RC, compression=compression)
        path = folder / f"IM{index + 1:05d}"
        dcmwrite(path, header, enforce_file_format=True)
        paths.append(path)
    return tuple(paths)


def write_dicom_clip(
    clip: Clip,
    path: Path,
    *,
    identity: DicomIdentity,
    seed: int,
    region: tuple[int, int, int, int] | None = None,
    burned_in: str = "",
    colors: Colors = "gray",
    compression: ClipCompression = "none",
) -> None:
    """Write a clip as an ultrasound file of several frames, or of one.

    ``region`` is (left, top, right, bottom) in pixels, the last ones included: the one ultrasound
    region, with the clip's spacing; without it neither is told. ``burned_in`` is drawn in white
    into the upper left corner of each frame, as machines do.
    """
    frames_THW = _with_text(clip.frames_THW, burned_in) if burned_in else clip.frames_THW
    header = _patient_header(identity, seed=seed, series=1, instance=1)
    many = len(frames_THW) > 1
    _set_class(header, UltrasoundMultiFrameImageStorage if many else UltrasoundImageStorage)
    header.Modality = "US"
    header.SeriesNumber, header.InstanceNumber = 1, 1
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    header.BurnedInAnnotation = "YES" if burned_in else "NO"
    if many and clip.frame_s is not None:
        header.FrameTime = format_number_as_ds(clip.frame_s * 1000)
        header.FrameIncrementPointer = 0x00181063
        header.NumberOfFrames = len(frames_THW)
    if region is not None:
        header.SequenceOfUltrasoundRegions = DicomItems([_region_item(region, clip.spacing_mm)])
    pixels = frames_THW if colors == "gray" else np.repeat(frames_THW[..., None], 3, axis=3)
    if compression == "jpeg":
        _set_jpeg(header, pixels)
    else:
        _set_pixels(header, pixels if many else pixels[0], compression=compression)
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, header, enforce_file_format=True)


def made_uid(seed: int, *names: str | int) -> str:
    """Return a unique identifier below 2.25 (PS3.5, B.2) that depends on seed and names alone."""
    state = hashlib.sha256(canonical_json(["uid", seed, *names])).digest()
    return f"2.25.{int.from_bytes(state[:16], 'big')}"


def _as_slices(scan: Scan, *, plane: Plane) -> tuple[np.ndarray, Affine]:
    """Return ``[S, R, C]`` and the map from column, row and slice to DICOM's coordinates."""
    now = orientations.io_orientation(scan.affine)
    turn = orientations.ornt_transform(now, orientations.axcodes2ornt(_DIRECTIONS[plane]))
    image = scan.image_CDHW[0]
    turned = orientations.apply_orientation(image, turn)
    affine = scan.affine @ orientations.inv_ornt_aff(turn, image.shape)
    return turned.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _geometry(affine: Affine) -> dict[str, Any]:
    """Return the elements that all slices share."""
    column, row, through = affine[:3, :3].T
    sizes = [float(np.linalg.norm(axis)) for axis in (column, row, through)]
    axes = np.array([column / sizes[0], row / sizes[1], through / sizes[2]])
    if np.abs(axes @ axes.T - np.eye(3)).max() > 1e-4:  # noqa: PLR2004 - right angles
        raise ScanError("the affine is sheared", why="slices lie straight above each other")
    return {
        "ImageOrientationPatient": [format_number_as_ds(float(v)) for v in axes[:2].ravel()],
        "PixelSpacing": [format_number_as_ds(sizes[1]), format_number_as_ds(sizes[0])],
        "SliceThickness": format_number_as_ds(sizes[2]),
        "SpacingBetweenSlices": format_number_as_ds(sizes[2]),
    }


def _quantized(stack: np.ndarray) -> tuple[np.ndarray, str, str]:
    """Return 16-bit numbers with slope and intercept as texts; the texts are what they mean."""
    low, high = float(stack.min()), float(stack.max())
    whole = low >= -32768 and high <= 32767 and bool((stack == np.rint(stack)).all())  # noqa: PLR2004
    if whole:
        return stack.astype(np.int16), "1", "0"
    slope = format_number_as_ds((high - low) / _MOST_LEVELS)
    intercept = format_number_as_ds(low)
    levels = np.rint((stack.astype(np.float64) - float(intercept)) / float(slope))
    return np.clip(levels, 0, _MOST_LEVELS).astype(np.uint16), slope, intercept


def _patient_header(
    identity: DicomIdentity, *, seed: int, series: int, instance: int
) -> DicomHeader:
    """Return a header with the identity: at the top, in a sequence and in private elements."""
    day = f"{identity.study_date:%Y%m%d}"
    names = (identity.patient_id, day)
    header = DicomHeader()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = day
    header.StudyTime, header.SeriesTime, header.ContentTime = "093412", "094005", "094311"
    header.AccessionNumber = identity.accession
    header.Manufacturer = "VITRAEL PHANTOM"
    header.InstitutionName = identity.institution
    header.InstitutionAddress = identity.address
    header.ReferringPhysicianName = header.PerformingPhysicianName = identity.physician
    header.OperatorsName = identity.operator
    header.StudyDescription = f"Control of {identity.name.split('^')[0]}"[:64]
    header.PatientName = identity.name
    header.PatientID = header.OtherPatientIDs = identity.patient_id
    header.PatientBirthDate = f"{identity.birth_date:%Y%m%d}"
    header.PatientSex = identity.sex
    years = (identity.study_date - identity.birth_date).days // 365.25
    header.PatientAge = f"{int(years):03d}Y"
    header.PatientAddress = identity.address
    header.PatientTelephoneNumbers = identity.telephone
    header.PatientComments = header.ImageComments = identity.comments
    header.StudyInstanceUID = made_uid(seed, "study", *names)
    header.SeriesInstanceUID = made_uid(seed, "series", *names, series)
    header.FrameOfReferenceUID = made_uid(seed, "frame of reference", *names)
    header.SOPInstanceUID = made_uid(seed, "instance", *names, series, instance)
    header.StudyID = "1"
    request = DicomHeader()
    request.RequestedProcedureDescription = identity.comments
    request.ScheduledProcedureStepID = identity.accession
    header.RequestAttributesSequence = DicomItems([request])
    private = header.private_block(0x0029, "VITRAEL PHANTOM", create=True)
    private.add_new(0x10, "LO", identity.name)
    private.add_new(0x11, "LO", identity.patient_id)
    return header


def _set_class(header: DicomHeader, sop_class: str) -> None:
    header.SOPClassUID = sop_class
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _set_slice(header: DicomHeader, modality: str, *, series: int) -> None:
    """Set what makes a slice an MR image of a contrast, or a CT image."""
    header.SeriesNumber = series
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if modality == "CT" else "M"]
    header.PatientPosition = "HFS"
    if modality == "CT":
        _set_class(header, CTImageStorage)
        header.Modality = "CT"
        header.KVP = "120"
        return
    _set_class(header, MRImageStorage)
    header.Modality = "MR"
    header.SeriesDescription = modality.lower()
    header.MRAcquisitionType = "3D"
    if modality in _TIMING_MS:
        sequence, repetition, echo, inversion, flip = _TIMING_MS[modality]
        header.ScanningSequence = sequence.split("\\")
        header.SequenceVariant = "SP"
        header.RepetitionTime, header.EchoTime = repetition, echo
        header.InversionTime, header.FlipAngle = inversion, flip
        header.EchoNumbers = "1"


def _set_pixels(header: DicomHeader, pixels: np.ndarray, *, compression: str) -> None:
    """Set ``[R, C]``, ``[T, R, C]`` or the same with colors last, and compress them."""
    colored = pixels.shape[-1] == 3 and pixels.dtype == np.uint8  # noqa: PLR2004
    _describe_pixels(header, pixels, colors="RGB" if colored else "MONOCHROME2")
    data = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).tobytes()
    header.add_new("PixelData", "OB" if pixels.dtype.itemsize == 1 else "OW", data)
    if len(data) % 2:
        header.PixelData = data + b"\0"
    if compression != "none":
        header.compress(_SYNTAXES[compression], pixels, generate_instance_uid=False)


def _set_jpeg(header: DicomHeader, pixels: np.ndarray) -> None:
    """Set frames as baseline JPEG streams; colors are stored as YBR_FULL_422, as machines do."""
    colored = pixels.ndim == 4  # noqa: PLR2004 - T, R, C and colors
    _describe_pixels(header, pixels, colors="YBR_FULL_422" if colored else "MONOCHROME2")
    streams = []
    for frame in pixels:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling="4:2:2")
        streams.append(stream.getvalue())
    header.add_new("PixelData", "OB", encapsulate(streams))
    header["PixelData"].is_undefined_length = True
    header.LossyImageCompression = "01"
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit


def _describe_pixels(header: DicomHeader, pixels: np.ndarray, *, colors: str) -> None:
    sizes = pixels.shape if colors == "MONOCHROME2" else pixels.shape[:-1]
    header.Rows, header.Columns = sizes[-2:]
    header.SamplesPerPixel = 1 if colors == "MONOCHROME2" else 3
    if header.SamplesPerPixel > 1:
        header.PlanarConfiguration = 0
    header.PhotometricInterpretation = colors
    header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")


def _region_item(
    region: tuple[int, int, int, int], spacing_mm: tuple[float, float] | None
) -> DicomHeader:
    """Return the description of a region of two-dimensional tissue (PS3.3, C.8.5.5)."""
    item = DicomHeader()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, 1, 2
    item.RegionLocationMinX0, item.RegionLocationMinY0 = region[:2]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = region[2:]
    centimeters = 3 if spacing_mm else 0
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = centimeters
    row_mm, column_mm = spacing_mm or (0.0, 0.0)
    item.PhysicalDeltaX, item.PhysicalDeltaY = column_mm / 10, row_mm / 10
    return item


def _with_text(frames_THW: np.ndarray, text: str) -> np.ndarray:
    canvas = Image.new("L", (frames_THW.shape[2], frames_THW.shape[1]))
    ImageDraw.Draw(canvas).text((2, 1), text, fill=255)
    drawn: np.ndarray = np.maximum(frames_THW, np.asarray(canvas))
    return drawn
