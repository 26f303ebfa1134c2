"""What of a DICOM header may survive: one literal table, and everything that it leaves out is gone.

It realizes the Basic Application Level Confidentiality Profile of DICOM PS3.15 Annex E with two of
its options, Retain Longitudinal Temporal Information with Modified Dates and Retain Patient
Characteristics. The standard's table E.1-1 lists what must go; this one lists what may stay, so an
element that nobody thought of, or that a later edition adds, is gone as well. Where E.1-1 names an
element, ``Rule.code`` is what is done, in its letters: D or Z a dummy or nothing, U another UID,
C cleaned, K kept; X (removed) is every element without a rule. VR and VM come from the standard's
dictionary in pydicom; a file that gives an element another VR loses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

from vitrael.privacy.dicom_terms import TERMS

Kind = Literal[
    "number",
    "term",
    "image_type",
    "orientation",
    "age",
    "date",
    "uid",
    "registered_uid",
    "pointer",
    "curve",
    "pseudonym",
    "emptied",
    "ours",
    "sequence",
]
"""How a value is judged; ``dicom_values`` has a function for each that looks at the value."""
Code = Literal["C", "D", "K", "U", "Z"]

_CODES: Final[Mapping[Kind, Code]] = {
    "age": "C",
    "date": "C",
    "emptied": "Z",
    "image_type": "C",
    "ours": "D",
    "pseudonym": "Z",
    "uid": "U",
}
_MOST_VALUES: Final = 64
"""Of a binary element whose VM is open; a text of numbers may be longer."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one listed element is treated."""

    tag: int
    kind: Kind
    vrs: tuple[str, ...]
    """Those that the standard allows."""
    values: tuple[int, int]
    """Fewest and most values."""
    terms: frozenset[str] = frozenset()
    """Of a term: all that may stand there."""
    items: Mapping[int, Rule] = field(default_factory=dict)
    """Of a sequence: the rules of its items."""

    @property
    def code(self) -> Code:
        """What is done, as PS3.15 table E.1-1 writes it."""
        return _CODES.get(self.kind, "K")


def _values(multiplicity: str, vr: str) -> tuple[int, int]:
    low, _, high = multiplicity.partition("-")
    if not high:
        return int(low), int(low)
    if high.isdecimal():
        return int(low), int(high)
    return int(low), 1 << 16 if vr in {"DS", "IS"} else _MOST_VALUES


def _rule(keyword: str, kind: Kind, items: Mapping[int, Rule] | None = None) -> Rule:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    vr = dictionary_VR(tag)
    return Rule(
        tag=tag,
        kind=kind,
        vrs=tuple(vr.split(" or ")),
        values=_values(dictionary_VM(tag), vr),
        terms=TERMS[keyword] if kind == "term" else frozenset(),
        items=items or {},
    )


def _rules(
    kinds: Mapping[Kind, str], sequences: Mapping[str, Mapping[int, Rule]] | None = None
) -> dict[int, Rule]:
    """Return rules by tag; ``kinds`` gives the keywords of each kind with blanks between them."""
    found: Iterable[Rule] = [
        *(_rule(keyword, kind) for kind, text in kinds.items() for keyword in text.split()),
        *(_rule(keyword, "sequence", items) for keyword, items in (sequences or {}).items()),
    ]
    return {rule.tag: rule for rule in found}


