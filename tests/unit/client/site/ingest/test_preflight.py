"""What the checks find in a cohort, what they leave alone, and that both are so on real scans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.factories.entries import (
    clip_entry,
    draw_head,
    draw_plane,
    head_entry,
    item,
    picture_entry,
    volume,
)
from vitrael.client.site.ingest import likeness
from vitrael.client.site.ingest.facts import FINGERPRINT_SHAPE, read_fingerprint
from vitrael.client.site.ingest.likeness import compare_images
from vitrael.client.site.ingest.preflight import (
    LEAST_TO_CALIBRATE,
    Entry,
    Finding,
    check_cohort,
)
from vitrael.core.data.nifti import read_nifti
from vitrael.core.protocols import Splits
from vitrael.core.rng import stream
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.reid.calibrate import least_null_patients

PATIENTS = 45
SPLITS = Splits(
    training_frac=0.5, filter_frac=0.15, calibration_frac=0.1, audit_frac=0.2, utility_frac=0.05
)
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def heads() -> list[Entry]:
    return [head_entry(patient) for patient in range(PATIENTS)]


@pytest.fixture(scope="module")
def planes() -> list[Entry]:
    return [picture_entry(patient) for patient in range(PATIENTS)]


def found(entries: list[Entry], check: str) -> Finding | None:
    return next((f for f in check_cohort(entries) if f.check == check), None)


def flagged(entries: list[Entry], check: str) -> tuple[int, ...]:
    finding = found(entries, check)
    return () if finding is None else finding.items


def test_cohort_without_a_fault_has_no_finding(heads: list[Entry]) -> None:
    assert check_cohort(heads) == []


def test_finding_tells_nothing_of_a_patient_in_text(heads: list[Entry]) -> None:
    finding = check_cohort(heads[:5])[0]
    assert repr(finding) == str(finding) == "Finding(few-patients)"
    for each in check_cohort([*heads, head_entry(99, draw_head(3))], expected=["age_years"]):
        assert "p-00" not in each.sentence
        assert "; " in each.sentence  # what there is, and what to do


def test_problems_stand_before_warnings_and_notes(heads: list[Entry]) -> None:
    entries = [*heads[:15], head_entry(99, draw_head(3))]
    findings = check_cohort(entries, expected=["sex"], shared=[1])
    grades = [finding.severity for finding in findings]
    assert grades == sorted(grades, key=["problem", "warning", "note"].index)
    assert {"problem", "warning"} <= set(grades)


# few patients


@pytest.mark.parametrize("count", [0, 1, SMALLEST_COUNT - 1])
def test_fewer_than_eleven_patients_are_a_problem(heads: list[Entry], count: int) -> None:
    finding = check_cohort(heads[:count])[0]
    assert (finding.check, finding.severity, finding.count) == ("few-patients", "problem", count)


def test_too_few_to_calibrate_a_filter_are_a_warning(heads: list[Entry]) -> None:
    assert least_null_patients(0.05) == LEAST_TO_CALIBRATE
    finding = check_cohort(heads[: LEAST_TO_CALIBRATE - 1])[0]
    assert (finding.check, finding.severity) == ("few-patients", "warning")
    assert check_cohort(heads[:LEAST_TO_CALIBRATE]) == []


def test_splits_of_a_study_are_counted(heads: list[Entry]) -> None:
    findings = check_cohort(heads, splits=SPLITS, key=KEY)
    assert [(f.check, f.severity) for f in findings] == [("few-patients", "warning")]
    few = check_cohort(heads[:11], splits=SPLITS, key=KEY)
    assert few[0].check == "empty-splits"
    assert few[0].severity == "problem"


# covariates


def test_each_missing_covariate_is_told_with_its_count() -> None:
    known = [item(i, covariates={"age_years": 40.0, "sex": 1.0}) for i in range(40)]
    lacking = [item(i, covariates={"age_years": 40.0}) for i in range(40, 44)]
    entries = [head_entry(i, described=each) for i, each in enumerate([*known, *lacking])]
    assert check_cohort(entries, expected=["age_years"]) == []
    (finding,) = check_cohort(entries, expected=["age_years", "sex"])
    assert (finding.check, finding.items) == ("missing-covariates", (40, 41, 42, 43))
    assert finding.sentence.startswith("4 of 44 images have no known sex")


def test_only_image_without_a_covariate_is_told_in_the_singular() -> None:
    for finding in check_cohort([head_entry(0)], expected=["sex"]):
        assert "1 images" not in finding.sentence
    assert finding.sentence.startswith("The only image has no known sex")


@pytest.mark.parametrize(
    ("covariate", "advice"),
    [
        (
            "age_years",
            ("patients' table", "for DICOM files, of which no table speaks, in the head"),
        ),
        ("ef_frac", ("column ef of the table", "DICOM files have it in no header")),
        ("lesion_ml", ("an empty one where there is no lesion", "DICOM series can get neither")),
    ],
)
def test_advice_on_a_covariate_fits_tables_and_dicom(
    heads: list[Entry], covariate: str, advice: tuple[str, str]
) -> None:
    (finding,) = check_cohort(heads, expected=[covariate])
    assert all(words in finding.sentence for words in advice)


# what does not fit into the grid


def test_brains_that_the_grid_cuts_are_a_problem(heads: list[Entry]) -> None:
    def cut(place: int, share: float) -> Entry:
        facts = heads[place].facts.model_copy(update={"cut_frac": share})
        return heads[place]._replace(facts=facts)

    whole = [cut(0, 0.005), *heads[1:]]
    assert check_cohort(whole) == []
    (finding,) = check_cohort([cut(0, 0.006), cut(1, 0.402), *heads[2:]])
    assert (finding.check, finding.severity, finding.items) == ("cut-brain", "problem", (0, 1))
    assert finding.sentence.startswith("The grid cuts the brain of 2 images, of which up to 41 %")
    assert "choose a larger grid or spacing" in finding.sentence


# what is unlike the others


def test_unusual_spacing_is_found(heads: list[Entry]) -> None:
    odd = head_entry(99, scan=volume(draw_head(99), spacing_mm=(1, 1, 4.0)))
    near = head_entry(98, scan=volume(draw_head(98), spacing_mm=(1, 1, 1.2)))
    assert flagged([*heads, near, odd], "spacing") == (PATIENTS + 1,)


def test_missing_spacing_is_a_note(planes: list[Entry]) -> None:
    finding = found(planes, "missing-spacing")
    assert finding is not None
    assert (finding.count, finding.severity) == (PATIENTS, "note")
    assert finding.sentence.startswith("None of the 45 images has a pixel size")


def test_mixed_orientations_are_found(heads: list[Entry]) -> None:
    turned = volume(draw_head(99))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    odd = head_entry(99, scan=type(turned)(turned.image_CDHW, affine, "T1w"))
    assert flagged([*heads, odd], "orientation") == (PATIENTS,)


def test_lost_slices_and_short_clips_are_found(heads: list[Entry]) -> None:
    cut = volume(draw_head(99)[:, :, :15])
    assert flagged([*heads, head_entry(99, scan=cut)], "extent") == (PATIENTS,)
    still = [np.round(255 * draw_plane(i)).astype(np.uint8) for i in range(12)]
    clips = [clip_entry(i, np.repeat(s[None], 10 if i else 4, axis=0)) for i, s in enumerate(still)]
    assert flagged(clips, "frames") == (0,)


def test_strange_intensities_are_found_and_gain_alone_is_not(heads: list[Entry]) -> None:
    dark = head_entry(99, 0.3 * draw_head(99))
    scaled = volume(draw_head(98))
    gain = head_entry(98, scan=type(scaled)(1.5 * scaled.image_CDHW, scaled.affine, "T1w"))
    assert flagged([*heads, gain, dark], "intensity") == (PATIENTS + 1,)


def test_two_kinds_of_images_are_told_once_and_not_one_by_one(heads: list[Entry]) -> None:
    dark = [head_entry(100 + i, 0.3 * draw_head(100 + i)) for i in range(10)]
    finding = found([*heads, *dark], "intensity")
    assert finding is not None
    assert (finding.severity, finding.count, finding.items) == ("note", 10, ())


# who is who

SAME: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "itself": lambda image: image,
    "noise of 1 %": lambda image: image + stream(0, "n").normal(0, 0.01, image.shape),
    "shift of one voxel": lambda image: np.roll(image, 1, axis=-1),
    "shift along all axes": lambda image: np.roll(image, [1] * image.ndim, range(image.ndim)),
    "more gain": lambda image: image * 1.2,
    "less gain": lambda image: image * 0.7,
}


@pytest.mark.parametrize("change", SAME)
@pytest.mark.parametrize("kind", ["volume", "picture"])
def test_image_under_a_second_name_is_found(
    heads: list[Entry], planes: list[Entry], kind: str, change: str
) -> None:
    entries, draw, make = (
        (heads, draw_head, head_entry) if kind == "volume" else (planes, draw_plane, picture_entry)
    )
    copy = make(99, np.clip(SAME[change](draw(7)), 0, 1).astype(np.float32))
    finding = found([*entries, copy], "same-image")
    assert finding is not None
    assert finding.pairs == ((7, PATIENTS),)
    assert finding.severity == "problem"


def test_second_visit_under_a_second_name_is_found(heads: list[Entry]) -> None:
    finding = found([*heads, head_entry(99, draw_head(7, visit=1))], "alike-strangers")
    assert finding is not None
    assert finding.pairs == ((7, PATIENTS),)
    assert finding.severity == "warning"


@pytest.mark.parametrize("kind", ["volume", "picture"])
def test_mirrored_copy_is_found(heads: list[Entry], planes: list[Entry], kind: str) -> None:
    if kind == "volume":
        entries = [*heads, head_entry(99, np.flip(draw_head(7), 0))]
    else:
        entries = [*planes, picture_entry(99, np.flip(draw_plane(7), 1))]
    finding = found(entries, "mirrored")
    assert finding is not None
    assert finding.pairs == ((7, PATIENTS),)
    assert found(entries, "same-image") is None


def test_many_copies_of_one_image_are_all_found(heads: list[Entry]) -> None:
    copies = [head_entry(100 + i, 0.9 * draw_head(7)) for i in range(15)]
    assert flagged([*heads, *copies], "same-image") == (7, *range(PATIENTS, PATIENTS + 15))


def test_two_kinds_of_images_are_no_copies(heads: list[Entry]) -> None:
    """What a minority of images have in common is not mistaken for one person."""
    inverted = [head_entry(100 + i, _invert(draw_head(100 + i))) for i in range(6)]
    assert found([*heads, *inverted], "same-image") is None
    assert found([*heads, *inverted], "alike-strangers") is None


def _invert(image: np.ndarray) -> np.ndarray:
    return np.where(image > 0, 0.9 - image, 0).astype(np.float32)


def test_second_visit_of_a_patient_is_no_copy(heads: list[Entry]) -> None:
    later = head_entry(7, draw_head(7, visit=1), described=item(7, visit=1))
    assert check_cohort([*heads, later]) == []


def test_one_scan_twice_in_a_patient_is_a_note(heads: list[Entry]) -> None:
    again = head_entry(7, described=item(7, visit=1))
    (finding,) = check_cohort([*heads, again])
    assert (finding.check, finding.severity, finding.pairs) == ("repeated", "note", ((7, 45),))


def test_two_patients_under_one_name_are_found(heads: list[Entry]) -> None:
    stranger = head_entry(7, draw_head(98), described=item(7, visit=1))
    assert flagged([*heads, stranger], "changed-anatomy") == (7, PATIENTS)


@pytest.mark.parametrize(
    ("first", "second", "days", "wrong"),
    [
        ({"sex": 0.0}, {"sex": 1.0}, None, True),
        ({"age_years": 60.0}, {"age_years": 58.0}, None, True),
        ({"age_years": 60.0}, {"age_years": 70.0}, 365, True),
        ({"brain_ml": 1200.0}, {"brain_ml": 1500.0}, None, True),
        ({"sex": 0.0, "age_years": 60.0}, {"sex": 0.0, "age_years": 70.0}, None, False),
        ({"age_years": 60.0}, {"age_years": 61.0}, 500, False),
        ({"brain_ml": 1200.0}, {"brain_ml": 1150.0, "sex": 1.0}, None, False),
    ],
)
def test_facts_of_one_patient_must_fit_together(
    heads: list[Entry],
    first: dict[str, float],
    second: dict[str, float],
    days: int | None,
    wrong: bool,  # noqa: FBT001 - a table
) -> None:
    entries = [
        head_entry(7, described=item(7, covariates=first, days=0 if days else None)),
        head_entry(7, draw_head(7, 1), described=item(7, visit=1, covariates=second, days=days)),
    ]
    others = [entry for entry in heads if entry.item.subject != "p-0007"]
    assert flagged([*others, *entries], "changed-facts") == ((44, 45) if wrong else ())


def test_equal_content_is_found_and_what_was_left_out_is_told(heads: list[Entry]) -> None:
    digest = heads[3].item.digest
    entries = [*heads, head_entry(99, described=item(99, digest=digest))]
    assert found(entries, "copies") is not None
    findings = check_cohort(heads, shared=[8, 8, 5])
    assert [(f.check, f.severity, f.count) for f in findings] == [("copies", "problem", 3)]
    assert findings[0].items == (5, 8)


def test_few_patients_are_compared_by_equality_alone() -> None:
    few = [head_entry(i) for i in range(5)]
    copy = head_entry(99, SAME["noise of 1 %"](draw_head(2)).clip(0, 1))
    assert found(few, "same-image") is None
    assert flagged([*few, copy], "same-image") == (2, 5)


def test_constant_images_are_like_nothing() -> None:
    flat = [entry.facts.model_copy() for entry in (picture_entry(i) for i in range(25))]
    zeros = picture_entry(0, draw_plane(0)).facts.model_copy(
        update={"fingerprint": _fingerprint_of_zeros()}
    )
    entries = [Entry(item(i), facts) for i, facts in enumerate([*flat, zeros, zeros])]
    assert found(entries, "same-image") is None


def _fingerprint_of_zeros() -> str:
    return "A" * (-(-2 * 12 * 12 // 3) * 4)


def test_neighbors_are_exact_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks change nothing: the best of all others is found, as over the whole table at once."""
    rng = stream(0, "blocks")
    vector_NE = rng.normal(size=(130, 144)).astype(np.float32)
    vector_NE[77] = vector_NE[3] + 0.1 * rng.normal(size=144)
    vector_NE /= np.linalg.norm(vector_NE, axis=1, keepdims=True)
    patient_N = np.arange(130) // 2
    whole = compare_images(vector_NE, patient_N, shape=(12, 12), mirrored_axis=1)
    assert whole.stranger.index_N[[3, 77]].tolist() == [77, 3]
    assert whole.own.index_N[:4].tolist() == [1, 0, 3, 2]
    monkeypatch.setattr(likeness, "_BLOCK", 16)
    parts = compare_images(vector_NE, patient_N, shape=(12, 12), mirrored_axis=1)
    for one, two in ((whole.stranger, parts.stranger), (whole.own, parts.own)):
        assert np.array_equal(one.index_N, two.index_N)
        assert one.score_N == pytest.approx(two.score_N, abs=1e-5)
    assert whole.mirrored.score_N == pytest.approx(parts.mirrored.score_N, abs=1e-5)


