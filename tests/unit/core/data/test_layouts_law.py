"""The law of finding: every file of a folder ends in exactly one place, whatever the folder."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factories.folders import RECIPE_OF, essence, find, places, plant
from vitrael.core.data.partition import write_site_folder
from vitrael.core.data.sources import Found, LeftOut
from vitrael.core.data.walk import walk_files
from vitrael.core.errors import CohortError

FOLDERS = st.lists(
    st.sampled_from(
        ["sub-1", "sub-2", "ses-1", "anat", "derivatives", "T1", "FLAIR", "p0", "orig", "x y"]
    ),
    max_size=3,
)
STEMS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["sub-1", "sub-2_ses-1", "p7", "p8_run-2", "ä", "\udce4b", "a\nb", "="]),
        st.sampled_from(["", "_space-MNI", "_desc-x", "_run-1", "_mask"]),
        st.sampled_from(["", "_T1w", "_T2w", "_FLAIR", "_bold", "_brainmask", "_lesion", "_T1gd"]),
    ),
)
ENDINGS = st.sampled_from(
    [".nii", ".nii.gz", ".NII.GZ", ".avi", ".mp4", ".png", ".JPG", ".dcm", "", ".json", ".mgz"]
)
NAMES = st.builds(lambda f, s, e: "/".join([*f, s + e]), FOLDERS, STEMS, ENDINGS)
VISITS = st.builds(
    lambda folder, subject, images, ending: {f"{folder}{subject}_{i}{ending}" for i in images},
    st.sampled_from(["", "sub-1/", "sub-1/anat/", "derivatives/"]),
    st.sampled_from(["sub-1", "sub-1_ses-1", "sub-1_ses-2", "sub-1_run-2", "sub-2"]),
    st.one_of(
        st.just(("T1w", "T2w", "FLAIR", "desc-brain_mask", "label-lesion_mask")),
        st.sets(st.sampled_from(["T1w", "T2w", "FLAIR", "desc-brain_mask", "lesion", "bold"])),
    ),
    st.sampled_from([".nii", ".nii.gz"]),
)
PLANES = st.builds(
    lambda folder, stem, ending: {f"{folder}{stem}{ending}"},
    st.sampled_from(["", "Hand/", "CXR/", "x/sub-1/", "p1/"]),
    st.sampled_from(["1", "2", "p1_x_7", "sub-2_8", "9_mask"]),
    st.sampled_from([".png", ".jpeg", ".avi", ".mp4"]),
)
LOOSE = st.sampled_from(["README", "t.csv", "a/b.tsv", ".hidden/x.nii", "x.zip", "n.npz"])
TABLES = st.sampled_from(
    [
        *[(), ("index.csv",), ("FileList.csv",), ("participants.tsv", "a/sub-1_sessions.tsv")],
        ("index.csv", "participants.tsv", "FileList.csv"),
    ]
)
CELL = st.sampled_from(["p1", "", "sub-1", "1", "-", "=A1", "99", "T1w", "MASK-brain"])
HEADERS = {
    "index.csv": ("path", "subject", "session", "modality", "age"),
    "participants.tsv": ("participant_id", "age", "sex"),
    "FileList.csv": ("FileName", "EF", "PatientId"),
    "a/sub-1_sessions.tsv": ("session_id", "age"),
}


@st.composite
def folders(draw: st.DrawFn) -> dict[str, str]:
    """Draw names with what stands in them: files and tables that a hospital might have."""
    groups = draw(st.lists(VISITS | PLANES, max_size=4))
    loose = draw(st.sets(NAMES, max_size=6)) | draw(st.sets(LOOSE, max_size=2))
    names = sorted(loose.union(*groups))
    texts = dict.fromkeys(names, "")
    plain = [name for name in names if name.isprintable()]
    for table in draw(TABLES):
        header = HEADERS[table]
        is_list = header[0] in {"path", "FileName"}
        first = st.sampled_from([*plain, "gone.nii"]) if is_list else CELL
        rows = draw(st.lists(st.tuples(first, *[CELL] * (len(header) - 1)), max_size=6))
        parting = "\t" if table.endswith(".tsv") else ","
        texts[table] = "".join(f"{parting.join(row)}\n" for row in [header, *rows])
    return texts


def build(root: Path, texts: dict[str, str]) -> bool:
    """Write a folder; False where one name is both a file and a folder."""
    for name, text in texts.items():
        try:
            plant(root, name)
            (root / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            return False
    return True


@pytest.mark.parametrize("recipe", sorted(RECIPE_OF))
@settings(max_examples=40)
@given(texts=folders())
def test_every_file_ends_in_exactly_one_place(
    recipe: str, texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("law") / "room" / "root"
    root.mkdir(parents=True)
    if not build(root, texts):
        return
    try:
        found = find(root, recipe)
    except CohortError:  # names or tables that do not tell whose an image is
        return
    files = {
        file.path.relative_to(root).as_posix() for file in walk_files(root) if not file.refusal
    }
    where = places(found, root)
    assert where.keys() == files
    assert {name: told for name, told in where.items() if len(told) > 1} == {}
    keys = [(source.subject, source.session, source.part) for source in found.sources]
    assert len(set(keys)) == len(keys)
    assert all(os.fsencode(subject) and subject.encode() for subject, _, _ in keys)
    wanted = set(RECIPE_OF[recipe].images)
    assert all(source.images.keys() == wanted for source in found.sources)


@pytest.mark.parametrize("recipe", ["brain-t1", "brain-lesion", "xray-2d"])
@settings(max_examples=40)
@given(texts=folders())
def test_what_is_found_is_found_again_in_the_folder_of_a_site(
    recipe: str, texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("again") / "room" / "root"
    root.mkdir(parents=True)
    if not build(root, texts):
        return
    try:
        found = find(root, recipe)
    except CohortError:
        return
    write_site_folder(found.sources, root.parent / "site")
    assert essence(find(root.parent / "site", recipe)) == essence(found)


def test_file_in_two_places_or_in_none_is_noticed(tmp_path: Path) -> None:
    plant(tmp_path, "a.nii", "b.nii")
    found = find(tmp_path)
    (lost, kept) = found.sources
    assert places(Found(sources=(kept,)), tmp_path).keys() == {"b.nii"}
    twice = Found(sources=found.sources, left_out=(LeftOut((lost.images["T1w"][0],), "x"),))
    assert places(twice, tmp_path)["a.nii"] == ["image", "left out"]


@settings(max_examples=40)
@given(texts=folders())
def test_what_is_found_does_not_depend_on_what_was_made_first(
    texts: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = []
    for order in (texts, dict(reversed(texts.items()))):
        root = tmp_path_factory.mktemp("order") / "room" / "root"
        root.mkdir(parents=True)
        if not build(root, order):
            return
        try:
            told.append(places(find(root), root))
        except CohortError as error:
            told.append({"refused": [str(error)]})
    assert all(one == other for one, other in pairwise(told))


def test_nothing_is_said_of_patients_in_reasons_notes_and_refusals(tmp_path: Path) -> None:
    root = tmp_path / "jane"
    plant(root, "sub-jane_T1w.nii", "sub-jane_bold.nii", "jane_T1.nii", "sub-jane_dseg.nii")
    plant(root, "jane.dcm", "jane.mgz", "jane.txt", "jane.csv", ".jane")
    (root / "link-jane").symlink_to(root / "nothing")
    (root / "index.csv").write_text(
        "path,subject,sex,age,label\nsub-jane_T1w.nii,jane,jane,jane,j=ane\nx-jane.nii,jane,,,\n"
    )
    found = find(root)
    assert len(found.sources) == 1
    told = [*found.notes, *(left.reason for left in found.left_out), repr(found)]
    told += [repr(each) for each in (*found.sources, *found.left_out)]
    assert len(told) > 12
    assert not any("jane" in text for text in told)
