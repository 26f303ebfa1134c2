"""Words, numbers and dates of a row: understood, or unknown and counted; never guessed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from vitrael.core.data.layouts.facts import (
    DISAGREEMENT,
    IMPOSSIBLE_EF,
    FactReader,
    Facts,
    overlay,
    reconcile,
)
from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.tables import read_table


class Reading:
    """Reads one column of cells."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger()
        self._path = folder / "t.csv"

    def __call__(self, column: str, cells: Sequence[str], separator: str = ",") -> list[Facts]:
        with self._path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerows([("path", column), *(("a", cell) for cell in cells)])
        table = read_table(self._path)
        reader = FactReader(table, self.ledger)
        return [reader.read(row) for row in table.rows()]


@pytest.fixture
def read(tmp_path: Path) -> Reading:
    return Reading(tmp_path)


@pytest.mark.parametrize(
    ("cell", "age_years"),
    [
        ("39", 39.0),
        ("39.5", 39.5),
        ("039Y", 39.0),
        ("39 years", 39.0),
        ("018M", 1.5),
        ("0", 0.0),
        ("130", 130.0),
        ("131", None),
        ("-1", None),
        ("90+", None),
        ("61,5", None),
        ("1e3", None),
        ("forty", None),
    ],
)
def test_age_is_a_number_of_years_or_unknown_and_counted(
    read: Reading, cell: str, age_years: float | None
) -> None:
    (facts,) = read("Age", [cell])
    assert facts.covariates.get("age_years") == age_years
    assert len(read.ledger.notes) == (age_years is None)


def test_missing_age_is_unknown_and_not_counted(read: Reading) -> None:
    assert all(not facts.covariates for facts in read("age", ["n/a", "-", "nan", "", "?"]))
    assert read.ledger.notes == ()


def test_comma_is_decimal_where_semicolons_part_the_columns(read: Reading) -> None:
    (facts,) = read("age", ["61,5"], ";")
    assert facts.covariates == {"age_years": 61.5}
    (facts,) = read("EF", ["55,5"], ";")
    assert facts.covariates == {"ef_frac": pytest.approx(0.555)}


def test_words_for_sex_are_known_in_two_languages(read: Reading) -> None:
    male = read("sex", ["m", "M", "male", "Male", "männlich", "1"])
    female = read("Gender", ["f", "F", "female", "w", "weiblich", "0"])
    assert {facts.covariates["sex"] for facts in male} == {1.0}
    assert {facts.covariates["sex"] for facts in female} == {0.0}
    assert not read.ledger.notes
    assert all(not facts.covariates for facts in read("sex", ["d", "x9", "O"]))
    assert read.ledger.notes == ("words for sex that are not understood, taken as unknown: 3",)


def test_a_two_anywhere_makes_the_column_one_of_ones_and_twos(read: Reading) -> None:
    assert [f.covariates.get("sex") for f in read("sex", ["1", "2", "0"])] == [1.0, 0.0, None]
    assert [f.covariates.get("sex") for f in read("sex", ["1", "0", "1"])] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("cell", "ef_frac"),
    [("0.55", 0.55), ("55", 0.55), ("55%", 0.55), ("100", 1.0), ("1", 1.0), ("0", 0.0)],
)
def test_ef_is_a_fraction_or_a_percentage(read: Reading, cell: str, ef_frac: float) -> None:
    (facts,) = read("EF", [cell])
    assert facts.covariates == {"ef_frac": pytest.approx(ef_frac)}
    assert not facts.refused


@pytest.mark.parametrize("cell", ["100.1", "-3", "5500", "1e999"])
def test_ef_outside_its_bounds_refuses_the_image(read: Reading, cell: str) -> None:
    (facts,) = read("EF", [cell])
    assert facts.refused == IMPOSSIBLE_EF == "its EF in the table is not between 0 and 100 %"


def test_volumes_outside_their_bounds_are_unknown_and_counted(read: Reading) -> None:
    facts = read("ESV", ["60.2", "-1", "9999"])
    assert [each.covariates.get("esv_ml") for each in facts] == [60.2, None, None]
    assert read.ledger.notes == ("values of esv_ml that cannot be, taken as unknown: 2",)


def test_dates_are_read_and_others_counted(read: Reading) -> None:
    cells = ["2021-03-01", "20210301", "2021-03-01T10:00:00", "01.03.2021", "2021-02-30", ""]
    expected = [date(2021, 3, 1)] * 3 + [None] * 3
    assert [facts.taken for facts in read("date", cells)] == expected
    assert read.ledger.notes == ("dates that are not written 2020-12-31, taken as unknown: 2",)


def test_only_words_of_known_columns_become_labels(read: Reading) -> None:
    long = "x" * 65
    facts = read("View Position", ["PA", "a;b", long, "-"])
    assert [dict(each.labels) for each in facts] == [{"projection": "PA"}, {}, {}, {}]
    (note,) = read.ledger.notes
    assert note.startswith("labels of the column view_position, dropped (write them with at most")
    assert note.endswith(": 2")
    assert "a;b" not in note
    (other,) = read("physician", ["Jane"])
    assert other.labels == {}


def test_notes_tell_covariates_and_labels_but_never_whose_it_is(read: Reading) -> None:
    (facts,) = read("notes", ["age=39; sex=m;projection=ap;subject=jane;session=3;doi=x"])
    assert facts.covariates == {"age_years": 39.0, "sex": 1.0}
    assert facts.labels == {"projection": "ap"}
    assert (facts.subject, facts.session) == ("", "")


def test_later_word_stands_and_a_contradiction_refuses() -> None:
    one = Facts(subject="a", covariates={"sex": 1.0}, labels={"view": "a4c"})
    other = Facts(subject="b", session="2", covariates={"age_years": 40.0})
    assert overlay([one, other]).subject == "b"
    assert overlay([other, one]).session == "2"
    assert reconcile(one, other).refused == DISAGREEMENT
    agreed = reconcile(one, Facts(subject="a", covariates={"sex": 1.0, "age_years": 3.0}))
    assert not agreed.refused
    assert agreed.covariates == {"sex": 1.0, "age_years": 3.0}
    assert reconcile(agreed, Facts(covariates={"sex": 0.0})).refused == DISAGREEMENT
    assert repr(agreed) == "Facts(private)"
