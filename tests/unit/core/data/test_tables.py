"""Tables of every export are read alike, or refused in one sentence that quotes no cell."""

from __future__ import annotations

import codecs
import csv
import io
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrael.core.data import tables
from vitrael.core.data.tables import Row, peek_columns, read_table
from vitrael.core.errors import CohortError

PLAIN = "path,subject,note\na.png,Jörg,ok\nb.png,Äneas,61\n"


def rows(path: Path) -> list[dict[str, str]]:
    return [row.cells for row in read_table(path).rows()]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "index.csv"


EXPECTED = [
    {"path": "a.png", "subject": "Jörg", "note": "ok"},
    {"path": "b.png", "subject": "Äneas", "note": "61"},
]
EXPORTS = {
    "utf-8": PLAIN.encode(),
    "utf-8 with its mark": codecs.BOM_UTF8 + PLAIN.encode(),
    "utf-16 little": PLAIN.encode("utf-16"),
    "utf-16 big": codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
    "latin-1": PLAIN.encode("latin-1"),
    "semicolons": PLAIN.replace(",", ";").encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "lines of Windows": PLAIN.replace("\n", "\r\n").encode(),
    "lines of an old Macintosh": PLAIN.replace("\n", "\r").encode(),
    "no last end of line": PLAIN.rstrip().encode(),
    "blank lines": PLAIN.replace("\n", "\n\n").encode(),
    "blank lines before the header": b"\n \n" + PLAIN.encode(),
    "the separator said first": b"sep=;\r\n" + PLAIN.replace(",", ";").encode(),
    "white space": PLAIN.replace(",", " , ").encode(),
    "everything quoted": '"path","subject","note"\n"a.png","Jörg","ok"\n'.encode()
    + '"b.png","Äneas","61"\n'.encode(),
    "another case of the header": PLAIN.replace("path,subject", "Path,SUBJECT").encode(),
    "columns without a name": b"path,subject,note,,\n"
    + "a.png,Jörg,ok,,\nb.png,Äneas,61,,\n".encode(),
}


@pytest.mark.parametrize("export", EXPORTS)
def test_every_export_gives_the_same_table(table: Path, export: str) -> None:
    table.write_bytes(EXPORTS[export])
    assert rows(table) == EXPECTED
    assert set(peek_columns(table)) - {""} == {"path", "subject", "note"}


REFUSED = {
    "empty": (b"", "it is empty"),
    "blanks alone": (b" \n\n", "it is empty"),
    "no text": (bytes(range(256)) * 4, "it is no text"),
    "an image under a table's name": (b"\x89PNG\r\n\x1a\n\0\0\0", "it is no text"),
    "half a character": (codecs.BOM_UTF8 + b"a,b\n1,\xc3", "it is no text"),
    "a longer row": (b"path,subject\nJane,1,2\n", "a row has more cells than the header"),
    "a shorter row": (b"path,subject,note\na,b,c\nJane,1\n", "a row has fewer cells"),
    "a quotation without end": (b'path,subject\n"Jane,1\n', "a quotation has no end"),
    "two columns of one name": (b"path,Patient ID,patient_id\nJane,1,2\n", "two columns have one"),
    "a blank header": (b",,\nJane,1,2\n", "its header is blank"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_table_that_cannot_be_trusted_is_refused_in_one_sentence(table: Path, case: str) -> None:
    data, why = REFUSED[case]
    table.write_bytes(data)
    with pytest.raises(CohortError) as caught:
        read_table(table)
    assert caught.value.what == "the table index.csv cannot be read"
    assert caught.value.why.startswith(why)
    assert "Jane" not in str(caught.value)
    assert str(table.parent) not in str(caught.value)


def test_missing_and_oversized_tables_are_refused(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CohortError, match="it cannot be opened"):
        read_table(table)
    table.write_text(PLAIN)
    monkeypatch.setattr(tables, "MOST_BYTES", len(PLAIN.encode()) - 1)
    with pytest.raises(CohortError, match="it is larger than"):
        read_table(table)
    monkeypatch.setattr(tables, "MOST_BYTES", len(PLAIN.encode()))
    assert len(rows(table)) == 2


def test_label_stands_for_a_name_that_tells_a_patient(tmp_path: Path) -> None:
    path = tmp_path / "sub-jane_sessions.tsv"
    path.write_bytes(b"")
    with pytest.raises(CohortError, match=r"the table sessions\.tsv") as caught:
        read_table(path, label="sessions.tsv")
    assert "jane" not in str(caught.value)


def test_words_for_nothing_stay_text(table: Path) -> None:
    table.write_text("path,subject\nNA,nan\nNone,007\n")
    assert rows(table) == [
        {"path": "NA", "subject": "nan"},
        {"path": "None", "subject": "007"},
    ]


def test_cells_with_separators_and_line_ends_stay_whole(table: Path) -> None:
    table.write_text('path,notes\na.png,"age=39;sex=m"\nb.png,"one, two\nthree"\n')
    assert [row["notes"] for row in rows(table)] == ["age=39;sex=m", "one, two\nthree"]


def test_separator_is_not_mistaken_for_the_comma_of_numbers(table: Path) -> None:
    table.write_text("path;ef;age\na;61,5;39,5\nb;55,0;40,1\n")
    read = read_table(table)
    assert read.columns == ("path", "ef", "age")
    assert read.has_decimal_comma
    table.write_text("path,ef,notes\na,61.5,x=1;y=2;z=3\n")
    assert not read_table(table).has_decimal_comma


def test_table_of_one_column_is_a_table(table: Path) -> None:
    table.write_text("path\na.png\nb.png\n")
    assert rows(table) == [{"path": "a.png"}, {"path": "b.png"}]


@pytest.mark.parametrize(
    "cell", ["=SUM(A1)", '="00123"', "+A1", "-cmd", "-infer", "@SUM(A1)", " =1+1"]
)
def test_formula_is_seen(table: Path, cell: str) -> None:
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "subject"], ["a.png", cell]])
    (row,) = read_table(table).rows()
    assert row.has_formula


@pytest.mark.parametrize(
    "cell", ["-5", "+3.5", "-", "-.5", "a=b", "x@y", "+/-", "p-1", "-inf", "+Infinity"]
)
def test_number_or_word_is_no_formula(table: Path, cell: str) -> None:
    table.write_text(f"path,subject\na.png,{cell}\n")
    (row,) = read_table(table).rows()
    assert not row.has_formula


def test_nothing_of_a_table_is_shown(table: Path) -> None:
    table.write_text(PLAIN)
    read = read_table(table)
    assert repr(read) == "Table(2 rows, 3 columns)"
    assert repr(next(read.rows())) == "Row(1)"
    assert repr(Row(4, {"path": "jane"})) == "Row(4)"


CELL = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")),
    max_size=12,
)


@given(
    cells=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6),
    separator=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_was_written_is_read(
    cells: list[tuple[str, str, str]],
    separator: str,
    encoding: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerow(["first", "second", "third"])
    writer.writerows(cells)
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    stripped = [tuple(cell.strip() for cell in row) for row in cells]
    assert list(read_table(path).cells) == stripped


@given(data=st.binary(max_size=400))
def test_rubbish_is_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_bytes(data)
    peek_columns(path)
    with suppress(CohortError):
        read = read_table(path)
        assert all(len(row) == len(read.columns) for row in read.cells)
        list(read.rows())
