"""Whose each image is, and what is refused when that is not clear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.privacy.audit_folder.conftest import write_png, write_series, write_us, write_volume
from vitrael.core.errors import CohortError
from vitrael.privacy.audit_folder.reading import read_folder

Write = Callable[..., Path]


def test_a_table_tells_patients_visits_and_what_is_known(
    tmp_path: Path, write_table: Write
) -> None:
    for number in range(4):
        write_png(tmp_path / f"a/p/{number}.png", number)
    table = write_table(
        "file;patient;visit;age;sex;scanner;contrast\n"
        "p/0.png;B;10;71,5;f;one;ap\n"
        "p/1.png;B;2;70;F;two;pa\n"
        "p/2.png;A;1;;m;;\n"
        "p/3.png;B;2;70;F;two;pa\n"
    )
    images = read_folder(tmp_path / "a", patients=table)
    assert images.teller == "table"
    assert images.patients == ("B", "A")
    assert images.patient_B.tolist() == [0, 0, 1, 0]
    assert images.visit_B.tolist() == [1, 0, 0, 0]
    assert images.contrast_B == ("ap", "pa", "", "pa")
    first, third = images.told_B[0], images.told_B[2]
    assert (first.age_years, first.sex, first.scanner) == (71.5, "female", "one")
    assert (third.age_years, third.sex, third.scanner) == (None, "male", "")
    assert images.told == ("Patients are told by the table (2 patients, 4 images).",)


def test_a_table_above_names_files_as_seen_from_itself(tmp_path: Path, write_table: Write) -> None:
    write_png(tmp_path / "a/1.png", 1)
    write_png(tmp_path / "b/1.png", 2)
    table = write_table("path\tsubject\tsession\na/1.png\tX\t1\nb/1.png\tY\t1\n", "index.tsv")
    assert read_folder(tmp_path / "a", patients=table).patients == ("X",)
    assert read_folder(tmp_path / "b", patients=table).patients == ("Y",)


def test_a_name_in_both_folders_is_not_taken_for_the_real_one(
    tmp_path: Path, write_table: Write
) -> None:
    write_png(tmp_path / "a/1.png", 1)
    write_png(tmp_path / "b/1.png", 2)
    table = write_table("file,patient\n1.png,X\n")
    assert read_folder(tmp_path / "a", patients=table).patients == ("X",)
    synthetic = read_folder(tmp_path / "b", patients=table, side="synthetic")
    assert synthetic.patients == ("",)


def test_files_that_the_table_does_not_name_are_refused_and_absent_ones_told(
    tmp_path: Path, write_table: Write
) -> None:
    for number in range(3):
        write_png(tmp_path / f"a/{number}.png", number)
    table = write_table("file,patient\n0.png,X\n7.png,Y\n8.png,Y\n")
    images = read_folder(tmp_path / "a", patients=table)
    assert images.paths == ("0.png",)
    assert images.reasons == {"the table of patients does not name it": 2}
    assert images.told[1] == "Rows of the table that name a file that is not there: 2."


def test_rows_that_cannot_be_believed_refuse_their_files(
    tmp_path: Path, write_table: Write
) -> None:
    for number in range(5):
        write_png(tmp_path / f"a/{number}.png", number)
    table = write_table(
        "file,patient,contrast\n0.png,X,\n1.png,X,ap\n1.png,X,pa\n2.png,-,\n3.png,=A1,\n"
        "4.png,X,MASK-lesion\n"
    )
    images = read_folder(tmp_path / "a", patients=table)
    assert images.paths == ("0.png",)
    assert images.reasons == {
        "two rows of the table disagree about it": 1,
        "its row in the table names no patient": 1,
        "a cell of its row in the table holds a formula": 1,
    }
    assert images.left_out == {"a mask or a label map, which is no scan": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,patient\n0.png,X\n", "lacks the column file: it has name, patient"),
        ("file,person\n0.png,X\n", "lacks the column patient: it has file, person"),
        ("file,patient\nelse.png,X\n", "names no file of the real folder: none of its 1 rows"),
        ("", "cannot be read: it is empty"),
        (
            "file,patient\n0.png,X\n0.png,Y\n",
            r"two patients for one file: rows 1 and 2 \(the header not counted\)\. To do: leave",
        ),
        ("file,patient\n", "names no file of the real folder: it has no rows"),
    ],
)
def test_a_table_of_no_use_is_refused(
    tmp_path: Path, write_table: Write, text: str, says: str
) -> None:
    write_png(tmp_path / "a/0.png", 0)
    with pytest.raises(CohortError, match=says):
        read_folder(tmp_path / "a", patients=write_table(text))


def test_rows_of_one_file_that_name_one_patient_are_no_contradiction(
    tmp_path: Path, write_table: Write
) -> None:
    write_png(tmp_path / "a/0.png", 0)
    same = write_table("file,patient\n0.png,X\n0.png,X\n", "same.csv")
    assert read_folder(tmp_path / "a", patients=same).patients == ("X",)
    table = write_table("file,patient\n0.png,X\n0.png,X\n0.png,-\n")
    with pytest.raises(CohortError, match="two rows of the table disagree about it"):
        read_folder(tmp_path / "a", patients=table)


def test_rows_that_contradict_each_other_are_told_by_number_and_no_file_is_named(
    tmp_path: Path, write_table: Write
) -> None:
    names = [f"doe_jo_{number}.png" for number in range(6)]
    for number, name in enumerate(names):
        write_png(tmp_path / "a" / name, number)
    twice = [f"{name},{patient}" for name in names for patient in ("X", "X", "Y")]
    table = write_table("\n".join(["file,patient", *twice]))
    with pytest.raises(CohortError) as caught:
        read_folder(tmp_path / "a", patients=table)
    assert "rows 1 and 3; rows 4 and 6; rows 7 and 9; rows 10 and 12; and 2 more (" in str(
        caught.value
    )
    assert "doe" not in str(caught.value)
    assert "png" not in str(caught.value)
    whole = write_table("\n".join(["file,patient", *(f"{name},X" for name in names * 2)]))
    assert len(read_folder(tmp_path / "a", patients=whole)) == 6


def test_a_missing_table_is_told_before_the_folder_is_walked(tmp_path: Path) -> None:
    for path, why in (
        (tmp_path / "none.csv", "there is none at this path"),
        (tmp_path, "it is a folder"),
    ):
        with pytest.raises(CohortError, match=f"cannot be read: {why}.*behind --patients"):
            read_folder(tmp_path / "absent", patients=path)


def test_bids_names_tell_and_a_file_without_one_is_refused(tmp_path: Path) -> None:
    for visit in (1, 2, 10):
        write_volume(tmp_path / f"a/sub-07/ses-{visit}/sub-07_ses-{visit}_T1w.nii.gz", 1, visit)
    write_volume(tmp_path / "a/sub-08/sub-08_T1w.nii.gz", 2)
    write_volume(tmp_path / "a/other_T1w.nii.gz", 3)
    images = read_folder(tmp_path / "a")
    assert images.teller == "bids"
    assert images.patients == ("sub-07", "sub-08")
    assert sorted(images.visit_B.tolist()) == [0, 0, 1, 2]
    assert [one.place for one in images.refused] == ["other_T1w.nii.gz"]
    synthetic = read_folder(tmp_path / "a", side="synthetic")
    assert len(synthetic) == 5
    assert synthetic.patients.count("") == 1


def test_dicom_tells_by_its_patient_id(tmp_path: Path) -> None:
    for number in (1, 2):
        write_us(tmp_path / f"a/one/IM{number}", number)
    images = read_folder(tmp_path / "a")
    assert (images.teller, images.patients) == ("dicom", ("P1", "P2"))
    assert {one.sex for one in images.told_B} == {"female"}


def test_a_series_of_two_patients_by_the_table_is_refused(
    tmp_path: Path, write_table: Write
) -> None:
    paths = [*write_series(tmp_path / "a/1", 1), *write_series(tmp_path / "a/2", 2)]
    rows = [f"{path.relative_to(tmp_path / 'a')},{path.parent.name}" for path in paths]
    table = write_table("\n".join(["file,patient", *rows]))
    assert read_folder(tmp_path / "a", patients=table).patients == ("1", "2")
    table = write_table("\n".join(["file,patient", *rows[:-1], rows[-1][:-1] + "9"]))
    images = read_folder(tmp_path / "a", patients=table)
    assert images.patients == ("1",)
    assert images.reasons == {"its files are of several patients": 1}


def test_first_folders_are_patients_where_there_are_two(tmp_path: Path) -> None:
    for patient in ("ann", "bert"):
        for number in range(2):
            write_png(
                tmp_path / f"a/{patient}/day{number}/{patient}{number}.png",
                number + 2 * len(patient),
            )
    images = read_folder(tmp_path / "a")
    assert (images.teller, images.patients) == ("folder", ("ann", "bert"))
    assert images.visit_B.tolist() == [0, 1, 0, 1]
    one = read_folder(tmp_path / "a/ann")
    assert (one.teller, one.patients) == ("folder", ("day0", "day1"))
    assert read_folder(tmp_path / "a/ann/day0").teller == "file"


def test_folders_named_like_classes_are_no_patients(tmp_path: Path) -> None:
    for number, name in enumerate(("normal", "pneumonia")):
        write_png(tmp_path / f"a/{name}/{number}.png", number)
    images = read_folder(tmp_path / "a")
    assert (images.teller, images.patients) == ("file", ("", ""))
    assert images.patient_B.tolist() == [0, 1]
    assert "each file counts as a patient of its own (2 patients, 2 images)" in images.told[0]


def test_equal_images_of_nobody_are_one_patients(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("b", 2), ("c", 1)):
        write_png(tmp_path / f"x/{name}.png", number)
    images = read_folder(tmp_path / "x")
    assert images.patient_B.tolist() == [0, 1, 0]
    assert images.told[1] == "Images that another of the folder repeats exactly: 1."


def test_the_same_image_under_two_patients_is_an_error_that_names_the_files(
    tmp_path: Path, write_table: Write
) -> None:
    for name, number in (("a", 1), ("b", 2), ("c", 1)):
        write_png(tmp_path / f"x/{name}.png", number)
    same = write_table("file,patient\na.png,X\nb.png,Y\nc.png,X\n")
    assert len(read_folder(tmp_path / "x", patients=same)) == 3
    torn = write_table("file,patient\na.png,X\nb.png,Y\nc.png,Z\n")
    with pytest.raises(
        CohortError, match=r"same image under two patients: a.png and c.png\. To do"
    ):
        read_folder(tmp_path / "x", patients=torn)
