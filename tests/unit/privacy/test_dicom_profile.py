from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from vitrael.privacy.dicom_profile import FILE_META, HEADER, Code, Rule
from vitrael.privacy.dicom_terms import IMAGE_TYPES, ORIENTATIONS, OTHER, TERMS

NUMBERS = {"DS", "IS", "US", "SS", "UL", "SL", "FL", "FD"}
FREE_TEXT = {"LO", "SH", "ST", "LT", "UT", "UC", "UR", "PN", "AE", "OB", "UN", "TM"}

GROUPS = {0x0002, 0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0028, 0x0040, 0x2050, 0x5200}

BY_THE_STANDARD: dict[str, tuple[str, str]] = {
    # keyword: what table E.1-1 asks for with our two options, what is done
    "AccessionNumber": ("Z", "Z"),
    "AcquisitionDate": ("C", "C"),
    "AcquisitionDateTime": ("C", "C"),
    "ConcatenationUID": ("U", "U"),
    "ContentDate": ("C", "C"),
    "DimensionOrganizationUID": ("U", "U"),
    "FrameAcquisitionDateTime": ("C", "C"),
    "FrameReferenceDateTime": ("C", "C"),
    "FrameOfReferenceUID": ("U", "U"),
    "InstanceCreationDate": ("C", "C"),
    "IrradiationEventUID": ("U", "U"),
    "MediaStorageSOPInstanceUID": ("U", "U"),
    "PatientAge": ("K", "C"),
    "PatientBirthDate": ("Z", "Z"),
    "PatientID": ("Z", "Z"),
    "PatientName": ("Z", "Z"),
    "PatientSex": ("K", "K"),
    "ReferencedSOPInstanceUID": ("U", "U"),
    "ReferringPhysicianName": ("Z", "Z"),
    "SeriesDate": ("C", "C"),
    "SeriesInstanceUID": ("U", "U"),
    "SOPInstanceUID": ("U", "U"),
    "StudyDate": ("C", "C"),
    "StudyID": ("Z", "Z"),
    "StudyInstanceUID": ("U", "U"),
    "StudyTime": ("C", "Z"),
    "SynchronizationFrameOfReferenceUID": ("U", "U"),
}
"""Elements of table E.1-1 that are listed."""
_REMOVED = """
    AcquisitionComments AcquisitionContextSequence AcquisitionDeviceProcessingDescription
    AcquisitionProtocolDescription AcquisitionTime ActualHumanPerformersSequence
    AdditionalPatientHistory AdmissionID AdmittingDate AdmittingDiagnosesDescription Allergies
    CassetteID ClinicalTrialSubjectID ContentCreatorName ContentSequence ContentTime
    ContrastBolusAgent ContributionDescription CountryOfResidence CurrentPatientLocation
    DataSetTrailingPadding DateOfSecondaryCapture DerivationDescription DetectorID
    DeviceSerialNumber DeviceUID DigitalSignaturesSequence EncapsulatedDocument EthnicGroup
    FrameComments GantryID GeneratorID IconImageSequence ImageComments InstanceCreatorUID
    InstitutionAddress InstitutionalDepartmentName InstitutionCodeSequence InstitutionName
    IssuerOfPatientID LastMenstrualDate MedicalAlerts MedicalRecordLocator MilitaryRank
    ModifiedAttributesSequence NameOfPhysiciansReadingStudy Occupation
    OperatorIdentificationSequence OperatorsName OriginalAttributesSequence OtherPatientIDs
    OtherPatientIDsSequence OtherPatientNames PatientAddress PatientBirthName PatientBirthTime
    PatientComments PatientMotherBirthName PatientReligiousPreference PatientSexNeutered PatientSize
    PatientState PatientTelephoneNumbers PatientWeight PerformedProcedureStepDescription
    PerformedProcedureStepID PerformedProcedureStepStartDate PerformedProcedureStepStartTime
    PerformedStationAETitle PerformingPhysicianName PersonIdentificationCodeSequence PersonName
    PlateID PregnancyStatus ProtocolName ReferencedPatientSequence
    ReferencedPerformedProcedureStepSequence ReferencedStudySequence RegionOfResidence
    RequestAttributesSequence RequestedProcedureDescription RequestedProcedureID RequestingPhysician
    ResponsiblePerson SeriesDescription SeriesTime SmokingStatus SpecialNeeds StationName
    StudyComments StudyDescription TimezoneOffsetFromUTC TransducerIdentificationSequence
    UniqueDeviceIdentifier VisitComments
"""
REMOVED_BY_THE_STANDARD = _REMOVED.split()


