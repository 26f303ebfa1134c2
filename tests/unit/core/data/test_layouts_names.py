"""What names and cells tell of contrast and mask, and what a name becomes as a subject."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from vitrael.core.data.layouts.names import (
    ENHANCED,
    OTHER_MASK,
    contrast_word,
    plain_name,
    read_entities,
    read_name,
)

CONTRASTS = {
    "p1_T1": "T1w",
    "p1_T1W_2mm": "T1w",
    "p1_t1w": "T1w",
    "T1_a": "T1w",
    "PD_001_T1w": "T1w",
    "sub-01_ses-post_T1w": "T1w",
    "sub-01_space-FLAIR_T1w": "T1w",
    "p1_T1W_to_FLAIR": "T1w",
    "p1_T2W": "T2w",
    "cs07_T2_2mm": "T2w",
    "p1_FLAIR_raw": "FLAIR",
    "p1_T2_FLAIR": "FLAIR",
    "cs07_T1POST_2mm": ENHANCED,
    "p1_T1_gd": ENHANCED,
    "sub-01_ce-gadolinium_T1w": ENHANCED,
    "sub-01_T2star": "else",
    "sub-01_bold": "else",
    "sub-01_dwi": "else",
    "p1_T1map": "else",
    "a": "",
    "PD_001": "",
}


@pytest.mark.parametrize("stem", CONTRASTS)
def test_name_tells_the_contrast(stem: str) -> None:
    name = read_name(PurePath(f"{stem}.nii.gz"))
    assert (name.contrast, name.mask) == (CONTRASTS[stem], "")


MASKS = {
    "sub-01_desc-brain_mask": "brain",
    "lg01_brainmask": "brain",
    "p1_brain_mask": "brain",
    "cs01_lesions_1mm": "lesion",
    "sub-01_label-lesion_mask": "lesion",
    "p1_lesion": "lesion",
    "p1_lesionchange": OTHER_MASK,
    "sub-01_label-lesion_probseg": OTHER_MASK,
    "sub-01_dseg": OTHER_MASK,
    "p1_T1seg_gif": OTHER_MASK,
    "p1_brainstem_mask": OTHER_MASK,
}


@pytest.mark.parametrize("stem", MASKS)
def test_name_tells_a_mask(stem: str) -> None:
    name = read_name(PurePath(f"{stem}.nii.gz"))
    assert (name.contrast, name.mask) == ("", MASKS[stem])


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("MR-T1w", ("T1w", "")),
        ("t1", ("T1w", "")),
        ("MR-T1w-Gd", (ENHANCED, "")),
        ("MR-T2w", ("T2w", "")),
        ("T2 FLAIR", ("FLAIR", "")),
        ("MR-T2w(looks like FLAIR)", ("else", "")),
        ("MASK-brain", ("", "brain")),
        ("MASK-lesion", ("", "lesion")),
        ("MASK-lesion-change", ("", OTHER_MASK)),
        ("LABEL-brain", ("", OTHER_MASK)),
        ("MR", ("", "")),
        ("", ("", "")),
    ],
)
def test_cell_tells_contrast_or_mask(cell: str, expected: tuple[str, str]) -> None:
    assert contrast_word(cell) == expected


@pytest.mark.parametrize(
    ("stem", "subject"),
    [
        ("p1_T1W", "p1"),
        ("p1_T2_FLAIR_2mm", "p1"),
        ("p1_brainmask", "p1"),
        ("p1_label-lesion_mask", "p1"),
        ("T1_p1_run-2", "p1"),
        ("T1", "unnamed"),
        ("x_sub-7_T1w", "sub-7"),
    ],
)
def test_all_files_of_a_patient_leave_one_subject(stem: str, subject: str) -> None:
    assert read_name(PurePath(f"{stem}.nii.gz")).subject == subject


def test_plain_names_stay_different_and_hold_no_formula() -> None:
    names = ["=a", "%3Da", "a\nb", "a%0Ab", "-a", "+a", "@a", "na", "na%", "\udce4", "%E4", "ä"]
    plain = [plain_name(name) for name in names]
    assert len(set(plain)) == len(names)
    assert all(text.isprintable() and text[0] not in "=+-@" for text in plain)
    assert plain_name("a\u0308") == "ä"


UNCLEAR = [
    "sub-01/anat/sub-02_T1w",
    "sub-01/ses-1/anat/sub-01_ses-2_T1w",
    "sub-patient_01_T1w",
    "sub-north-001_T1w",
    "sub-jörg_T1w",
    "sub-anna lena_T1w",
    "sub-01_ses-2020-01-02_T1w",
]
CLEAR = [
    "sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w",
    "sub-01/anat/sub-01_acq-a_T1w_2mm",
    "x_sub-7_T1w",
    "p1/T1_01",
    "sub-01/T1",
]


@pytest.mark.parametrize("path", [*UNCLEAR, *CLEAR])
def test_name_that_bids_does_not_allow_is_not_clear(path: str) -> None:
    inside = PurePath(f"{path}.nii.gz")
    assert read_name(inside).is_clear == read_entities(inside).is_clear == (path in CLEAR)
