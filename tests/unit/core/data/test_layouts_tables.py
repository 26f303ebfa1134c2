"""A table that cannot be read costs what it decides: whose an image is, or only what is known."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories.folders import RECIPE_OF, find, only, partial, plant, visits
from vitrael.core.data.layouts.facts import IMPOSSIBLE_EF
from vitrael.core.data.layouts.find import find_sources
from vitrael.core.data.layouts.rows import BROKEN_TABLE, ELSEWHERE, MAYBE_UNTOLD, UNTOLD
from vitrael.core.data.sources import Found
from vitrael.core.data.walk import BROKEN_LINK, CLOSED_FILE, FoundFile, walk_files
from vitrael.core.errors import CohortError

BROKEN = {
    "empty": b"",
    "no text": b"\0\1\2",
    "a torn row": b"path,subject,age\na_T1.nii,p1,40,9\n",
    "no column for the patient": b"path,age\na_T1.nii,40\n",
}


def find_closed(root: Path, recipe: str, *closed: str) -> Found:
    """Return what is found where some files may not be read."""

    def walk() -> Iterator[FoundFile]:
        for file in walk_files(root):
            is_closed = file.path.relative_to(root).as_posix() in closed
            yield FoundFile(file.path, refusal=CLOSED_FILE) if is_closed else file

    return find_sources(root, walk(), recipe=RECIPE_OF[recipe])


@pytest.mark.parametrize("case", BROKEN)
def test_broken_index_of_one_folder_costs_that_folder_alone(tmp_path: Path, case: str) -> None:
    plant(tmp_path, "s1/a_T1.nii", "s1/deep/b_T1.nii", "s1/b_brainmask.nii", "s2/c_T1.nii")
    (tmp_path / "s1/index.csv").write_bytes(BROKEN[case])
    (tmp_path / "s2/index.csv").write_text("path,subject\nc_T1.nii,p3\n")
    found = find(tmp_path)
    assert visits(found) == [("p3", "1")]
    assert partial(found) == {UNTOLD: 3, BROKEN_TABLE: 1}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("recipe", ["brain-t1", "image-2d"])
def test_broken_index_of_the_whole_folder_stops_and_says_why(
    tmp_path: Path, case: str, recipe: str
) -> None:
    plant(tmp_path, "a_T1.nii", "a.png")
    (tmp_path / "index.csv").write_bytes(BROKEN[case])
    with pytest.raises(CohortError, match=r"index\.csv .*it tells whose the images are") as caught:
        find(tmp_path, recipe)
    assert "remove" in caught.value.fix


@pytest.mark.parametrize("recipe", ["brain-t1", "image-2d"])
def test_index_that_may_not_be_read_is_not_overlooked(tmp_path: Path, recipe: str) -> None:
    plant(tmp_path, *(f"s{n}/sub-{n}_T1w{ending}" for n in (1, 2) for ending in (".nii", ".png")))
    plant(tmp_path, "s1/index.csv")
    found = find_closed(tmp_path, recipe, "s1/index.csv")
    assert visits(found) == [("sub-2", "1")]
    assert partial(found) == {CLOSED_FILE: 1, UNTOLD: 1}
    (tmp_path / "s1/index.csv").rename(tmp_path / "index.csv")
    with pytest.raises(CohortError, match="cannot be read"):
        find_closed(tmp_path, recipe, "index.csv")
    (tmp_path / "index.csv").unlink()
    (tmp_path / "index.csv").symlink_to(tmp_path / "archive/index.csv")  # which is not fetched
    with pytest.raises(CohortError, match="cannot be read"):
        find(tmp_path, recipe)


@pytest.mark.parametrize("recipe", ["echo-apical", "image-2d"])
@pytest.mark.parametrize("how", ["empty", "no text", "closed", "a broken link"])
def test_where_a_table_may_tell_the_patients_no_file_is_one(
    tmp_path: Path, recipe: str, how: str
) -> None:
    ending = ".avi" if recipe == "echo-apical" else ".png"
    plant(tmp_path, f"v/a{ending}", f"v/b{ending}", f"v/sub-7_x{ending}")
    table = tmp_path / "v/FileList.csv"
    closed = ()
    told = {MAYBE_UNTOLD: 2, BROKEN_TABLE: 1}
    if how == "a broken link":
        table.symlink_to("nowhere")
        told = {MAYBE_UNTOLD: 2, BROKEN_LINK: 1}
    else:
        table.write_bytes(b"\0" if how == "no text" else b"")
    if how == "closed":
        closed = ("v/FileList.csv",)
        told = {MAYBE_UNTOLD: 2, CLOSED_FILE: 1}
    found = find_closed(tmp_path, recipe, *closed)
    assert visits(found) == [("sub-7", "1")]
    assert partial(found) == told
    table.unlink()  # control
    assert len(find(tmp_path, recipe).sources) == 3


def test_broken_list_of_one_folder_costs_that_folder_alone(tmp_path: Path) -> None:
    plant(tmp_path, "v/a.avi", "w/b.avi")
    (tmp_path / "v/FileList.csv").write_text("FileName,PatientId\na,p1,9\n")
    (tmp_path / "w/FileList.csv").write_text("FileName,PatientId\nb,p2\n")
    found = find(tmp_path, "echo-apical")
    assert visits(found) == [("p2", "1")]
    assert partial(found) == {UNTOLD: 1, BROKEN_TABLE: 1}


@pytest.mark.parametrize("cell", ["7", "0X7", "/mnt/export/007.png", "C:\\export\\007.png"])
def test_table_of_patients_that_names_no_file_here_is_not_overlooked(
    tmp_path: Path, cell: str
) -> None:
    plant(tmp_path, "007.png")
    table = tmp_path / "list.csv"
    table.write_text(f"file,patient\n{cell},p1\n")
    found = find(tmp_path, "image-2d")
    assert (found.sources, partial(found)) == ((), {ELSEWHERE: 1})
    table.write_text("file,patient\n007,p1\n")  # control
    assert visits(find(tmp_path, "image-2d")) == [("p1", "1")]
    plant(tmp_path, "7.nii")
    table.write_text("file,patient\n7.nii,p1\n")  # it speaks of other files of the folder
    assert visits(find(tmp_path, "image-2d")) == [("007", "1")]


@pytest.mark.parametrize("name", ["participants.tsv", "sub-01_sessions.tsv"])
@pytest.mark.parametrize("text", [b"", b"\0", b"name\tage\nx\t4\n", b"a\tb\n1\t2\t3\n"])
def test_broken_table_of_facts_costs_the_facts_alone(
    tmp_path: Path, name: str, text: bytes
) -> None:
    plant(tmp_path, "sub-01_T1w.nii", "sub-01_a4c.avi")
    (tmp_path / name).write_bytes(text)
    for recipe in ("brain-t1", "echo-apical"):
        found = find(tmp_path, recipe)
        assert only(found).subject == "sub-01"
        assert only(found).covariates == {}
        assert list(partial(found).values()) == [1]
        assert all(reason.startswith("a table that") for reason in partial(found))


@pytest.mark.parametrize("nobody", ["", "n/a", "sub-"])
def test_row_of_participants_or_sessions_without_a_name_is_counted(
    tmp_path: Path, nobody: str
) -> None:
    plant(tmp_path, "sub-01_T1w.nii")
    table = f"participant_id\tage\nsub-01\t40\n{nobody}\t50\n{nobody}\t60\n"
    (tmp_path / "participants.tsv").write_text(table)
    (tmp_path / "sub-01_sessions.tsv").write_text("session_id\tage\nses-1\t41\n\t50\n")
    found = find(tmp_path)
    assert only(found).covariates == {"age_years": 41.0}
    assert found.notes == (
        "rows of participants.tsv that name no patient: 2",
        "rows of sessions.tsv that name no visit: 1",
    )


def test_broken_participants_above_the_folder_are_counted(tmp_path: Path) -> None:
    plant(tmp_path, "bids/sub-01_T1w.nii")
    (tmp_path / "participants.tsv").write_bytes(b"\0")
    found = find(tmp_path / "bids")
    assert only(found).covariates == {}
    assert found.notes == ("a participants.tsv above the folder that cannot be read: 1",)


def test_folder_above_that_may_not_be_looked_into_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bids"
    plant(root, "sub-01_T1w.nii")
    files = list(walk_files(root))

    def stat(path: Path, **_: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, "no", str(path))

    monkeypatch.setattr(Path, "stat", stat)
    assert len(find_sources(root, files, recipe=RECIPE_OF["brain-t1"]).sources) == 1


@pytest.mark.parametrize("ef", ["159", "-3"])
def test_impossible_ef_of_a_participant_or_session_refuses_the_image(
    tmp_path: Path, ef: str
) -> None:
    plant(tmp_path, "sub-01_a4c.avi", "sub-02_a4c.avi", "sub-03_ses-1_a4c.avi", "sub-02_T1w.nii")
    table = f"participant_id\tEF\tage\nsub-01\t55\t40\nsub-02\t{ef}\t40\nsub-02\t50\t40\n"
    (tmp_path / "participants.tsv").write_text(table)
    (tmp_path / "sub-03_sessions.tsv").write_text(f"session_id\tEF\nses-1\t{ef}\n")
    found = find(tmp_path, "echo-apical")
    assert visits(found) == [("sub-01", "1")]
    assert only(found).covariates == {"ef_frac": 0.55, "age_years": 40.0}
    assert partial(found) == {IMPOSSIBLE_EF: 2}
    assert partial(find(tmp_path)) == {IMPOSSIBLE_EF: 1}
