"""The words that an element of text may hold: a name in such a place is not among them.

Defined terms of DICOM PS3.3 and the spellings of a few makers. An element with another word is
dropped; in an image's type the word alone is, because there the place of a word has a meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations, product
from typing import Final

_YES_NO: Final = "YES|NO"

TERMS: Final[Mapping[str, frozenset[str]]] = {
    keyword: frozenset(text.split("|"))
    for keyword, text in {
        "SpecificCharacterSet": (
            "|ISO_IR 6|ISO_IR 13|ISO_IR 100|ISO_IR 101|ISO_IR 109|ISO_IR 110|ISO_IR 126|ISO_IR 127"
            "|ISO_IR 138|ISO_IR 144|ISO_IR 148|ISO_IR 166|ISO_IR 192|ISO_IR 203|ISO 2022 IR 6"
            "|ISO 2022 IR 13|ISO 2022 IR 58|ISO 2022 IR 87|ISO 2022 IR 100|ISO 2022 IR 101"
            "|ISO 2022 IR 109|ISO 2022 IR 110|ISO 2022 IR 126|ISO 2022 IR 127|ISO 2022 IR 138"
            "|ISO 2022 IR 144|ISO 2022 IR 148|ISO 2022 IR 149|ISO 2022 IR 159|ISO 2022 IR 166"
            "|ISO 2022 IR 203|GB18030|GBK"
        ),
        "SyntheticData": _YES_NO,
        "Modality": (
            "CR|CT|DX|ES|GM|IO|IVUS|MG|MR|NM|OP|OPT|OT|PT|PX|RF|RG|SC|SM|US|XA|XC|BMD|BDUS|SEG"
        ),
        "ConversionType": "DV|DI|DF|WSD|SD|SI|DRW|SYN",
        "Manufacturer": (
            "SIEMENS|Siemens|Siemens Healthineers|SIEMENS HEALTHINEERS"
            "|Siemens HealthCare GmbH|GE MEDICAL SYSTEMS|GE Healthcare|GE HEALTHCARE"
            "|GE Vingmed Ultrasound|GE Ultrasound|GEMS Ultrasound|Philips Medical Systems"
            "|Philips Healthcare|Philips|PHILIPS|PHILIPS-MR|PMS-MR|ATL|TOSHIBA|TOSHIBA_MEC"
            "|TOSHIBA_MEC_US|TOSHIBA_MEC_MR3|CANON_MEC|Canon Medical Systems|Canon Inc."
            "|Hitachi|HITACHI|Hitachi Medical Corporation|ALOKA|Aloka|FUJIFILM Corporation"
            "|FUJI PHOTO FILM Co., ltd.|FUJIFILM Healthcare|FUJIFILM SonoSite|SonoSite, Inc."
            "|SonoSite|SAMSUNG MEDISON CO., LTD.|Samsung|Mindray|Shenzhen Mindray|ESAOTE"
            "|Esaote|ESAOTE S.p.A.|ACUSON|Acuson|Butterfly Network Inc|KONICA MINOLTA|KODAK"
            "|Carestream Health|Carestream|Agfa|AGFA|Agfa-Gevaert|Hologic|HOLOGIC, Inc."
            "|Neusoft|NMS|UIH|Bruker|Bruker BioSpin MRI GmbH|Varian"
        ),
        "PatientSex": "M|F|O",
        "PresentationIntentType": "FOR PRESENTATION|FOR PROCESSING",
        "PhotometricInterpretation": (
            "MONOCHROME1|MONOCHROME2|PALETTE COLOR|RGB|YBR_FULL|YBR_FULL_422|YBR_PARTIAL_420"
            "|YBR_PARTIAL_422|YBR_ICT|YBR_RCT|XYB"
        ),
        "LossyImageCompression": "00|01",
        "LossyImageCompressionMethod": (
            "ISO_10918_1|ISO_14495_1|ISO_15444_1|ISO_15444_15|ISO_13818_2|ISO_14496_10|ISO_23008_2"
            "|ISO_18181_1"
        ),
        "BurnedInAnnotation": _YES_NO,
        "RecognizableVisualFeatures": _YES_NO,
        "PixelIntensityRelationship": "LIN|LOG|DISP",
        "PresentationLUTShape": "IDENTITY|INVERSE|LIN OD",
        "VOILUTFunction": "LINEAR|LINEAR_EXACT|SIGMOID",
        "RescaleType": "HU|OD|US|MGML|Z_EFF|ED|EDW|HU_MOD|PCT|normalized|NORMALIZED",
        "ModalityLUTType": "HU|OD|US|MGML|Z_EFF|ED|EDW|HU_MOD|PCT",
        "BodyPartExamined": (
            "ABDOMEN|ABDOMENPELVIS|ANKLE|AORTA|ARM|BLADDER|BRAIN|BREAST|CAROTID|CHEST"
            "|CHESTABDOMEN|CHESTABDPELVIS|CSPINE|EAR|ELBOW|EXTREMITY|EYE|FINGER|FOOT|HAND|HEAD"
            "|HEADNECK|HEART|HIP|JAW|KIDNEY|KNEE|LEG|LIVER|LSPINE|LUNG|NECK|PANCREAS|PELVIS"
            "|PROSTATE|RIB|SHOULDER|SINUS|SKULL|SPINE|SSPINE|STERNUM|TESTIS|THYROID|TMJ|TSPINE"
            "|UTERUS|WHOLEBODY|WRIST"
        ),
        "PatientPosition": (
            "HFP|HFS|HFDR|HFDL|FFDR|FFDL|FFP|FFS|LFP|LFS|RFP|RFS|AFDR|AFDL|PFDR|PFDL"
        ),
        "Laterality": "R|L|U|B",
        "ImageLaterality": "R|L|U|B",
        "FrameLaterality": "R|L|U|B",
        "ViewPosition": "AP|PA|LL|RL|RLD|LLD|RLO|LLO|LATERAL|LAT|CC|MLO|ML|LM|LAO|RAO|LPO|RPO",
        "FieldOfViewShape": "ROUND|RECTANGLE|HEXAGONAL",
        "RotationDirection": "CW|CC",
        "ScanningSequence": "SE|IR|GR|EP|RM",
        "SequenceVariant": "SK|MTC|SS|TRSS|SP|MP|OSP|NONE",
        "ScanOptions": (
            "PER|RG|CG|PPG|FC|PFF|PFP|SP|FS|FAT_SAT|SAT1|SAT2|WE|IR|MT|SFS|CT|GP|TRF|EPI_GEMS|NONE"
            "|HELICAL MODE|AXIAL MODE|SCOUT MODE|CINE MODE|FAST_GEMS|ACC_GEMS|EDR_GEMS"
            "|FILTERED_GEMS"
        ),
        "MRAcquisitionType": "1D|2D|3D",
        "AngioFlag": "Y|N",
        "ImagedNucleus": "H|1H|2H|3HE|7LI|13C|19F|23NA|31P|129XE",
        "InPlanePhaseEncodingDirection": "ROW|COL|COLUMN|OTHER",
        "PixelPresentation": "COLOR|MONOCHROME|MIXED|TRUE_COLOR|COLOR_RANGE|COLOR_REF",
        "VolumetricProperties": "VOLUME|SAMPLED|DISTORTED|MIXED",
        "VolumeBasedCalculationTechnique": (
            "NONE|MAX_IP|MIN_IP|VOLUME_RENDER|SURFACE_RENDER|MPR|CURVED_MPR|MIXED"
        ),
        "ComplexImageComponent": "MAGNITUDE|PHASE|REAL|IMAGINARY|MIXED",
        "AcquisitionContrast": (
            "DIFFUSION|FLOW_ENCODED|FLUID_ATTENUATED|PERFUSION|PROTON_DENSITY|STIR|TAGGING|T1|T2"
            "|T2_STAR|TOF|UNKNOWN|MIXED"
        ),
        "ContentQualification": "PRODUCT|RESEARCH|SERVICE",
        "InversionRecovery": _YES_NO,
        "DiffusionDirectionality": "DIRECTIONAL|BMATRIX|ISOTROPIC|NONE",
        "TransducerType": (
            "SECTOR_PHASED|SECTOR_MECH|SECTOR_ANNULAR|LINEAR|CURVED LINEAR|SINGLE CRYSTAL"
            "|SPLIT XTAL CWD|IV_PHASED|IV_ROT XTAL|IV_ROT MIRROR|ENDOCAV_PA|ENDOCAV_MECH"
            "|ENDOCAV_CLA|ENDOCAV_AA|ENDOCAV_LINEAR|VECTOR_PHASED"
        ),
    }.items()
}

OTHER: Final = "OTHER"
"""What stands in an image's type where a word was not known."""
_IMAGE_TYPE_WORDS: Final = (
    "ORIGINAL|DERIVED|MIXED|PRIMARY|SECONDARY|OTHER|NONE|AXIAL|LOCALIZER|"
    "CSA MPR|CSAPARALLEL|M|P|R|I|M_FFE|M_SE|M_IR|M_PCA|FFE|SE|IR|PCA|"
    "MAGNITUDE|PHASE|PHASE MAP|REAL|IMAGINARY|ND|NORM|DIS2D|DIS3D|MPR|MIP|"
    "MINIP|MAX_IP|MIN_IP|AVERAGE|MEAN|SUM|MOSAIC|FM|FIL|MFSPLIT|ADC|TRACEW|"
    "FA|DIFFUSION|ASL|PERFUSION|SUB|SUBTRACTION|PROJECTION IMAGE|VOLUME|"
    "RESAMPLED|REFORMATTED|FLOW_ENCODED|FLUID_ATTENUATED|PROTON_DENSITY|STIR|T1|"
    "T2|T2_STAR|T1 MAP|T2 MAP|T2_STAR MAP|TAGGING|TOF|FIELD_MAP|WATER|FAT|"
    "IN_PHASE|OUT_OF_PHASE|DYNAMIC|STATIC|GATED|CINE|SCREEN SAVE|ABDOMINAL|"
    "BREAST|CHEST|ENDOCAVITARY|ENDORECTAL|ENDOVAGINAL|EPICARDIAL|FETAL HEART|"
    "GYNECOLOGY|INTRACARDIAC|INTRAOPERATIVE|INTRAVASCULAR|MUSCULOSKELETAL|"
    "NEONATAL HEAD|OBSTETRICAL|OPHTHALMIC|PEDIATRIC|PELVIC|RETROPERITONEAL|SCROTAL|"
    "SMALL PARTS|TEE|THYROID|TRANSCRANIAL|TRANSESOPHAGEAL|TTE|VASCULAR"
)
IMAGE_TYPES: Final = frozenset(_IMAGE_TYPE_WORDS.split("|")) | frozenset(
    f"{bits:04X}" for bits in (0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x10, 0x11)
)
"""Words of (0008,0008) and (0008,9007); the last ones are the modes of an ultrasound image."""

_AXES: Final = ("LR", "AP", "HF")
ORIENTATIONS: Final = frozenset(
    "".join(letters)
    for axes in (axes for count in (1, 2, 3) for axes in permutations(_AXES, count))
    for letters in product(*axes)
)
"""Directions of a row or a column of pixels, such as ``L`` or ``AF``."""
