"""Twenty-one made-up DICOM headers, each with identifiers of one kind planted in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pydicom
from pydicom import config, uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset as DicomHeader
from pydicom.dataset import FileMetaDataset as FileMeta
from pydicom.tag import BaseTag, Tag

Plant = Callable[[DicomHeader], None]


def made_up_header(modality: str = "MR") -> DicomHeader:
    """Return a plain header that holds no plant."""
    header = DicomHeader()
    header.SOPClassUID = uid.MRImageStorage
    header.SOPInstanceUID = "1.2.3.4.5.1"
    header.StudyInstanceUID = "1.2.3.4.5.2"
    header.SeriesInstanceUID = "1.2.3.4.5.3"
    header.Modality = modality
    header.PatientName = "A^B"
    header.PatientID = "C"
    header.PatientSex = "F"
    header.PatientAge = "047Y"
    header.StudyDate = "20140425"
    header.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    header.Rows, header.Columns = 16, 24
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.PixelRepresentation = 0
    header.PixelSpacing = [0.9, 0.8]
    header.ImagePositionPatient = [-95.7, -144.1, -20.3]
    header.RepetitionTime = "2000.5"
    header.DiffusionBValue = 1000.0
    header.file_meta = FileMeta()
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return header


def encode(header: DicomHeader, syntax: uid.UID | None = None) -> bytes:
    """Return the bytes of a header's file."""
    if syntax is not None:
        header.file_meta.TransferSyntaxUID = syntax
    target = io.BytesIO()
    header.save_as(target, enforce_file_format=True)
    return target.getvalue()


def decode(data: bytes) -> DicomHeader:
    return pydicom.dcmread(io.BytesIO(data))


def set_all(**values: object) -> Plant:
    def plant(header: DicomHeader) -> None:
        for keyword, value in values.items():
            setattr(header, keyword, value)

    return plant


def item(**values: object) -> DicomHeader:
    found = DicomHeader()
    set_all(**values)(found)
    return found


def raw_element(tag: BaseTag, vr: str, value: bytes) -> RawDataElement:
    return RawDataElement(
        tag, vr, len(value), value, value_tell=0, is_implicit_VR=False, is_little_endian=True
    )


def add_raw(header: DicomHeader, keyword: str, vr: str, value: bytes) -> None:
    """Put bytes in the place of an element, whatever its VR allows."""
    header[keyword] = raw_element(Tag(keyword), vr, value)


def plant_private(header: DicomHeader) -> None:
    block = header.private_block(0x0029, "ZEPHYRHOSPITAL HEADER", create=True)
    block.add_new(0x10, "LO", "Quastenflosser")
    block.add_new(0x11, "SQ", [item(PatientName="Rumpelstilz", PatientID="PRIVID889977")])
    block.add_new(0x12, "OB", b"Kaltenbrunner-raw")


def plant_in_listed_sequences(header: DicomHeader) -> None:
    region = item(RegionSpatialFormat=1, TransducerType="Silberfisch")
    region.add_new(0x00200010, "SH", "NESTEDSTUDY31")
    header.SequenceOfUltrasoundRegions = [region]
    content = item(FrameComments="Kommentar Abendrot", FrameAcquisitionDateTime="20140425134759.12")
    frame = item(FrameContentSequence=[content])
    anatomy = item(CodeValue="CODEX7", CodeMeaning="Herr Sturmvogel")
    frame.FrameAnatomySequence = [item(FrameLaterality="R", AnatomicRegionSequence=[anatomy])]
    header.PerFrameFunctionalGroupsSequence = [frame]
    header.ReferencedImageSequence = [item(ReferencedSOPInstanceUID="1.2.826.0.1.77711.5")]


def plant_bytes(header: DicomHeader) -> None:
    header.add_new(0x00091002, "UN", b"unknownprivate Amsel")
    header.add_new(0x0040A0FF, "UN", b"unknownpublic Drossel")
    header.add_new(0x00420011, "OB", b"%PDF encapsulated Finkenberg")
    add_raw(header, "Manufacturer", "UN", b"Starenkasten")
    add_raw(header, "RepetitionTime", "DS", b"Eisvogel")
    add_raw(header, "DiffusionBValue", "FD", b"Bussard9")
    add_raw(header, "Rows", "US", b"Zeisig")
    add_raw(header, "AcquisitionMatrix", "US", b"Pirolweg")
    add_raw(header, "SliceThickness", "LO", b"Wachtelkoenig ")


