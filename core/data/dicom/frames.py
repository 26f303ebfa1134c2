"""Where the frames of a DICOM image lie in space, value and time; classic and enhanced headers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.data.dicom.elements import Elements
from vitrael.core.data.dicom.tags import TAG
from vitrael.core.data.planar import SPACING_RANGE_MM
from vitrael.core.errors import ScanError

_IMAGE_WORDS: Final = frozenset(
    """
    ORIGINAL DERIVED PRIMARY SECONDARY MIXED LOCALIZER AXIAL MPR MOSAIC REFORMATTED RESAMPLED
    NONE OTHER VOLUME PROJECTION M P R I MAGNITUDE PHASE REAL IMAGINARY M_FFE M_SE M_IR FFE SE
    IR ND NORM DIS2D DIS3D MFSPLIT FM FIL SH ADC TRACEW FA DIFFUSION PERFUSION SUBTRACT STATIC
    GATED REPROJECTION MIP T1 T2 FLUID_ATTENUATED PROTON_DENSITY
    """.split()  # noqa: SIM905 - one word a line would be fifty lines
)
"""Words of Image Type that are kept as they are; others are kept as codes."""
_EQUAL_TIMES_FRAC: Final = 0.05
_FRAME_RANGE_S: Final = (1e-4, 60.0)
_MOST_MM: Final = 1e5
"""No position is a hundred meters away; arithmetic with absurd ones overflows."""
_CENTIMETER: Final = 3
_TISSUE_2D: Final = (1, 1)


@dataclass(frozen=True, slots=True, repr=False)
class Place:
    """One frame's place; positions are DICOM's patient coordinates (LPS, millimetres)."""

    position: tuple[float, ...] | None
    """[3]: the centre of the first pixel."""
    orientation: tuple[float, ...] | None
    """[6]: the direction along a row, then that along a column."""
    spacing_mm: tuple[float, float] | None
    """Between rows, between columns."""
    slope: float
    intercept: float
    image_type: tuple[str, ...]
    """Known words, and codes of others; counters are left out."""
    echo: tuple[float | None, float | None]
    """Number, and time in milliseconds."""
    moment: tuple[float | None, ...]
    """Temporal position, acquisition number, trigger time, b-value: what tells frames of one place
    apart."""


def places_of(
    elements: Elements, *, frames: int, slices: bool, code: Callable[[str], str]
) -> tuple[Place, ...]:
    """Return the places of a file's frames; one for all unless it holds ``slices`` of a volume.

    Raises ScanError when an enhanced header describes another number of frames than it has.
    """
    each = elements.items("PerFrameFunctionalGroupsSequence")
    if not slices or not each:
        return (_classic(elements, code=code),)
    if len(each) != frames:
        raise ScanError("its header describes other frames than it has", fix="export it again")
    shared = elements.items("SharedFunctionalGroupsSequence")
    return tuple(_enhanced(elements, groups=(frame, *shared[:1]), code=code) for frame in each)


def spacing_of(elements: Elements, keyword: str) -> tuple[float, float] | None:
    """Return a pixel spacing of two numbers within reason; None for all else."""
    numbers = elements.decimals(keyword)
    low, high = SPACING_RANGE_MM
    if numbers is None or len(numbers) != 2 or not all(low <= size <= high for size in numbers):  # noqa: PLR2004
        return None
    return numbers[0], numbers[1]


def frame_time_s(elements: Elements, *, frames: int) -> tuple[float | None, bool]:
    """Return the seconds from frame to frame, if they are known; and whether they are unequal.

    The element that the header points to goes first: Frame Time or Frame Time Vector; then Cine
    Rate and Recommended Display Frame Rate. Times within 5 % of their mean are equal.
    """
    if frames == 1:
        return None, False
    pointer = elements.values.get(TAG["FrameIncrementPointer"], b"")
    order = "<" if elements.little else ">"
    vector_tag = np.array([0x0018, 0x1065], dtype=f"{order}u2").tobytes()
    vector_ms = elements.decimals("FrameTimeVector")
    steady_ms = elements.decimal("FrameTime") or 0.0
    if vector_ms and len(vector_ms) >= frames and (pointer == vector_tag or steady_ms <= 0):
        steps_s = np.clip(vector_ms[1:frames], -1e9, 1e9) / 1000
        mean_s = float(steps_s.mean())
        if np.abs(steps_s - mean_s).max() > _EQUAL_TIMES_FRAC * abs(mean_s):
            return None, True
        return _within(mean_s), False
    if steady_ms > 0:
        return _within(steady_ms / 1000), False
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        rate = elements.decimal(keyword) or 0.0
        if rate > 0:
            return _within(1 / rate), False
    return None, False


def _within(frame_s: float) -> float | None:
    """Return a time between frames that is within reason."""
    low, high = _FRAME_RANGE_S
    return frame_s if low <= frame_s <= high else None


def region_spacing_mm(elements: Elements, *, rows: int, columns: int) -> tuple[float, float] | None:
    """Return the pixel spacing of an ultrasound's one region of two-dimensional tissue.

    None when there is none or more than one, when its unit is not the centimeter, and when it
    reaches beyond the image: then the image was scaled after the region was written.
    """
    tissue = [
        region
        for region in elements.items("SequenceOfUltrasoundRegions")
        if (region.integer("RegionSpatialFormat"), region.integer("RegionDataType")) == _TISSUE_2D
    ]
    if len(tissue) != 1:
        return None
    (region,) = tissue
    units = {region.integer(f"PhysicalUnits{axis}Direction") for axis in "XY"}
    right, bottom = region.integer("RegionLocationMaxX1"), region.integer("RegionLocationMaxY1")
    across, down = region.double("PhysicalDeltaX"), region.double("PhysicalDeltaY")
    if units != {_CENTIMETER} or None in (right, bottom, across, down):
        return None
    if (right or 0) > columns or (bottom or 0) > rows:
        return None
    spacing = abs(down or 0) * 10, abs(across or 0) * 10
    low, high = SPACING_RANGE_MM
    return spacing if all(low <= size <= high for size in spacing) else None


def _classic(elements: Elements, *, code: Callable[[str], str]) -> Place:
    return Place(
        position=_vector(elements, "ImagePositionPatient", size=3, most=_MOST_MM),
        orientation=_vector(elements, "ImageOrientationPatient", size=6, most=2.0),
        spacing_mm=spacing_of(elements, "PixelSpacing"),
        slope=elements.decimal("RescaleSlope") or 1.0,
        intercept=elements.decimal("RescaleIntercept") or 0.0,
        image_type=_image_words(elements.words("ImageType"), code=code),
        echo=(elements.decimal("EchoNumbers"), elements.decimal("EchoTime")),
        moment=(
            elements.decimal("TemporalPositionIdentifier"),
            elements.decimal("AcquisitionNumber"),
            elements.decimal("TriggerTime"),
            elements.double("DiffusionBValue"),
        ),
    )


def _enhanced(
    elements: Elements, *, groups: tuple[Elements, ...], code: Callable[[str], str]
) -> Place:
    """Return the place of one frame; its own functional groups go before the shared ones."""

    def group(keyword: str) -> Elements:
        for items in groups:
            found = items.items(keyword)
            if found:
                return found[0]
        return Elements({}, little=elements.little)

    measures = group("PixelMeasuresSequence")
    values = group("PixelValueTransformationSequence")
    words = (
        group("MRImageFrameTypeSequence").words("FrameType")
        or group("CTImageFrameTypeSequence").words("FrameType")
        or elements.words("ImageType")
    )
    return Place(
        position=_vector(
            group("PlanePositionSequence"), "ImagePositionPatient", size=3, most=_MOST_MM
        ),
        orientation=_vector(
            group("PlaneOrientationSequence"), "ImageOrientationPatient", size=6, most=2.0
        ),
        spacing_mm=spacing_of(measures, "PixelSpacing"),
        slope=values.decimal("RescaleSlope") or 1.0,
        intercept=values.decimal("RescaleIntercept") or 0.0,
        image_type=_image_words(words, code=code),
        echo=(None, group("MREchoSequence").double("EffectiveEchoTime")),
        moment=(
            group("FrameContentSequence").integer("TemporalPositionIndex"),
            None,
            group("CardiacSynchronizationSequence").double("NominalCardiacTriggerDelayTime"),
            group("MRDiffusionSequence").double("DiffusionBValue"),
        ),
    )


def _vector(
    elements: Elements, keyword: str, *, size: int, most: float
) -> tuple[float, ...] | None:
    numbers = elements.decimals(keyword)
    if numbers is None or len(numbers) != size or any(abs(number) > most for number in numbers):
        return None
    return numbers


def _image_words(words: tuple[str, ...], *, code: Callable[[str], str]) -> tuple[str, ...]:
    return tuple(
        word if word in _IMAGE_WORDS else code(word)[:16]
        for word in words
        if word and not word.isdigit()
    )
