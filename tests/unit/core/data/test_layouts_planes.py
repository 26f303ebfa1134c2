"""Folders of videos and pictures: tables or names tell whose they are, or that nobody knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories.folders import find, only, partial, plant, reasons, visits
from vitrael.core.data.layouts.classes import is_class
from vitrael.core.data.layouts.facts import IMPOSSIBLE_EF
from vitrael.core.data.layouts.planes import MASK, UNCLEAR_FOLDER
from vitrael.core.data.layouts.rows import AMBIGUOUS, NOT_LISTED
from vitrael.core.errors import CohortError

ECHO_HEADER = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"
ALONE = "clips without a patient, each taken as one of its own"


def plant_echo(root: Path, header: str = ECHO_HEADER) -> None:
    plant(root, "Videos/0X1A.avi", "Videos/0X2B.avi", "Videos/0X3C.avi", "VolumeTracings.csv")
    (root / "VolumeTracings.csv").write_text("FileName,X1,Y1,X2,Y2,Frame\n0X1A.avi,1,2,3,4,5\n")
    (root / "FileList.csv").write_text(
        f"{header}\n"
        "0X1A,78.4,14.8,68.8,112,112,50,174,VAL\n"
        "0X2B,59.1,40.3,98.7,112,112,50,215,TRAIN\n"
        "0X3C,159.1,40.3,98.7,112,112,50,215,TRAIN\n"
    )


def test_list_of_echo_videos_gives_volumes_and_each_file_a_patient(tmp_path: Path) -> None:
    plant_echo(tmp_path)
    found = find(tmp_path, "echo-apical")
    assert visits(found) == [("0X1A", "1"), ("0X2B", "1")]
    assert found.sources[0].kind == "video"
    assert found.sources[0].covariates == {
        "ef_frac": pytest.approx(0.784),
        "esv_ml": 14.8,
        "edv_ml": 68.8,
    }
    assert found.sources[0].images == {"image": (tmp_path / "Videos/0X1A.avi",)}
    assert partial(found) == {IMPOSSIBLE_EF: 1}
    assert reasons(found)["a table that is not used"] == 1
    assert found.tables == (tmp_path / "FileList.csv",)
    assert found.notes == (f"{ALONE}: 2",)


def test_bids_names_tell_the_patients_of_a_table_without_a_column_for_them(tmp_path: Path) -> None:
    plant(tmp_path, "sub-1_ses-2_a4c.avi", "sub-1_ses-2_a2c.avi", "x.avi")
    (tmp_path / "FileList.csv").write_text(
        "FileName,EF\nsub-1_ses-2_a4c,55\nsub-1_ses-2_a2c,50\nx,60\n"
    )
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-1\tf\n")
    found = find(tmp_path, "echo-apical")
    assert visits(found) == [("sub-1", "2"), ("sub-1", "2"), ("x", "1")]
    assert [dict(source.covariates) for source in found.sources] == [
        {"sex": 0.0, "ef_frac": 0.5},
        {"sex": 0.0, "ef_frac": 0.55},
        {"ef_frac": 0.6},
    ]
    assert found.notes == (f"{ALONE}: 1",)


def test_column_of_patients_keeps_their_videos_together(tmp_path: Path) -> None:
    plant(tmp_path, "a.avi", "b.mp4", "c.mov")
    (tmp_path / "FileList.csv").write_text(
        "FileName,EF,PatientId,view\na,0.55,p1,A4C\nb.mp4,0.5,p1,A2C\nc,50,p2,A4C\n"
    )
    found = find(tmp_path, "echo-apical")
    assert visits(found) == [("p1", "1"), ("p1", "1"), ("p2", "1")]
    assert [source.labels["view"] for source in found.sources] == ["A4C", "A2C", "A4C"]
    assert [source.covariates["ef_frac"] for source in found.sources] == [0.55, 0.5, 0.5]
    assert found.notes == ()


def test_lists_in_folders_speak_of_what_lies_below_them(tmp_path: Path) -> None:
    for view, ef in (("A4C", "60"), ("PSAX", "40")):
        plant(tmp_path / view, "Videos/x1.avi")
        (tmp_path / view / "FileList.csv").write_text(f"FileName,EF,Sex,Age\nx1.avi,{ef},F,7\n")
    found = find(tmp_path, "echo-apical")
    assert [source.covariates["ef_frac"] for source in found.sources] == [0.6, 0.4]
    assert len(found.tables) == 2


def test_index_decides_alone_where_there_is_one(tmp_path: Path) -> None:
    plant_echo(tmp_path)
    (tmp_path / "index.csv").write_text("path,subject,session\nVideos/0X1A.avi,p1,2\n")
    found = find(tmp_path, "echo-apical")
    assert visits(found) == [("p1", "2")]
    assert only(found).covariates == {}
    assert partial(found) == {NOT_LISTED: 2}


def test_videos_without_a_table_are_patients_of_their_own_and_it_is_told(tmp_path: Path) -> None:
    plant(tmp_path, "a.avi", "b.mpeg", "c.mkv", "d.gif", "e.npz", "f.png", "sub-1_x.avi")
    found = find(tmp_path, "echo-apical")
    assert visits(found) == [("a", "1"), ("b", "1"), ("c", "1"), ("sub-1", "1")]
    assert found.notes == (f"{ALONE}: 3",)
    assert partial(found) == {"the format *.gif is not read": 1}
    assert reasons(found)["a file of arrays, which is not read"] == 1


def test_table_of_pictures_names_patients_and_files_by_parts_of_their_names(
    tmp_path: Path,
) -> None:
    plant(tmp_path, "77_01_aa.png", "77_02_bb.png", "88_01_cc.png", "orig/77_01_aa.png", "aa.txt")
    (tmp_path / "metadata.csv").write_text(
        "patient_id,image_id,sex,age,projection\n77,aa,m,,pa\n77,bb,m,61,lat\n88,cc,f,40,p|a\n"
    )
    found = find(tmp_path, "xray-2d")
    assert visits(found) == [("77", "1"), ("77", "1"), ("88", "1"), ("77", "1")]
    assert [source.labels for source in found.sources] == [
        {"projection": "pa"},
        {"projection": "lat"},
        {},
        {"projection": "pa"},
    ]
    assert found.sources[1].covariates == {"age_years": 61.0, "sex": 1.0}
    assert [note.startswith("labels of the column projection") for note in found.notes] == [True]
    assert not partial(found)


@pytest.mark.parametrize("column", ["path", "File", "filename", "Image Index", "image_id", "image"])
@pytest.mark.parametrize("cell", ["x/a.png", "a.png", "a", "x\\a.png"])
def test_file_is_named_by_path_name_or_stem(tmp_path: Path, column: str, cell: str) -> None:
    plant(tmp_path, "x/a.png", "x/b.png")
    (tmp_path / "labels.csv").write_text(f"{column},Patient ID,label\n{cell},p1,Hand\n")
    found = find(tmp_path, "image-2d")
    assert only(found).subject == "p1"
    assert partial(found) == {NOT_LISTED: 1}


def test_name_that_two_files_have_is_given_to_neither(tmp_path: Path) -> None:
    plant(tmp_path, "train/1.png", "test/1.png", "test/2.png")
    (tmp_path / "labels.csv").write_text("filename,patient\n1.png,p1\n2.png,p2\n")
    found = find(tmp_path, "image-2d")
    assert visits(found) == [("p2", "1")]
    assert partial(found) == {AMBIGUOUS: 2}
    # Control: a path tells them apart.
    (tmp_path / "labels.csv").write_text("filename,patient\ntrain/1.png,p1\n2.png,p2\n")
    assert visits(find(tmp_path, "image-2d")) == [("p2", "1"), ("p1", "1")]


def test_table_that_names_no_image_is_not_used(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    (tmp_path / "notes.tsv").write_text("date\tnote\n1\tx\n")
    (tmp_path / "prices.csv").write_text("file,label\nz.png,x\n")
    found = find(tmp_path, "image-2d")
    assert found.tables == ()
    assert len(found.sources) == 2
    assert reasons(found) == {"a table that is not used": 2}


def test_two_tables_complete_each_other_or_refuse(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "b.png")
    (tmp_path / "people.csv").write_text("file,patient\na,p1\nb,p2\n")
    (tmp_path / "findings.csv").write_text("image,finding,patient\na,Mass,\nb,Mass,p9\n")
    found = find(tmp_path, "xray-2d")
    assert not found.sources
    assert partial(found) == {
        "its row in the table names no patient": 1,
        "two rows of the table disagree about it": 1,
    }
    (tmp_path / "findings.csv").write_text("image,finding\na,Mass\nb,None\n")
    found = find(tmp_path, "xray-2d")
    assert [(s.subject, dict(s.labels)) for s in found.sources] == [
        ("p1", {"finding": "Mass"}),
        ("p2", {}),
    ]


def test_damaged_table_of_pictures_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, "a.png")
    (tmp_path / "people.csv").write_text("file,patient\na,p1,p2\n")
    with pytest.raises(CohortError, match=r"the table people\.csv cannot be read"):
        find(tmp_path, "xray-2d")


def test_folder_of_each_class_is_its_label(tmp_path: Path) -> None:
    plant(tmp_path, "Hand/0.jpeg", "Hand/1.jpeg", "CXR/0.jpeg", "CXR/1.jpeg")
    plant(tmp_path, "no;tumor/0.png", "no;tumor/1.png")
    found = find(tmp_path, "image-2d")
    assert len({source.subject for source in found.sources}) == 6
    labels = [source.labels.get("label") for source in found.sources]
    assert labels == ["CXR", "CXR", "Hand", "Hand", None, None]
    assert found.notes == (
        "folders taken as classes of images: 3",
        "pictures without a patient, each taken as one of its own: 6",
    )
    # Control: one folder is no class.
    assert all(not s.labels for s in find(tmp_path / "Hand", "image-2d").sources)


@pytest.mark.parametrize(
    "folders",
    [
        ("patient1", "patient2"),
        ("p-1", "p-2"),
        ("20210301", "x"),
        ("123", "456"),
        ("2021-03", "2021-04"),
        tuple(f"class {letter}{other}" for letter in "abcdef" for other in "abcdef"),
    ],
)
def test_folders_that_may_be_patients_are_left_out(tmp_path: Path, folders: tuple[str]) -> None:
    plant(tmp_path, *(f"{folder}/{n}.png" for folder in folders for n in (1, 2)))
    found = find(tmp_path, "image-2d")
    assert not found.sources
    assert partial(found) == {UNCLEAR_FOLDER: 2 * len(folders)}


@pytest.mark.parametrize(
    "name",
    ["AbdomenCT", "CXR", "no-fracture", "Grade 2", "COVID-19", "NORMAL", "A4C", "viral_pneumonia"],
)
def test_name_of_known_words_is_a_class(name: str) -> None:
    assert is_class(name)


@pytest.mark.parametrize(
    "name", ["anna", "Hand Anna", "7", "hand 7", "Grade 123", "no", "", "mueller_knee", "Zoë", "p1"]
)
def test_name_of_other_words_may_be_a_patient(name: str) -> None:
    assert not is_class(name)


def test_names_of_persons_become_no_labels(tmp_path: Path) -> None:
    plant(tmp_path, *(f"{name}/{n}.png" for name in ("anna", "bert") for n in range(12)))
    found = find(tmp_path, "image-2d")
    assert (found.sources, partial(found)) == ((), {UNCLEAR_FOLDER: 24})
    rows = "".join(f"{name}/{n}.png,{name}\n" for name in ("anna", "bert") for n in range(12))
    (tmp_path / "index.csv").write_text(f"path,subject\n{rows}")
    found = find(tmp_path, "image-2d")
    assert {source.subject for source in found.sources} == {"anna", "bert"}
    assert not any(source.labels for source in found.sources)


def test_folders_of_one_name_in_those_of_patients_make_no_patients(tmp_path: Path) -> None:
    plant(tmp_path, *(f"train/p{patient}/study1/{n}.png" for patient in (1, 2) for n in (1, 2)))
    found = find(tmp_path, "xray-2d")
    assert (found.sources, partial(found)) == ((), {UNCLEAR_FOLDER: 4})
    plant(
        tmp_path / "x",
        *(
            f"{s}/{c}/{n}.png"
            for s in ("train", "test")
            for c in ("normal", "mass")
            for n in (1, 2)
        ),
    )
    found = find(tmp_path / "x", "xray-2d")
    assert (
        sorted(source.labels["label"] for source in found.sources) == ["mass"] * 4 + ["normal"] * 4
    )
    plant(tmp_path / "z", *(f"anna/{name}{n}.png" for name in ("", "hand/") for n in (1, 2)))
    labels = [source.labels.get("label") for source in find(tmp_path / "z", "xray-2d").sources]
    assert sorted(labels, key=str) == [None, None, "hand", "hand"]
    plant(tmp_path / "y", "photos/anna/1.png", "photos/anna/2.png")  # one folder parts nobody
    assert len(find(tmp_path / "y", "xray-2d").sources) == 2


def test_one_picture_a_folder_makes_no_classes(tmp_path: Path) -> None:
    plant(tmp_path, "doe/1.png", "roe/1.png")
    assert partial(find(tmp_path, "image-2d")) == {UNCLEAR_FOLDER: 2}
    plant(tmp_path, "doe/2.png", "roe/2.png")
    assert partial(find(tmp_path, "image-2d")) == {UNCLEAR_FOLDER: 4}
    plant(tmp_path / "x", *(f"{name}/{n}.png" for name in ("knee", "hip") for n in (1, 2)))
    assert len(find(tmp_path / "x", "image-2d").sources) == 4
    (tmp_path / "x/hip/2.png").unlink()
    assert partial(find(tmp_path / "x", "image-2d")) == {UNCLEAR_FOLDER: 3}


def test_bids_names_tell_patients_and_participants_their_facts(tmp_path: Path) -> None:
    plant(tmp_path, "sub-1/ses-2/sub-1_ses-2_a4c.avi", "sub-1/ses-3/x.avi", "sub-2/y.avi")
    (tmp_path / "participants.tsv").write_text("participant_id\tsex\nsub-1\tf\nsub-9\tm\n")
    found = find(tmp_path, "echo-apical")
    assert visits(found) == [("sub-1", "2"), ("sub-1", "3"), ("sub-2", "1")]
    assert [dict(s.covariates) for s in found.sources] == [{"sex": 0.0}, {"sex": 0.0}, {}]
    assert found.tables == (tmp_path / "participants.tsv",)


def test_masks_are_no_pictures(tmp_path: Path) -> None:
    plant(tmp_path, "a.png", "a_mask.png", "masks/a.png")
    found = find(tmp_path, "image-2d")
    assert visits(found) == [("a", "1")]
    assert reasons(found) == {MASK: 2}
    (tmp_path / "index.csv").write_text(
        "path,subject,modality\na.png,p,DX\na_mask.png,p,MASK-lung\nmasks/a.png,p,DX\n"
    )
    assert len(find(tmp_path, "image-2d").sources) == 2


def test_file_of_unknown_kind_is_kept_for_the_dicom_reader(tmp_path: Path) -> None:
    plant(tmp_path, "a.dcm", "IM0001", "x.ima", "DICOMDIR", "LICENSE", "README.md", "b.png")
    found = find(tmp_path, "xray-2d")
    assert [path.name for path in found.rest] == ["DICOMDIR", "IM0001", "a.dcm", "x.ima"]
    assert reasons(found) == {"a text": 2}
    assert repr(found) == "Found(1 sources, 4 files for DICOM)"
    assert repr(found.left_out[0]) == "LeftOut('a text')"


def test_names_of_bytes_and_formulas_become_plain_subjects(tmp_path: Path) -> None:
    plant(tmp_path, "=cmd.png", "-x.png", "na.png", "a\nb.png", "50%.png", "Zoë.png")
    (tmp_path / "\udce4.png").touch()
    subjects = [source.subject for source in find(tmp_path, "image-2d").sources]
    expected = ["%2Dx", "50%25", "%3Dcmd", "Zoë", "a%0Ab", "na%", "%E4"]
    assert sorted(subjects) == sorted(expected)
    assert all(subject.encode() for subject in subjects)
