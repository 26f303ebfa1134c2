"""NIfTI folders as hospitals have them: whose image is it, which contrast, and which mask."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories.folders import find, only, partial, plant, reasons, visits
from vitrael.core.data.layouts.find import ALIKE
from vitrael.core.data.layouts.masks import NO_IMAGE, SEVERAL, UNFIT, UNUSED
from vitrael.core.data.layouts.names import UNCLEAR_NAME
from vitrael.core.data.layouts.rows import NOT_LISTED
from vitrael.core.data.layouts.volumes import NO_CONTRAST, NOT_PLAIN, PROCESSED, SECOND
from vitrael.core.errors import CohortError


def test_bids_folder_gives_subjects_sessions_and_covariates(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.json",
        "sub-02/anat/sub-02_T1w.nii",
        "sub-02/anat/sub-02_FLAIR.nii.gz",
        "sub-02/anat/sub-02_dseg.nii.gz",
        ".hidden/sub-03_T1w.nii.gz",
    )
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tage\tsex\tgroup\nsub-01\t44\tF\tcontrol\n02\tn/a\tn/a\tn/a\n"
    )
    (tmp_path / "sub-01/sub-01_sessions.tsv").write_text(
        "session_id\tage\tacq_time\nses-2\t46.5\t2021-03-01T12:00:00\n"
    )
    found = find(tmp_path)
    rows = [(s.subject, s.session, dict(s.covariates), dict(s.labels)) for s in found.sources]
    assert rows == [
        ("sub-01", "1", {"age_years": 44.0, "sex": 0.0}, {"group": "control"}),
        ("sub-01", "2", {"age_years": 46.5, "sex": 0.0}, {"group": "control"}),
        ("sub-02", "1", {}, {}),
    ]
    assert [str(s.taken) for s in found.sources] == ["None", "2021-03-01", "None"]
    assert sorted(table.name for table in found.tables) == [
        "participants.tsv",
        "sub-01_sessions.tsv",
    ]
    assert found.notes == ("hidden files and folders, skipped: 1",)
    assert not partial(found)
    assert repr(found.sources[0]) == "Source(nifti)"


def test_index_of_the_folder_above_is_used_and_what_it_does_not_list_is_left_out(
    tmp_path: Path,
) -> None:
    plant(tmp_path, "x/t1/a.nii.gz", "x/t1/b.nii.gz", "x/t1/c.nii.gz")
    index = tmp_path / "x/index.csv"
    index.write_text(
        "path,modality,subject,session,notes\n"
        "t1/a.nii.gz,MR-T1w,x-7,2,age=39;sex=m;name=jane\n"
        "t1/b.nii.gz,MASK-brain,x-8,2,\n"
        "t2/d.nii.gz,MR-T1w,x-9,2,\n"
    )
    found = find(tmp_path / "x/t1")
    source = only(found)
    assert (source.subject, source.session, source.covariates) == (
        "x-7",
        "2",
        {"age_years": 39.0, "sex": 1.0},
    )
    assert reasons(found) == {NO_IMAGE: 1, NOT_LISTED: 1}
    assert partial(found) == {NOT_LISTED: 1}
    assert found.tables == (index,)
    assert found.notes == ()
    # Control: without the index every file's name is its subject.
    index.unlink()
    assert visits(find(tmp_path / "x/t1")) == [("a", "1"), ("b", "1"), ("c", "1")]


def test_index_two_folders_above_is_used_and_one_about_something_else_is_not(
    tmp_path: Path,
) -> None:
    plant(tmp_path, "y/x/t1/a.nii.gz")
    (tmp_path / "y/index.csv").write_text("path,subject\nx/t1/a.nii.gz,x-7\n")
    (tmp_path / "y/x/index.csv").write_text("name,price\nbread,2\n")
    assert visits(find(tmp_path / "y/x/t1")) == [("x-7", "1")]
    (tmp_path / "y/x/index.csv").write_bytes(b"\0damaged")
    with pytest.raises(CohortError, match=r"the table index\.csv cannot be read"):
        find(tmp_path / "y/x/t1")


def test_index_that_lacks_a_column_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "a.nii.gz")
    (tmp_path / "index.csv").write_text("path,name\na.nii.gz,jane\n")
    with pytest.raises(CohortError, match="lacks the column subject"):
        find(tmp_path)
    (tmp_path / "index.csv").write_text("name,subject\na.nii.gz,jane\n")
    with pytest.raises(CohortError, match="lacks the column path"):
        find(tmp_path)
    (tmp_path / "index.csv").write_text("path,Subject\na.nii.gz,jane\n")
    assert visits(find(tmp_path)) == [("jane", "1")]


def test_blank_cell_erases_nothing_that_another_table_says(tmp_path: Path) -> None:
    plant(tmp_path, "sub-01_T1w.nii")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t44\tF\n")
    (tmp_path / "index.csv").write_text("path,subject,age,sex\nsub-01_T1w.nii,sub-01,,M\n")
    assert only(find(tmp_path)).covariates == {"age_years": 44.0, "sex": 1.0}


def test_participant_whose_rows_disagree_is_unknown(tmp_path: Path) -> None:
    plant(tmp_path, "sub-01_T1w.nii")
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tage\tsex\nsub-01\t44\tF\nsub-01\t45\tF\n")
    assert only(find(tmp_path)).covariates == {}
    table.write_text("participant_id\tage\tsex\nsub-01\t44\tF\nsub-01\t44\tF\n")
    assert only(find(tmp_path)).covariates == {"age_years": 44.0, "sex": 0.0}


UNCLEAR = {
    "one name in the folder of each patient": ("p0/T1_a.nii.gz", "p1/T1_a.nii.gz"),
    "a contrast alone in the folder of each patient": ("p0/T1.nii.gz", "p1/T1.nii.gz"),
    "one name in the sessions of two patients": ("p0/ses-1/T1.nii.gz", "p1/ses-2/T1.nii.gz"),
    "one name at two sites": ("north/001.nii.gz", "valley/001.nii.gz"),
    "a session in the name and no subject": ("jane_ses-1.nii.gz", "jane_ses-2.nii.gz"),
    "a visit in the name and no subject": ("jane_visit1.nii.gz", "jane_visit2.nii.gz"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_file_name_that_does_not_tell_the_patient_is_refused(tmp_path: Path, case: str) -> None:
    plant(tmp_path, *UNCLEAR[case])
    with pytest.raises(CohortError, match=r"not clear whose scan number [12] is") as caught:
        find(tmp_path)
    assert "index.csv" in caught.value.fix
    assert not any(
        name in str(caught.value) for name in ("T1_a", "001", "jane", "p0", "p1", "valley")
    )


@pytest.mark.parametrize("recipe", ["brain-t1", "image-2d"])
def test_bids_name_that_does_not_end_where_bids_ends_it_merges_nobody(
    tmp_path: Path, recipe: str
) -> None:
    ending = ".nii" if recipe == "brain-t1" else ".png"
    plant(tmp_path, *(f"sub-patient_0{n}_T1w{ending}" for n in (1, 2)))
    plant(tmp_path, f"sub-3/sub-4_T1w{ending}", f"sub-5/sub-5_T1w{ending}")
    found = find(tmp_path, recipe)
    assert visits(found) == [("sub-5", "1")]
    assert partial(found) == {UNCLEAR_NAME: 3}
    rows = [(f"sub-patient_0{n}_T1w{ending}", f"p{n}") for n in (1, 2)]
    rows += [(f"sub-3/sub-4_T1w{ending}", "p4")]
    (tmp_path / "index.csv").write_text("path,subject\n" + "".join(f"{a},{b}\n" for a, b in rows))
    assert sorted(visits(find(tmp_path, recipe))) == [("p1", "1"), ("p2", "1"), ("p4", "1")]


def test_names_that_may_be_two_spellings_of_one_are_counted(tmp_path: Path) -> None:
    plant(tmp_path, "sub-01_T1w.nii", "sub-1_T1w.nii", "P7_T1.nii", "p7_T1.nii", "p10_T1.nii")
    found = find(tmp_path)
    assert len(found.sources) == 5
    assert found.notes == (f"{ALIKE}: 4",)
    plant(tmp_path / "x", "sub-10_T1w.nii", "sub-1_T1w.nii", "sub-100_T1w.nii", "sub-101_T1w.nii")
    assert find(tmp_path / "x").notes == ()  # control


def test_index_or_bids_name_tells_apart_what_the_file_name_does_not(tmp_path: Path) -> None:
    plant(tmp_path, "p0/T1.nii.gz", "p1/T1.nii.gz")
    (tmp_path / "index.csv").write_text("path,subject\np0/T1.nii.gz,a\np1/T1.nii.gz,b\n")
    assert visits(find(tmp_path)) == [("a", "1"), ("b", "1")]
    plant(tmp_path / "bids", "sub-1/T1.nii.gz", "sub-2/T1.nii.gz")
    assert visits(find(tmp_path / "bids")) == [("sub-1", "1"), ("sub-2", "1")]


def test_row_that_must_not_be_believed_leaves_its_file_out(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{name}.nii.gz" for name in "abcdef"))
    (tmp_path / "index.csv").write_text(
        "path,subject,session,age\na.nii.gz,=A1,1,40\nb.nii.gz,-,1,40\nc.nii.gz,,1,40\n"
        "d.nii.gz,p4,1,40\nd.nii.gz,p4,2,40\ne.nii.gz,p5,1,40\ne.nii.gz,p5,,40\n"
        "f.nii.gz,p6,1,40\nf.nii.gz,p7,1,40\ngone.nii.gz,p8,1,40\n,p9,1,40\n"
    )
    found = find(tmp_path)
    assert visits(found) == [("p5", "1")]
    assert partial(found) == {
        "a cell of its row in the table holds a formula": 1,
        "its row in the table names no patient": 2,
        "two rows of the table disagree about it": 2,
    }
    assert found.notes == ("rows of tables that name no file here: 2",)


def test_several_images_of_one_visit_are_parts_of_it(tmp_path: Path) -> None:
    plant(tmp_path, "sub-1_run-2_T1w.nii", "sub-1_run-1_T1w.nii", "orig/sub-1_T1w.nii")
    found = find(tmp_path)
    assert visits(found) == [("sub-1", "1")] * 3
    assert len({source.part for source in found.sources}) == 3


def test_processed_copy_is_left_out_where_its_image_is_there(tmp_path: Path) -> None:
    raw = "sub-1/anat/sub-1_T1w.nii.gz"
    derived = "derivatives/prep/sub-1/anat/sub-1_"
    copies = [derived + "desc-preproc_T1w.nii.gz", derived + "space-MNI_desc-preproc_T1w.nii.gz"]
    plant(tmp_path, raw, *copies)
    found = find(tmp_path)
    assert only(found).images["T1w"] == (tmp_path / raw,)
    assert reasons(found) == {PROCESSED: 2}
    assert not partial(found)
    # Control: without it, the one in its own space is the image.
    (tmp_path / raw).unlink()
    assert only(find(tmp_path)).images["T1w"] == (tmp_path / copies[0],)


def test_other_contrast_is_left_out_and_expected(tmp_path: Path) -> None:
    plant(tmp_path, "a_T1.nii", "a_T2.nii", "a_T1POST.nii", "a_bold.nii", "T2/b.nii")
    found = find(tmp_path)
    assert visits(found) == [("a", "1")]
    assert reasons(found) == {"not a T1-weighted image": 3, NOT_PLAIN: 1}
    assert not partial(found)


def lesion_visit(folder: str, name: str) -> list[str]:
    return [f"{folder}{name}_{c}.nii.gz" for c in ("T1w", "T2w", "FLAIR")]


def test_contrasts_of_one_visit_make_one_source(tmp_path: Path) -> None:
    plant(tmp_path, *lesion_visit("sub-1/ses-1/anat/", "sub-1_ses-1"))
    plant(tmp_path, *lesion_visit("sub-1/ses-2/anat/", "sub-1_ses-2")[:2])
    plant(tmp_path, "sub-1/ses-1/anat/sub-1_ses-1_bold.nii.gz")
    found = find(tmp_path, "brain-lesion")
    source = only(found)
    assert (source.subject, source.session) == ("sub-1", "1")
    assert list(source.images) == ["T1w", "T2w", "FLAIR"]
    assert all(name in path.name for name, (path,) in source.images.items())
    assert partial(found) == {"the visit lacks FLAIR": 2}
    assert reasons(found)["not one of T1w, T2w and FLAIR"] == 1


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["sub-1_T1w.nii"], "the visit lacks T2w and FLAIR"),
        (["sub-1_FLAIR.nii", "sub-1_T2w.nii"], "the visit lacks T1w"),
    ],
)
def test_visit_without_a_contrast_is_left_out_as_one(
    tmp_path: Path, names: list[str], missing: str
) -> None:
    plant(tmp_path, *names)
    (left,) = find(tmp_path, "brain-lesion").left_out
    assert (left.reason, len(left.paths), left.expected) == (missing, len(names), False)


def test_sets_come_from_one_folder_one_run_or_folders_of_contrasts(tmp_path: Path) -> None:
    plant(tmp_path / "a", *lesion_visit("sub-1/", "sub-1_run-1"), "sub-1/sub-1_run-2_T1w.nii.gz")
    found = find(tmp_path / "a", "brain-lesion")
    assert {path.name[:11] for path in only(found).files} == {"sub-1_run-1"}
    assert reasons(found) == {SECOND: 1}
    plant(tmp_path / "b", "T1/7.nii", "T2/7.nii", "FLAIR/7.nii", "T1/8.nii", "T2/8.nii")
    found = find(tmp_path / "b", "brain-lesion")
    assert visits(found) == [("7", "1")]
    assert partial(found) == {"the visit lacks FLAIR": 2}
    plant(tmp_path / "c", *lesion_visit("", "p1"), *lesion_visit("", "p2"), "p3.nii.gz")
    found = find(tmp_path / "c", "brain-lesion")
    assert visits(found) == [("p1", "1"), ("p2", "1")]
    assert partial(found) == {NO_CONTRAST: 1}


def test_images_of_two_spaces_never_make_one_set(tmp_path: Path) -> None:
    plant(tmp_path, "sub-1_T1w.nii", "sub-1_T2w.nii", "sub-1_space-MNI_FLAIR.nii")
    found = find(tmp_path, "brain-lesion")
    assert not found.sources
    assert partial(found) == {"its images lie in several spaces": 3}


def test_masks_are_given_to_their_visit(tmp_path: Path) -> None:
    plant(tmp_path, *lesion_visit("sub-1/ses-1/anat/", "sub-1_ses-1"))
    plant(tmp_path, *lesion_visit("sub-1/ses-2/anat/", "sub-1_ses-2"))
    plant(tmp_path, *lesion_visit("sub-2/anat/", "sub-2"))
    plant(tmp_path, *lesion_visit("sub-4/ses-1/", "sub-4_ses-1"))
    masks = "derivatives/masks/sub-1/ses-1/anat/sub-1_ses-1_"
    plant(
        tmp_path,
        masks + "desc-brain_mask.nii.gz",
        masks + "label-lesion_mask.nii.gz",
        masks + "space-MNI_label-lesion_mask.nii.gz",
        "derivatives/sub-1_desc-brain_mask.nii.gz",  # of which visit?
        "derivatives/sub-2_desc-brain_mask.nii.gz",
        "derivatives/sub-2_space-T1w_label-lesion_mask.nii.gz",
        "derivatives/sub-3_label-lesion_mask.nii.gz",
        "sub-4/ses-2/sub-4_ses-2_T1w.nii.gz",  # of another visit, which is not complete
        "derivatives/sub-4_desc-brain_mask.nii.gz",
        "sub-2/anat/sub-2_dseg.nii.gz",
    )
    found = find(tmp_path, "brain-lesion")
    given = {
        (s.subject, s.session): {kind: path.name for kind, path in s.masks.items()}
        for s in found.sources
    }
    assert given == {
        ("sub-1", "1"): {
            "brain": "sub-1_ses-1_desc-brain_mask.nii.gz",
            "lesion": "sub-1_ses-1_label-lesion_mask.nii.gz",
        },
        ("sub-1", "2"): {},
        ("sub-2", "1"): {
            "brain": "sub-2_desc-brain_mask.nii.gz",
            "lesion": "sub-2_space-T1w_label-lesion_mask.nii.gz",
        },
        ("sub-4", "1"): {},
    }
    lacking = "the visit lacks T2w and FLAIR"
    assert reasons(found) == {UNFIT: 3, NO_IMAGE: 1, UNUSED: 1, lacking: 1}
    assert partial(found) == {lacking: 1}


def test_mask_beside_an_image_of_its_visit_is_not_for_another_image(tmp_path: Path) -> None:
    plant(tmp_path, "sub-1_T1w.nii", "orig/sub-1_T1w.nii", "orig/sub-1_brainmask.nii")
    assert [bool(source.masks) for source in find(tmp_path).sources] == [True, False]
    # Control: from a folder of its own it serves both.
    plant(tmp_path, "masks/sub-1_brainmask.nii")
    (tmp_path / "orig/sub-1_brainmask.nii").unlink()
    assert [bool(source.masks) for source in find(tmp_path).sources] == [True, True]


def test_mask_of_a_run_is_for_that_run(tmp_path: Path) -> None:
    plant(tmp_path, "sub-1_T1w.nii", "sub-1_run-2_T1w.nii", "sub-1_brainmask.nii")
    plant(tmp_path, "sub-1_run-2_brainmask.nii")
    given = {s.files[0].name: s.masks["brain"].name for s in find(tmp_path).sources}
    assert given == {
        "sub-1_T1w.nii": "sub-1_brainmask.nii",
        "sub-1_run-2_T1w.nii": "sub-1_run-2_brainmask.nii",
    }


def test_nearest_mask_is_taken_and_equally_near_ones_are_not(tmp_path: Path) -> None:
    plant(tmp_path, "a/sub-1_T1w.nii", "a/sub-1_brainmask.nii", "b/sub-1_brainmask.nii")
    found = find(tmp_path)
    assert only(found).masks == {"brain": tmp_path / "a/sub-1_brainmask.nii"}
    assert reasons(found) == {UNFIT: 1}
    plant(tmp_path, "a/sub-1_desc-brain_mask.nii")
    found = find(tmp_path)
    assert only(found).masks == {}
    assert partial(found) == {SEVERAL: 2}


def test_mask_that_a_table_calls_common_serves_all_visits(tmp_path: Path) -> None:
    plant(tmp_path, "a1.nii", "a2.nii", "m.nii", "l.nii")
    (tmp_path / "index.csv").write_text(
        "path,subject,session,modality\na1.nii,a,1,T1w\na2.nii,a,2,T1w\n"
        "m.nii,a,common,MASK-brain\nl.nii,a,common,MASK-lesion\n"
    )
    found = find(tmp_path)
    assert [source.masks for source in found.sources] == [{"brain": tmp_path / "m.nii"}] * 2
    assert reasons(found) == {UNUSED: 1}
