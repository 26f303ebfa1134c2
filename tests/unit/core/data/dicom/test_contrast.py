"""The weighting of an MR image is guessed from timing and name, and not where they disagree."""

from __future__ import annotations

import pytest

from vitrael.core.data.dicom.contrast import guess_contrast, names_agent
from vitrael.core.data.dicom.elements import Elements
from vitrael.core.data.dicom.tags import TAG


def header(name: str = "", sequence: str = "", **numbers: float) -> Elements:
    texts = {"SeriesDescription": name, "ScanningSequence": sequence}
    texts |= {keyword: f"{number:g}" for keyword, number in numbers.items()}
    return Elements({TAG[keyword]: text.encode() for keyword, text in texts.items()}, little=True)


def timed(sequence: str, tr: float, te: float, ti: float = 0, flip: float = 90) -> Elements:
    return header("", sequence, RepetitionTime=tr, EchoTime=te, InversionTime=ti, FlipAngle=flip)


@pytest.mark.parametrize(
    ("elements", "contrast"),
    [
        (timed("GR\\IR", 2300, 2.98, ti=900, flip=9), "T1w"),  # magnetization prepared, 3 T
        (timed("GR\\IR", 1900, 2.3, ti=900, flip=9), "T1w"),
        (timed("SE", 550, 12), "T1w"),
        (timed("GR", 25, 4.6, flip=30), "T1w"),  # spoiled
        (timed("GR", 25, 4.6, flip=5), None),  # weighted by proton density
        (timed("GR", 500, 20, flip=20), None),  # T2*
        (timed("SE", 5500, 100), "T2w"),
        (timed("SE", 2500, 15), None),  # weighted by proton density
        (timed("SE\\IR", 9000, 120, ti=2500), "FLAIR"),
        (timed("SE\\IR", 5000, 388, ti=1800), "FLAIR"),  # three-dimensional
        (timed("SE\\IR", 4000, 30, ti=150), None),  # short inversion time: fat is nulled
        (timed("EP\\SE", 6000, 90), None),
        (timed("EP", 2000, 30), None),
    ],
)
def test_timing_tells_the_weighting(elements: Elements, contrast: str | None) -> None:
    assert guess_contrast(elements) == contrast


@pytest.mark.parametrize(
    ("name", "contrast"),
    [
        ("anat-T1w", "T1w"),
        ("t1_mprage_sag_p2_iso", "T1w"),
        ("Sag 3D BRAVO", "T1w"),
        ("sub1_t1_tse", "T1w"),
        ("t2_tse_tra_384", "T2w"),
        ("AX T2 FSE", "T2w"),
        ("t2_tirm_tra_dark-fluid", "FLAIR"),
        ("AX T2 FLAIR", "FLAIR"),
        ("Ax T1 FLAIR", None),
        ("t2*_gre", None),
        ("T2 star", None),
        ("t1 map", None),
        ("t1_mp2rage_UNI_Images", "T1w"),
        ("t1_mp2rage_INV1", None),
        ("t1_mp2rage_T1_Images", None),
        ("ep2d_diff_3scan_trace", None),
        ("3-plane localizer t1", None),
        ("func_task-oneback_run-1", None),
        ("t1 and t2", None),
        ("whole brain", None),
        ("", None),
    ],
)
def test_the_name_of_the_series_tells_the_weighting(name: str, contrast: str | None) -> None:
    assert guess_contrast(header(name)) == contrast


def test_what_contradicts_itself_is_not_guessed() -> None:
    timing = {"RepetitionTime": 5500.0, "EchoTime": 100.0}
    assert guess_contrast(header("t2 tse", "SE", **timing)) == "T2w"
    assert guess_contrast(header("t1 tse", "SE", **timing)) is None


@pytest.mark.parametrize(
    ("image_type", "contrast"),
    [
        ("ORIGINAL\\PRIMARY\\M\\ND", "T1w"),
        ("ORIGINAL\\PRIMARY\\M_FFE\\M\\FFE", "T1w"),
        ("DERIVED\\SECONDARY\\MPR", "T1w"),
        ("ORIGINAL\\PRIMARY\\P\\ND", None),
        ("ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE", None),
        ("DERIVED\\PRIMARY\\M\\T1 MAP", None),
        ("DERIVED\\SECONDARY\\MIP", None),
    ],
)
def test_phase_images_and_maps_have_no_weighting(image_type: str, contrast: str | None) -> None:
    elements = header("t1_mprage", "GR", RepetitionTime=25, EchoTime=4.6, FlipAngle=30)
    told = {TAG["ImageType"]: image_type.encode()}
    assert guess_contrast(Elements({**elements.values, **told}, little=True)) == contrast


@pytest.mark.parametrize(
    ("word", "contrast"), [("T1", "T1w"), ("T2", "T2w"), ("FLUID_ATTENUATED", "FLAIR"), ("X", None)]
)
def test_an_enhanced_image_says_its_weighting(word: str, contrast: str | None) -> None:
    elements = Elements({TAG["AcquisitionContrast"]: word.encode()}, little=True)
    assert guess_contrast(elements) == contrast


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        ("AX T1 POST", True),
        ("SAG T1 postcontrast FS", True),
        ("t1_mprage_sag_p2_iso_KM", True),
        ("T1 3D +Gd", True),
        ("T1 +C", True),
        ("t1_ce", True),
        ("t1 nach Gadovist", True),
        ("Ax T1 Pre", False),
        ("T1 w/o Gd", False),
        ("t1 ohne KM", False),
        ("t1 post-op", False),
        ("posterior fossa T1", False),
        ("t1 space", False),
        ("face T1", False),
        ("", False),
    ],
)
def test_an_agent_is_known_by_how_the_series_is_called(name: str, *, agent: bool) -> None:
    assert names_agent(header(name)) == agent