def all_rules(rules: Mapping[int, Rule]) -> Iterator[Rule]:
    for rule in rules.values():
        yield rule
        yield from all_rules(rule.items)


RULES = [*all_rules(HEADER), *all_rules(FILE_META)]


@pytest.mark.parametrize("keyword", REMOVED_BY_THE_STANDARD)
def test_what_the_standard_removes_is_not_listed_anywhere(keyword: str) -> None:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    assert tag not in {rule.tag for rule in RULES}


@pytest.mark.parametrize("keyword", BY_THE_STANDARD)
def test_what_the_standard_names_is_done_or_more(keyword: str) -> None:
    asked, done = BY_THE_STANDARD[keyword]
    rules = [rule for rule in RULES if rule.tag == tag_for_keyword(keyword)]
    assert {rule.code for rule in rules} == {done}
    strength: list[Code] = ["K", "C", "U", "Z"]
    assert all(strength.index(rule.code) >= strength.index(asked) for rule in rules)


def test_no_private_element_overlay_curve_or_pixel_is_listed() -> None:
    for rule in RULES:
        assert rule.tag >> 16 in GROUPS, keyword_for_tag(rule.tag)


def test_free_text_is_never_kept_as_it_is() -> None:
    for rule in RULES:
        if FREE_TEXT.isdisjoint(rule.vrs):
            continue
        assert rule.kind in {"term", "pseudonym", "emptied", "ours"}, keyword_for_tag(rule.tag)


def test_kinds_fit_what_they_judge() -> None:
    fitting = {
        "number": NUMBERS,
        "term": {"CS", "LO", "SH"},
        "image_type": {"CS"},
        "orientation": {"CS"},
        "age": {"AS"},
        "date": {"DA", "DT"},
        "uid": {"UI"},
        "registered_uid": {"UI"},
        "pointer": {"AT"},
        "curve": {"US", "OW"},
        "sequence": {"SQ"},
    }
    for rule in RULES:
        assert set(rule.vrs) <= fitting.get(rule.kind, set(rule.vrs)), keyword_for_tag(rule.tag)
        assert rule.vrs == tuple(dictionary_VR(rule.tag).split(" or "))
        assert bool(rule.terms) == (rule.kind == "term")
        assert bool(rule.items) == (rule.kind == "sequence")


def test_terms_are_words_that_their_elements_may_hold() -> None:
    for keyword, terms in TERMS.items():
        rule = next(rule for rule in RULES if rule.tag == tag_for_keyword(keyword))
        shape = r"[A-Z0-9 _]{0,16}" if rule.vrs == ("CS",) else r"[A-Za-z0-9 _.,-]{1,64}"
        assert [term for term in terms if not re.fullmatch(shape, term)] == []


def test_image_types_and_orientations() -> None:
    assert OTHER in IMAGE_TYPES
    assert all(re.fullmatch(r"[A-Z0-9 _]{1,16}", word) for word in IMAGE_TYPES)
    assert {"L", "PR", "AFR", "HP"} <= ORIENTATIONS
    assert {"LR", "AA", "X", "LAPH", ""}.isdisjoint(ORIENTATIONS)
    assert len(ORIENTATIONS) == 6 + 6 * 4 + 6 * 4 * 2


def test_page_for_data_stewards_names_all_that_is_kept(root: Path) -> None:
    text = (root / "docs/privacy/deidentification.md").read_text(encoding="utf-8")
    said = set(re.findall(r"`(\w+)`", text))
    assert {keyword_for_tag(rule.tag) for rule in RULES} - said == set()
    section = text.partition("## All that may stay")[2]
    listed = set(re.findall(r"`(\w+)`", section))
    assert listed - {keyword_for_tag(rule.tag) for rule in RULES} == set()