# real scans


@pytest.fixture(scope="module")
def brains(root: Path) -> list[tuple[str, np.ndarray]]:
    folder = root.parent / "shared" / "data" / "brain_t1"
    if not folder.is_dir():
        pytest.skip("the real scans of ../shared/data are not on this machine")
    scans = []
    for path in sorted(folder.glob("*_2mm.nii.gz")):
        image_DHW = read_nifti(path).image_CDHW[0]
        coarse = image_DHW.reshape(24, 4, 28, 4, 24, 4).mean(axis=(1, 3, 5))
        top = np.percentile(coarse[coarse > 0], 99)
        scans.append((path.name, np.clip(coarse / top, 0, 1).astype(np.float32)))
    return scans


def real_entry(patient: int, image_DHW: np.ndarray) -> Entry:
    return head_entry(patient, image_DHW)


def test_no_two_real_people_are_taken_for_one(brains: list[tuple[str, np.ndarray]]) -> None:
    entries = [real_entry(i, image) for i, (_, image) in enumerate(brains)]
    assert len(entries) == 37
    assert {f.check for f in check_cohort(entries)} <= {"few-patients", "intensity"}
    vectors = np.stack([read_fingerprint(entry.facts) for entry in entries])
    alike = compare_images(
        vectors, np.arange(37), shape=FINGERPRINT_SHAPE["volume"], mirrored_axis=0
    )
    assert alike.stranger.score_N.max() < 0.7


@pytest.mark.parametrize("change", [*SAME, "mirrored"])
def test_planted_copy_of_a_real_person_is_found(
    brains: list[tuple[str, np.ndarray]], change: str
) -> None:
    entries = [real_entry(i, image) for i, (_, image) in enumerate(brains)]
    for chosen in (0, 11, 30):
        image = brains[chosen][1]
        planted = np.flip(image, 0) if change == "mirrored" else SAME[change](image)
        copy = real_entry(99, np.clip(planted, 0, 1).astype(np.float32))
        check = "mirrored" if change == "mirrored" else "same-image"
        finding = found([*entries, copy], check)
        assert finding is not None
        assert finding.pairs == ((chosen, 37),)