def plant_overlays(header: DicomHeader) -> None:
    header.add_new(0x60003000, "OW", b"OVERLAYPICTURE Habicht")
    header.add_new(0x60000022, "LO", "Overlay of Sperber")
    header.add_new(0x60004000, "LT", "Overlay comment Milan")
    header.add_new(0x50003000, "OW", b"CURVEDATA Uhu-Kauz")
    header.IconImageSequence = [item(PatientComments="ICON Schleiereule")]


def plant_file_meta(header: DicomHeader) -> None:
    header.file_meta.SourceApplicationEntityTitle = "KLINIKUMLUCHS"
    header.file_meta.ImplementationVersionName = "SITEPACSOTTER"
    header.file_meta.PrivateInformationCreatorUID = "1.2.276.0.55501"
    header.file_meta.PrivateInformation = b"private preface Dachs "


UMLAUTS = {
    "PatientName": "Zwölfenstein^Brünhilde",
    "OtherPatientNames": "Größenwahn^Ägidius",
}

PLANTS: dict[str, tuple[str, Plant]] = {
    "names": ("Lindwurm Eleonora", set_all(PatientName="Lindwurm^Eleonora^^Dr")),
    "names in latin-1": (
        "Zwölfenstein Brünhilde Größenwahn Ägidius",
        set_all(SpecificCharacterSet="ISO_IR 100", **UMLAUTS),
    ),
    "names in utf-8": (
        "Zwölfenstein Brünhilde Größenwahn Ägidius",
        set_all(SpecificCharacterSet="ISO_IR 192", **UMLAUTS),
    ),
    "other ids": (
        "MRN0815XK INS99887766 ALIASPERSON MUTTERNAME",
        set_all(
            PatientID="MRN0815XK",
            OtherPatientIDs="INS99887766",
            OtherPatientNames="ALIASPERSON",
            PatientMotherBirthName="MUTTERNAME",
            OtherPatientIDsSequence=[item(PatientID="MRN0815XK")],
        ),
    ),
    "dates": (
        "19431224 20140426 20140427 20991231",
        set_all(
            PatientBirthDate="19431224",
            AcquisitionDate="20140426",
            AcquisitionDateTime="20140427134759.123456",
            PerformedProcedureStepStartDate="20140426",
            SeriesNumber="20991231",
        ),
    ),
    "times": (
        "134759.123 061522 0215",
        set_all(StudyTime="134759.123", AcquisitionTime="061522", PatientBirthTime="0215"),
    ),
    "addresses": (
        "Kastanienallee 76199 +49721555 Ruritania",
        set_all(
            PatientAddress="Kastanienallee 3, 76199 K",
            PatientTelephoneNumbers="+49721555",
            CountryOfResidence="Ruritania",
            PatientReligiousPreference="Kastanienallee",
        ),
    ),
    "institution": (
        "Zauberberg Davosstrasse Radiologie-Ost",
        set_all(
            InstitutionName="Klinik Zauberberg",
            InstitutionAddress="Davosstrasse 1",
            InstitutionalDepartmentName="Radiologie-Ost",
        ),
    ),
    "physicians": (
        "Behrens Krokowski Settembrini Naphta",
        set_all(
            ReferringPhysicianName="Behrens^Hofrat",
            OperatorsName=["Krokowski", "Settembrini"],
            PerformingPhysicianName="Naphta",
            RequestingPhysician="Behrens",
        ),
    ),
    "devices": (
        "SN-7788-44 KABINE7 PLATE31 GANTRYID9 1.2.276.0.9911.7",
        set_all(
            DeviceSerialNumber="SN-7788-44",
            StationName="KABINE7",
            PlateID="PLATE31",
            GantryID="GANTRYID9",
            DeviceUID="1.2.276.0.9911.7",
        ),
    ),
    "numbers of orders": (
        "ACC20140001 FALL7781 STUDYID55 ADM6612",
        set_all(
            AccessionNumber="ACC20140001",
            RequestedProcedureID="FALL7781",
            StudyID="STUDYID55",
            AdmissionID="ADM6612",
        ),
    ),
    "descriptions": (
        "Castorp Peeperkorn Chauchat",
        set_all(
            StudyDescription="Head of Castorp",
            SeriesDescription="t1 Peeperkorn",
            ProtocolName="Chauchat protocol",
            DerivationDescription="by Castorp",
        ),
    ),
    "comments": (
        "Liliencron Wieland Hoelderlin",
        set_all(
            ImageComments="for Liliencron",
            PatientComments="Wieland",
            AdditionalPatientHistory="cousin of Hoelderlin",
        ),
    ),
    "private": (
        "ZEPHYRHOSPITAL Quastenflosser Rumpelstilz PRIVID889977 Kaltenbrunner",
        plant_private,
    ),
    "nested, not listed": (
        "NestedMoerike REQ5531 1.2.840.99.1234.77",
        set_all(
            RequestAttributesSequence=[
                item(
                    RequestedProcedureID="REQ5531",
                    RequestedProcedureCodeSequence=[item(CodeMeaning="NestedMoerike")],
                )
            ],
            ReferencedStudySequence=[item(ReferencedSOPInstanceUID="1.2.840.99.1234.77")],
        ),
    ),
    "nested, listed": (
        "Silberfisch NESTEDSTUDY31 Abendrot 134759 CODEX7 Sturmvogel 1.2.826.0.1.77711.5",
        plant_in_listed_sequences,
    ),
    "uids": (
        "1.2.276.0.7230010.3.1.4.8323329 1.2.276.0.7230010.9 1.2.276.0.7230010.11",
        set_all(
            SOPInstanceUID="1.2.276.0.7230010.3.1.4.8323329",
            StudyInstanceUID="1.2.276.0.7230010.9",
            FrameOfReferenceUID="1.2.276.0.7230010.11",
        ),
    ),
    "listed text": (
        "Nachtigall Lerchensporn KUCKUCK Rotkehlchen HERRWIEDEHOPF GELBSPOETTER",
        set_all(
            Manufacturer="Nachtigall",
            RescaleType="Lerchensporn",
            BodyPartExamined="KUCKUCK",
            ImagedNucleus="Rotkehlchen",
            ImageType=["ORIGINAL", "PRIMARY", "HERRWIEDEHOPF"],
            ScanOptions=["FS", "GELBSPOETTER"],
        ),
    ),
    "bytes": (
        "Amsel Drossel Finkenberg Starenkasten Eisvogel Bussard9 Zeisig Pirolweg Wachtelkoenig",
        plant_bytes,
    ),
    "overlays and thumbnails": ("Habicht Sperber Milan Uhu-Kauz Schleiereule", plant_overlays),
    "file meta": ("KLINIKUMLUCHS SITEPACSOTTER 1.2.276.0.55501 Dachs", plant_file_meta),
}


def spellings(word: str) -> Iterator[bytes]:
    for text in (word, word.lower(), word.upper()):
        for encoding in ("latin-1", "utf-8", "utf-16-le", "utf-16-be"):
            yield text.encode(encoding)


def found_in(data: bytes, word: str) -> bool:
    return any(form in data or form in data.lower() for form in spellings(word))


SYNTAXES = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)


@contextmanager
def careless() -> Iterator[None]:
    """Let values be written that no standard allows."""
    before = config.settings.reading_validation_mode, config.settings.writing_validation_mode
    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    yield
    config.settings.reading_validation_mode, config.settings.writing_validation_mode = before


def planted_header(name: str, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> DicomHeader:
    """Return a header with one plant, even where no standard allows its values."""
    with careless():
        header = made_up_header()
        PLANTS[name][1](header)
    # What was planted as bytes is written as it is.
    header.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian, ["iso8859"])
    return header


def planted(name: str, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> bytes:
    """Return the file of a header with one plant."""
    with careless():
        return encode(planted_header(name, syntax), syntax)
