"""Tables as hospitals export them: read whole, as text, or refused in one sentence.

A spreadsheet program leaves its marks: a byte order mark, UTF-16, the letters of an old code page,
semicolons and decimal commas, a first line ``sep=;``, formulas. All are understood or refused. No
message holds what a cell says.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitrael.core.errors import CohortError

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 64 << 20
FORMULA = "a cell of its row in the table holds a formula"

_SEPARATORS = (",", ";", "\t")
_SAMPLE_CHARACTERS = 1 << 16
_SAMPLE_ROWS = 200
_FORMULA = re.compile(r"=|(?![+-](?:inf|infinity|nan)$)[+\-@][^\W\d_]", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True, slots=True, repr=False)
class Row:
    """One row: its cells that are not blank, by the name of their column."""

    number: int
    """From 1, the header not counted."""
    cells: dict[str, str]
    has_formula: bool = False
    """Such a row must not be believed."""

    def __repr__(self) -> str:
        """Show no cell."""
        return f"Row({self.number})"


@dataclass(frozen=True, slots=True, repr=False)
class Table:
    """A header and its rows, all of them text without white space around it."""

    columns: tuple[str, ...]
    """As ``column_name`` writes them; a column without a name is not kept."""
    has_decimal_comma: bool
    """Whether a comma within a number is the decimal one: columns are parted by semicolons."""
    cells: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        """Show sizes alone."""
        return f"Table({len(self.cells)} rows, {len(self.columns)} columns)"

    def rows(self) -> Iterator[Row]:
        """Yield the rows in order; a row of blanks alone is none."""
        for number, row in enumerate(self.cells, start=1):
            cells = {name: text for name, text in zip(self.columns, row, strict=True) if text}
            if cells:
                formula = any(_FORMULA.match(text) for text in cells.values())
                yield Row(number, cells, has_formula=formula)

    def values(self, column: str) -> list[str]:
        """Return all cells of a column, blank ones included; none when there is no such column."""
        if column not in self.columns:
            return []
        place = self.columns.index(column)
        return [row[place] for row in self.cells]


def column_name(text: str) -> str:
    """Return a column's name in lower case, with ``_`` for whatever parts its words."""
    return re.sub(r"\W+", "_", text.strip().lower()).strip("_")


def read_table(path: Path, *, label: str | None = None) -> Table:
    """Return a table whose columns are parted by commas, semicolons or tabs.

    UTF-8, UTF-16 and the western code page are understood. Raises CohortError, which names the
    table by ``label`` (the file's name when None), for a file that is missing, empty, larger than
    ``MOST_BYTES`` or no text, for a quotation without end, for a row with more or fewer cells than
    the header, and for two columns of one name.
    """
    shown = label or path.name.encode(errors="replace").decode()
    try:
        text = _read_text(path)
        separator, text = _find_separator(text)
        frame = _parse(text, separator)
        return _build(frame, separator)
    except CohortError as fault:
        raise CohortError(
            f"the table {shown} cannot be read", why=fault.what, fix="mend the table or remove it"
        ) from None


def peek_columns(path: Path) -> tuple[str, ...]:
    """Return the names of a table's columns from its first bytes; none when they are no table's."""
    try:
        with path.open("rb") as file:
            text = _decode(file.read(_SAMPLE_CHARACTERS), is_whole=False)
        separator, text = _find_separator(text)
        rows = csv.reader(io.StringIO(text), delimiter=separator)
        first = next((row for row in rows if len(row) > 1 or "".join(row).strip()), [])
    except (OSError, csv.Error, CohortError):
        return ()
    return tuple(column_name(name) for name in first)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError:
        raise CohortError("it cannot be opened") from None
    if len(data) > MOST_BYTES:
        raise CohortError(f"it is larger than {MOST_BYTES >> 20} MiB")
    return _decode(data, is_whole=True)


def _decode(data: bytes, *, is_whole: bool) -> str:
    """Return the text of bytes, every line ended as on Unix."""
    marked = [name for mark, name in _MARKS.items() if data.startswith(mark)]
    for encoding in marked or ["utf-8", "cp1252"]:
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(data, final=is_whole)
        except UnicodeDecodeError:
            continue
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if _CONTROL.search(text):
            break
        if not text.strip():
            raise CohortError("it is empty")
        return text
    raise CohortError("it is no text")


def _find_separator(text: str) -> tuple[str, str]:
    """Return what parts the columns, and the text without a line that only says so.

    It is the one by which most rows have as many cells as the header, and the header the most.
    """
    said = re.match(r"\s*\"?sep=(.)\"?[ ]*\n", text, re.IGNORECASE)
    if said and said[1] in _SEPARATORS:
        return said[1], text[said.end() :]
    sample = text[:_SAMPLE_CHARACTERS]
    whole = sample if len(sample) == len(text) else sample.rsplit("\n", 1)[0]
    best = (0.0, 0, ",")
    for separator in _SEPARATORS:
        widths = _widths(whole, separator)
        if len(widths) > 0 and widths[0] > 1:
            share = sum(width == widths[0] for width in widths) / len(widths)
            if (share, widths[0]) > best[:2]:
                best = (share, widths[0], separator)
    return best[2], text


def _widths(text: str, separator: str) -> list[int]:
    widths: list[int] = []
    try:
        for row in csv.reader(io.StringIO(text), delimiter=separator):
            if row:
                widths.append(len(row))
            if len(widths) == _SAMPLE_ROWS:
                break
    except csv.Error:  # a cell beyond csv's limit: what was read so far has to do
        pass
    return widths


def _parse(text: str, separator: str) -> pd.DataFrame:
    """Return all lines as text, the header first; a cell that is missing in its row is NaN."""
    import pandas as pd  # noqa: PLC0415 - half a second that a folder without a table need not wait

    try:
        return pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=None,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            engine="python",  # tells a missing cell from a blank one
            on_bad_lines="error",
        )
    except pd.errors.EmptyDataError:
        raise CohortError("it is empty") from None
    except (pd.errors.ParserError, csv.Error) as error:
        long = re.match(r"Expected \d+ fields in line \d+, saw \d+", str(error))
        raise CohortError(
            "a row has more cells than the header" if long else "a quotation has no end"
        ) from None


def _build(frame: pd.DataFrame, separator: str) -> Table:
    if frame.isna().to_numpy().any():
        raise CohortError("a row has fewer cells than the header")
    lines = [tuple(str(cell).strip() for cell in line) for line in frame.to_numpy()]
    names = [column_name(name) for name in lines[0]]
    kept = [place for place, name in enumerate(names) if name]
    columns = tuple(names[place] for place in kept)
    if not columns:
        raise CohortError("its header is blank")
    if len(set(columns)) < len(columns):
        raise CohortError("two columns have one name")
    cells = tuple(tuple(line[place] for place in kept) for line in lines[1:])
    return Table(columns=columns, has_decimal_comma=separator == ";", cells=cells)