_REGION: Final = _rules(
    {
        "number": """
            RegionSpatialFormat RegionDataType RegionFlags RegionLocationMinX0 RegionLocationMinY0
            RegionLocationMaxX1 RegionLocationMaxY1 ReferencePixelX0 ReferencePixelY0
            PhysicalUnitsXDirection PhysicalUnitsYDirection ReferencePixelPhysicalValueX
            ReferencePixelPhysicalValueY PhysicalDeltaX PhysicalDeltaY TransducerFrequency
            PulseRepetitionFrequency DopplerCorrectionAngle SteeringAngle
            DopplerSampleVolumeXPosition DopplerSampleVolumeYPosition TMLinePositionX0
            TMLinePositionY0 TMLinePositionX1 TMLinePositionY1 PixelComponentOrganization
            PixelComponentMask PixelComponentRangeStart PixelComponentRangeStop
            PixelComponentPhysicalUnits PixelComponentDataType
        """,
        "term": "TransducerType",
    }
)
_REFERENCE: Final = _rules(
    {
        "registered_uid": "ReferencedSOPClassUID",
        "uid": "ReferencedSOPInstanceUID",
        "number": "ReferencedFrameNumber",
    }
)
_CURVE: Final = _rules({"number": "LUTDescriptor", "curve": "LUTData", "term": "ModalityLUTType"})
_FRAME: Final[Mapping[str, Mapping[int, Rule]]] = {
    "PixelMeasuresSequence": _rules({"number": "PixelSpacing SliceThickness SpacingBetweenSlices"}),
    "PlanePositionSequence": _rules({"number": "ImagePositionPatient"}),
    "PlaneOrientationSequence": _rules({"number": "ImageOrientationPatient"}),
    "PlanePositionVolumeSequence": _rules({"number": "ImagePositionVolume"}),
    "PlaneOrientationVolumeSequence": _rules({"number": "ImageOrientationVolume"}),
    "FrameContentSequence": _rules(
        {
            "number": """
                FrameAcquisitionNumber FrameAcquisitionDuration InStackPositionNumber
                DimensionIndexValues TemporalPositionIndex
            """,
            "date": "FrameAcquisitionDateTime FrameReferenceDateTime",
        }
    ),
    "FrameAnatomySequence": _rules({"term": "FrameLaterality"}),
    "FrameVOILUTSequence": _rules({"number": "WindowCenter WindowWidth", "term": "VOILUTFunction"}),
    "PixelValueTransformationSequence": _rules(
        {"number": "RescaleIntercept RescaleSlope", "term": "RescaleType"}
    ),
    "RealWorldValueMappingSequence": _rules(
        {
            "number": """
                RealWorldValueFirstValueMapped RealWorldValueLastValueMapped RealWorldValueIntercept
                RealWorldValueSlope
            """,
        }
    ),
    "MRImageFrameTypeSequence": _rules(
        {
            "image_type": "FrameType",
            "term": """
                PixelPresentation VolumetricProperties VolumeBasedCalculationTechnique
                ComplexImageComponent AcquisitionContrast
            """,
        }
    ),
    "MRTimingAndRelatedParametersSequence": _rules(
        {"number": "RepetitionTime FlipAngle EchoTrainLength RFEchoTrainLength"}
    ),
    "MREchoSequence": _rules({"number": "EffectiveEchoTime"}),
    "MRModifierSequence": _rules(
        {"number": "InversionTimes ParallelReductionFactorInPlane", "term": "InversionRecovery"}
    ),
    "MRImagingModifierSequence": _rules({"number": "PixelBandwidth TransmitterFrequency"}),
    "MRFOVGeometrySequence": _rules(
        {
            "number": "MRAcquisitionFrequencyEncodingSteps PercentSampling PercentPhaseFieldOfView",
            "term": "InPlanePhaseEncodingDirection",
        }
    ),
    "MRAveragesSequence": _rules({"number": "NumberOfAverages"}),
    "MRDiffusionSequence": _rules(
        {"number": "DiffusionBValue", "term": "DiffusionDirectionality"},
        {"DiffusionGradientDirectionSequence": _rules({"number": "DiffusionGradientOrientation"})},
    ),
    "CardiacSynchronizationSequence": _rules(
        {"number": "NominalPercentageOfCardiacPhase NominalCardiacTriggerDelayTime"}
    ),
    "TemporalPositionSequence": _rules({"number": "TemporalPositionTimeOffset"}),
}
_FRAMES: Final = _rules({}, _FRAME)
_DIMENSION: Final = _rules(
    {"pointer": "DimensionIndexPointer FunctionalGroupPointer", "uid": "DimensionOrganizationUID"}
)

