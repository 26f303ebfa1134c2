"""A made-up hospital is whole, repeatable, refuses full folders, and keeps its truth elsewhere."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from vitrael.core.data.phantoms.hospital import (
    PLANTED,
    TRUTH,
    Written,
    check_places,
    write_hospital,
)
from vitrael.core.data.phantoms.orders import (
    FORMATS,
    SITES,
    FileFormat,
    Hospital,
    Kind,
    order_hospital,
)
from vitrael.core.data.phantoms.people import FAMILY_NAMES, draw_person, draw_visits, spell_name
from vitrael.core.errors import UsageError

EVERY = [(kind, form) for kind, forms in FORMATS.items() for form in forms]
SMALL: dict[Kind, dict[str, Any]] = {
    "brain": {"edge": 16},
    "echo": {"edge": 48, "frames": 3},
    "muscle": {"edge": 48, "frames": 3},
}


def order(kind: Kind, form: FileFormat | None = None, **choices: Any) -> Hospital:
    return order_hospital(kind, form, **{"patients": 2, "visits": 2, **SMALL[kind], **choices})


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def exact_numbers(written: Written) -> set[bytes]:
    """Return the facts that are told to many digits, as the truth writes them."""
    facts = (str(fact) for row in written.truth for fact in row.facts.values())
    return {text.encode() for text in facts if len(text) > 10}


def holders(numbers: Iterable[bytes], folder: Path) -> list[str]:
    """Return the files that hold one of the numbers."""
    return [name for name, data in contents(folder).items() if any(n in data for n in numbers)]


@pytest.mark.parametrize(("kind", "form"), EVERY)
def test_equal_orders_give_equal_bytes(kind: Kind, form: FileFormat, tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        hospital = order(kind, form, seed=seed, patients=1)
        write_hospital(tmp_path / name, hospital, is_messy=True)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "again")
    assert one != contents(tmp_path / "other")


@pytest.mark.parametrize(("kind", "form"), EVERY)
def test_truth_lies_outside_and_names_what_is_there(
    kind: Kind, form: FileFormat, tmp_path: Path
) -> None:
    out, truth = tmp_path / "out", tmp_path / "truth"
    written = write_hospital(out, order(kind, form), truth=truth)
    with (truth / TRUTH).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(written.truth) == order(kind, form).images
    assert all((out / row["path"]).exists() for row in rows)
    assert len({row["path"] for row in rows}) == len(rows)
    assert not (truth / PLANTED).exists()
    numbers = exact_numbers(written)
    assert len(numbers) > len(rows) // 2
    assert holders(numbers, out) == []
    assert holders(numbers, truth) == [TRUTH]


def test_planted_mess_is_told_beside_the_truth(tmp_path: Path) -> None:
    written = write_hospital(
        tmp_path / "out", order("brain", "png"), is_messy=True, truth=tmp_path / "truth"
    )
    assert written.planted
    assert (tmp_path / "truth" / PLANTED).read_text().count(":") == len(written.planted)


def test_full_folder_is_refused(tmp_path: Path) -> None:
    check_places(tmp_path / "new")
    check_places(tmp_path)
    (tmp_path / "letter.txt").write_text("hello")
    with pytest.raises(UsageError, match="not empty"):
        write_hospital(tmp_path, order("brain"))
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    with pytest.raises(UsageError, match="not empty"):
        check_places(tmp_path / "letter.txt")


def test_interrupted_writing_leaves_the_folder_empty(tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    out, truth = tmp_path / "out", tmp_path / "truth"
    with pytest.raises(KeyboardInterrupt):
        write_hospital(out, order("brain", "png"), truth=truth, tell=interrupt)
    assert list(out.iterdir()) == []
    assert not truth.exists()
    write_hospital(out, order("brain", "png"), truth=truth)
    assert sorted(path.name for path in out.iterdir()) == ["images", "images.csv"]


def test_truth_that_cannot_be_written_leaves_the_folder_empty(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("hello")
    with pytest.raises(NotADirectoryError):
        write_hospital(
            tmp_path / "out", order("brain", "png"), truth=tmp_path / "letter.txt" / "truth"
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_truth_inside_the_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "way").symlink_to(out, target_is_directory=True)
    for truth in (out, out / "truth", tmp_path / "way" / "truth", out / ".." / "out"):
        with pytest.raises(UsageError, match="truth would lie"):
            check_places(out, truth=truth)
    check_places(out, truth=tmp_path)
    check_places(out, truth=tmp_path / "out-truth")
    (tmp_path / TRUTH).write_text("older")
    with pytest.raises(UsageError, match="there is a truth"):
        check_places(out, truth=tmp_path)


@pytest.mark.parametrize(
    ("kind", "choices", "word"),
    [
        ("brain", {"file_format": "mp4"}, "as mp4"),
        ("echo", {"file_format": "nifti"}, "as nifti"),
        ("muscle", {"file_format": "nifti"}, "as nifti"),
        ("echo", {"site": "thick"}, "style"),
        ("brain", {"site": "clinic"}, "style"),
        ("brain", {"patients": 0}, "at least one patient"),
        ("brain", {"visits": 0}, "at least one patient"),
        ("echo", {"spacing_mm": 1.0}, "neither spacing"),
        ("muscle", {"contrasts": ("T1w",)}, "neither spacing"),
        ("brain", {"frames": 4}, "only clips"),
        ("echo", {"frames": 1}, "at least 2"),
        ("brain", {"contrasts": ("T1w", "PDw")}, "contrast"),
        ("brain", {"file_format": "png", "contrasts": ("T1w", "FLAIR")}, "T1w alone"),
        ("brain", {"file_format": "png", "grid_vox": (20, 20, 20)}, "--grid"),
        ("brain", {"edge": 20, "grid_vox": (20, 20, 20)}, "--grid"),
        ("brain", {"grid_vox": (20, 20, 8)}, "at least 16"),
        ("muscle", {"edge": 33}, "even"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(
    kind: Kind, choices: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        order_hospital(kind, **choices)
    order_hospital(kind)


def test_what_is_not_chosen_is_filled_in() -> None:
    brain, head = order_hospital("brain"), order_hospital("brain", site="whole-head")
    assert (brain.file_format, brain.site, brain.contrasts) == ("nifti", "plain", ("T1w",))
    assert brain.spacing_mm * brain.grid[0] < head.spacing_mm * head.grid[0]
    assert order_hospital("muscle", visits=3).images == 60
    assert order_hospital("echo").frames > 1


@pytest.mark.parametrize("kind", FORMATS)
def test_sites_and_seeds_have_different_people(kind: Kind) -> None:
    def people(**choices: Any) -> list[tuple[object, ...]]:
        hospital = order(kind, **choices)
        made = []
        for patient in range(4):
            day = draw_visits(hospital, patient)[0]
            person = draw_person(hospital, patient, sex="F", age_years=50, on=day)
            made.append((person.patient_id, person.name, person.birth_date))
        return made

    here = people()
    assert people() == here
    others = [{"seed": 1}, *({"site": site} for site in SITES[kind][1:])]
    for other in others:
        assert not set(here) & set(people(**other))


def test_no_two_patients_of_a_hospital_have_one_number() -> None:
    hospital = order("brain", patients=20_000)
    numbers = {
        draw_person(
            hospital, patient, sex="M", age_years=40, on=draw_visits(hospital, 0)[0]
        ).patient_id
        for patient in range(0, 20_000, 40)
    }
    assert len(numbers) == 500
    assert all(number[1:].isdigit() and len(number) == 7 for number in numbers)


def test_visits_are_on_different_days_in_order() -> None:
    for kind in FORMATS:
        days = draw_visits(order(kind, visits=6), 0)
        assert sorted(set(days)) == list(days)
        assert len(days) == 6


def test_a_machine_spells_names_without_umlauts() -> None:
    hospital = order("echo", patients=300)
    day = draw_visits(hospital, 0)[0]
    people = [draw_person(hospital, i, sex="F", age_years=40, on=day) for i in range(300)]
    assert {person.name.split("^")[0] for person in people} == set(FAMILY_NAMES)
    assert not all(person.name.isascii() for person in people)
    spelled = [spell_name(person) for person in people]
    assert all(name.isascii() and "?" not in name for name in spelled)
    assert any(name.startswith("Gaensefuss, ") for name in spelled)
    assert "nsef" not in repr(people)
