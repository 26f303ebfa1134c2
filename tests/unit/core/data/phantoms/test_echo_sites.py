"""Phantom hospitals write pictures and a table of views: equal when asked alike, else others."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vitrael.core.data.phantoms.echo_sites import ECHO_SITES, TABLE, draw_picture, write_view_files
from vitrael.core.data.phantoms.echo_styles import STYLES
from vitrael.core.data.phantoms.echo_views import VIEWS
from vitrael.core.data.pictures import read_picture_file

EDGE_PX = 24
WORDS = {view: view for view in VIEWS}
PATIENTS = 5


def write(
    folder: Path,
    *,
    seed: int = 3,
    site: int = 1,
    words: dict[str, str] | None = None,
    patients: int = PATIENTS,
) -> dict[str, bytes]:
    """Return the files of a hospital by name."""
    own = WORDS if words is None else words
    written = write_view_files(
        folder, seed=seed, site=site, words=own, patients=patients, edge_px=EDGE_PX
    )
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert written == len(files) - 1
    return files


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_equal_arguments_write_equal_files(tmp_path: Path) -> None:
    first = write(tmp_path / "one")
    assert write(tmp_path / "two") == first
    other = write(tmp_path / "three", seed=4)  # the control
    assert set(other) == set(first)
    assert other[TABLE] == first[TABLE]
    assert all(other[name] != first[name] for name in first if name != TABLE)


def test_other_sites_have_other_pictures_even_with_the_same_machine(tmp_path: Path) -> None:
    same_machine = len(ECHO_SITES)
    places = (0, 1, same_machine)
    files = [write(tmp_path / str(place), site=place) for place in places]
    pictures = [content for each in files for name, content in each.items() if name != TABLE]
    assert len(pictures) == len(set(pictures)) == len(places) * PATIENTS
    assert files[0][TABLE] == files[2][TABLE] != files[1][TABLE]  # it knows the same views


def test_table_names_each_picture_its_patient_and_its_view(tmp_path: Path) -> None:
    files = write(tmp_path, site=1)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == ["file", "patient_id", "view"]
    assert sorted(row["file"] for row in rows) == sorted(set(files) - {TABLE})
    assert len({row["patient_id"] for row in rows}) == PATIENTS
    assert [row["view"] for row in rows] == ["A4C", "PSAX", "A2C", "A4C", "PSAX"]


def test_views_are_told_in_the_site_s_own_words_and_drawn_the_same(tmp_path: Path) -> None:
    own = {**WORDS, "A4C": "apical 4"}
    there, here = write(tmp_path / "there"), write(tmp_path / "here", words=own)
    told = [row["view"] for row in rows_of(tmp_path / "here")]
    assert told == ["apical 4", "PSAX", "A2C", "apical 4", "PSAX"]
    assert there[TABLE] != here[TABLE]
    assert {n: b for n, b in there.items() if n != TABLE} == {
        n: b for n, b in here.items() if n != TABLE
    }


def test_view_that_the_study_does_not_have_is_not_written(tmp_path: Path) -> None:
    write(tmp_path / "one", words={"PSAX": "short axis", "PLAX": "PLAX"})
    assert [row["view"] for row in rows_of(tmp_path / "one")] == ["short axis"] * PATIENTS


@pytest.mark.parametrize(
    ("words", "patients"), [({"PLAX": "PLAX"}, PATIENTS), ({}, PATIENTS), (WORDS, 0)]
)
def test_site_without_a_view_or_a_patient_has_an_empty_table(
    words: dict[str, str], patients: int, tmp_path: Path
) -> None:
    files = write(tmp_path, words=words, patients=patients)  # PLAX is not known at this site
    assert set(files) == {TABLE}
    assert rows_of(tmp_path) == []


def test_files_hold_the_pictures_that_were_drawn(tmp_path: Path) -> None:
    write(tmp_path, patients=1)
    stored = read_picture_file(tmp_path / "picture-0001.png")
    assert stored.image_HW.shape == (EDGE_PX, EDGE_PX)
    assert stored.image_HW.max() > stored.image_HW.min()


def test_each_number_is_another_patient() -> None:
    style = STYLES["clinic"]

    def draw(number: int) -> bytes:
        picture = draw_picture(1, style, number, view="A4C", edge_px=EDGE_PX)
        assert picture.modality == "US"
        return picture.image_HW.tobytes()

    assert draw(0) == draw(0)
    assert len({draw(number) for number in range(4)}) == 4


def test_every_site_knows_several_views_that_can_be_drawn() -> None:
    known = [view for _, views in ECHO_SITES.values() for view in views]
    assert set(known) < set(VIEWS)
    styles = [style.name for style, _ in ECHO_SITES.values()]
    assert len(styles) == len(set(styles))
    assert all(len(views) == len(set(views)) > 1 for _, views in ECHO_SITES.values())