HEADER: Final[Mapping[int, Rule]] = _rules(
    {
        "number": """
            SamplesPerPixel PlanarConfiguration NumberOfFrames Rows Columns
            UltrasoundColorDataPresent BitsAllocated BitsStored HighBit PixelRepresentation
            PixelAspectRatio SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue
            PixelPaddingRangeLimit PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing
            SliceThickness SpacingBetweenSlices SliceLocation ImagePositionPatient
            ImageOrientationPatient RescaleIntercept RescaleSlope WindowCenter WindowWidth
            LossyImageCompressionRatio PixelIntensityRelationshipSign SeriesNumber AcquisitionNumber
            InstanceNumber ImagesInAcquisition TemporalPositionIdentifier NumberOfTemporalPositions
            TemporalResolution RepetitionTime EchoTime InversionTime NumberOfAverages
            ImagingFrequency EchoNumbers MagneticFieldStrength NumberOfPhaseEncodingSteps
            EchoTrainLength PercentSampling PercentPhaseFieldOfView PixelBandwidth TriggerTime
            NominalInterval HeartRate LowRRValue HighRRValue IntervalsAcquired IntervalsRejected
            CardiacNumberOfImages TriggerWindow ReconstructionDiameter AcquisitionMatrix FlipAngle
            SAR dBdt AcquisitionDuration DiffusionBValue DiffusionGradientOrientation KVP
            DataCollectionDiameter DistanceSourceToDetector DistanceSourceToPatient
            EstimatedRadiographicMagnificationFactor GantryDetectorTilt TableHeight ExposureTime
            XRayTubeCurrent Exposure ExposureInuAs FocalSpots GeneratorPower SingleCollimationWidth
            TotalCollimationWidth TableSpeed TableFeedPerRotation SpiralPitchFactor RevolutionTime
            CTDIvol RelativeXRayExposure Sensitivity DetectorElementSpacing FieldOfViewDimensions
            FieldOfViewOrigin FieldOfViewRotation ExposureIndex TargetExposureIndex DeviationIndex
            PositionerPrimaryAngle PositionerSecondaryAngle BodyPartThickness FrameTime
            FrameTimeVector FrameDelay StartTrim StopTrim RecommendedDisplayFrameRate CineRate
            EffectiveDuration ActualFrameDuration PreferredPlaybackSequencing StageNumber
            NumberOfStages ViewNumber NumberOfViewsInStage MechanicalIndex BoneThermalIndex
            CranialThermalIndex SoftTissueThermalIndex DepthOfScanField FocusDepth
        """,
        "term": """
            SpecificCharacterSet SyntheticData Modality ConversionType Manufacturer PatientSex
            PresentationIntentType PhotometricInterpretation LossyImageCompression
            LossyImageCompressionMethod BurnedInAnnotation RecognizableVisualFeatures
            PixelIntensityRelationship PresentationLUTShape VOILUTFunction RescaleType
            BodyPartExamined PatientPosition Laterality ImageLaterality ViewPosition
            FieldOfViewShape RotationDirection ScanningSequence SequenceVariant ScanOptions
            MRAcquisitionType AngioFlag ImagedNucleus InPlanePhaseEncodingDirection
            PixelPresentation VolumetricProperties VolumeBasedCalculationTechnique
            ComplexImageComponent AcquisitionContrast ContentQualification
        """,
        "image_type": "ImageType",
        "orientation": "PatientOrientation",
        "age": "PatientAge",
        "date": """
            InstanceCreationDate StudyDate SeriesDate AcquisitionDate ContentDate
            AcquisitionDateTime
        """,
        "uid": """
            SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID
            SynchronizationFrameOfReferenceUID ConcatenationUID SOPInstanceUIDOfConcatenationSource
            IrradiationEventUID
        """,
        "registered_uid": "SOPClassUID",
        "pointer": "FrameIncrementPointer",
        "pseudonym": "PatientName PatientID",
        "emptied": "StudyTime AccessionNumber ReferringPhysicianName PatientBirthDate StudyID",
        "ours": """
            PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
            LongitudinalTemporalInformationModified
        """,
    },
    {
        "SequenceOfUltrasoundRegions": _REGION,
        "ReferencedImageSequence": _REFERENCE,
        "SourceImageSequence": _REFERENCE,
        "ModalityLUTSequence": _CURVE,
        "VOILUTSequence": _CURVE,
        "DimensionOrganizationSequence": _rules({"uid": "DimensionOrganizationUID"}),
        "DimensionIndexSequence": _DIMENSION,
        "RealWorldValueMappingSequence": _FRAME["RealWorldValueMappingSequence"],
        "SharedFunctionalGroupsSequence": _FRAMES,
        "PerFrameFunctionalGroupsSequence": _FRAMES,
    },
)
"""Of the object itself."""

FILE_META: Final[Mapping[int, Rule]] = _rules(
    {
        "registered_uid": "MediaStorageSOPClassUID TransferSyntaxUID",
        "uid": "MediaStorageSOPInstanceUID",
    }
)
"""Of the file's preface, group 0002."""
