"""Which row of which table speaks of which file, and which tables were used.

Two kinds of tables name files. An ``index.csv`` (columns ``path`` and ``subject``) lies in the
folder, in one below, or in one of the two above; its paths start where it lies. Any other table,
for clips and pictures, has a column such as ``FileName`` or ``image_id``; it may leave folders and
endings out.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vitrael.core.data.layouts.facts import (
    FACT_COLUMNS,
    SUBJECT_COLUMNS,
    FactReader,
    Facts,
    is_said,
    reconcile,
)
from vitrael.core.data.layouts.kinds import image_stem
from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.tables import Table, peek_columns, read_table
from vitrael.core.errors import CohortError

INDEX = "index.csv"
NOT_LISTED = "the table does not list it"
AMBIGUOUS = "the table names it by a name that other files have too"

_PATH_COLUMNS = ("path", "file_path", "filepath", "image_path")
_IMAGE_COLUMNS = (
    *_PATH_COLUMNS,
    *("filename", "file_name", "file", "image", "image_index", "image_id", "dicom_id"),
)


@dataclass(frozen=True, slots=True, repr=False)
class Folder:
    """The files of a folder that a layout looks at."""

    root: Path
    images: tuple[Path, ...]
    """Those of the recipe's kind, in the order of the walk."""
    tables: tuple[Path, ...]
    others: frozenset[Path] = frozenset()

    def inside(self, path: Path) -> Path:
        """Return a path as seen from the folder."""
        return path.relative_to(self.root)


@dataclass(slots=True, repr=False)
class Listed:
    """What tables say of files."""

    facts: dict[Path, Facts] = field(default_factory=dict)
    used: list[Path] = field(default_factory=list)
    names_patients: bool = False
    """Whether one of the tables has a column for the patient."""

    def add(self, path: Path, facts: Facts) -> None:
        """Take in what one more row says of a file."""
        known = self.facts.get(path)
        self.facts[path] = facts if known is None else reconcile(known, facts)


def list_index(folder: Folder, ledger: Ledger) -> Listed:
    """Return what every ``index.csv`` says of the images; unused where it names none of them.

    Raises CohortError for one that cannot be read, and for one that lacks a column; those above
    the folder may be about something else.
    """
    listed = Listed()
    rooms = _Rooms(folder)
    own = [path for path in folder.tables if path.name.lower() == INDEX]
    for path in [*_indexes_above(folder.root), *own]:
        table = read_table(path, label=INDEX)
        column = _first_of(_PATH_COLUMNS, table.columns)
        if column and _first_of(SUBJECT_COLUMNS, table.columns):
            _take_rows(listed, path, table, rooms=rooms, column=column, ledger=ledger)
        elif path in own:
            raise CohortError(
                f"the table {INDEX} lacks the column {'subject' if column else 'path'}",
                fix="name each file in path and its patient in subject, or remove the table",
            )
    return listed


def _indexes_above(root: Path) -> list[Path]:
    """Return the indexes of the two folders above, the nearest last.

    One without the columns of an index is about something else. One that cannot be read at all is
    returned, and will be refused, when it lies directly above: patients could be lost with it.
    """
    found = []
    for distance, home in enumerate(root.resolve().parents[:2]):
        columns = set(peek_columns(home / INDEX))
        is_index = columns & set(_PATH_COLUMNS) and columns & set(SUBJECT_COLUMNS)
        is_damaged = distance == 0 and not columns and (home / INDEX).is_file()
        if is_index or is_damaged:
            found.append(home / INDEX)
    return found[::-1]


def list_tables(folder: Folder, ledger: Ledger) -> Listed:
    """Return what the other tables that name images say of them.

    Such a table has a column of files, and says something besides: the patient, the visit, a
    covariate or a label. Raises CohortError for one that cannot be read.
    """
    listed = Listed()
    rooms = _Rooms(folder)
    for path in folder.tables:
        columns = peek_columns(path)
        candidates = [name for name in _IMAGE_COLUMNS if name in columns]
        if path.name.lower() == INDEX or not candidates or not FACT_COLUMNS.intersection(columns):
            continue
        table = read_table(path)
        for column in candidates:
            if _take_rows(listed, path, table, rooms=rooms, column=column, ledger=ledger):
                break
    return listed


def _take_rows(
    listed: Listed, path: Path, table: Table, *, rooms: _Rooms, column: str, ledger: Ledger
) -> bool:
    """Take in what the rows of a table say of images; return whether they name any."""
    reader = FactReader(table, ledger)
    room = rooms.of(path)
    subject = _first_of(SUBJECT_COLUMNS, table.columns)
    absent = 0
    named = False
    for row in table.rows():
        cell = row.cells.get(column, "")
        hit = room.find(cell, row.cells.get(subject, "")) if is_said(cell) else _ABSENT
        absent += hit.is_absent
        if hit.paths:
            named = True
            facts = Facts(refused=AMBIGUOUS) if hit.is_ambiguous else reader.read(row)
            for image in hit.paths:
                listed.add(image, facts)
    if named:
        listed.used.append(path)
        listed.names_patients = listed.names_patients or bool(subject)
        ledger.count("rows of tables that name no file here", absent)
    return named


def _first_of(wanted: Iterable[str], columns: Iterable[str]) -> str:
    present = set(columns)
    return next((name for name in wanted if name in present), "")


@dataclass(frozen=True, slots=True, repr=False)
class _Hit:
    """The images that one cell names."""

    paths: tuple[Path, ...] = ()
    is_absent: bool = False
    """Whether it names a file below the table that is not there."""
    is_ambiguous: bool = False


_ABSENT = _Hit(is_absent=True)
_ELSEWHERE = _Hit()


class _Rooms:
    """The images of a folder by all names that a table may use for them."""

    def __init__(self, folder: Folder) -> None:
        root = folder.root
        self.root = root
        self.absolute = (f"{_key(root.absolute())}/", f"{_key(root.resolve())}/")
        keys = [_key(folder.inside(path)) for path in folder.images]
        often = {key for key, times in Counter(keys).items() if times > 1}
        self.by_path = {
            key: path for key, path in zip(keys, folder.images, strict=True) if key not in often
        }
        self.others = {_key(folder.inside(path)) for path in folder.others}
        self.by_name: dict[str, list[str]] = defaultdict(list)
        self.by_tail: dict[str, list[str]] = defaultdict(list)
        for place in self.by_path:
            name = place.rsplit("/", 1)[-1]
            stem = image_stem(name)
            self.by_name[name].append(place)
            self.by_name[stem].append(place)
            for parting in re.finditer(r"[_-]", stem):
                self.by_tail[stem[parting.end() :]].append(place)

    def of(self, table: Path) -> _Room:
        """Return the part of the folder that a table speaks of: what lies below it."""
        if table.is_relative_to(self.root):
            below = _key(table.relative_to(self.root).parent)
            return _Room(self, below="" if below == "." else f"{below}/", above="")
        return _Room(
            self, below="", above=_key(self.root.resolve().relative_to(table.parent)) + "/"
        )


@dataclass(frozen=True, slots=True, repr=False)
class _Room:
    """What lies below one table."""

    rooms: _Rooms
    below: str
    """From the folder to the table, with a slash at its end; empty for the folder itself."""
    above: str
    """From the table to the folder, for a table that lies above."""

    def find(self, cell: str, subject: str) -> _Hit:
        """Return the images that a cell names by path, by name alone, or with its patient."""
        places = {self._place(text) for text in (cell, cell.replace("\\", "/"))}
        inside = {place for place in places if place is not None}
        for place in inside & self.rooms.by_path.keys():
            return _Hit((self.rooms.by_path[place],))
        if not inside or inside & self.rooms.others:
            return _ELSEWHERE
        return _ABSENT if self.above else self._find_name(_composed(cell), _composed(subject))

    def _find_name(self, name: str, subject: str) -> _Hit:
        places = self._here(self.rooms.by_name.get(name, ()))
        is_ambiguous = len(places) > 1
        if not places and is_said(subject):
            start = re.compile(re.escape(subject) + "[_-]")
            tails = self._here(self.rooms.by_tail.get(name, ()))
            places = [place for place in tails if start.match(place.rsplit("/", 1)[-1])]
        if not places:
            return _ABSENT
        return _Hit(tuple(self.rooms.by_path[p] for p in places), is_ambiguous=is_ambiguous)

    def _place(self, cell: str) -> str | None:
        """Return where a cell points to, as seen from the folder; None when it is outside."""
        path = os.path.normpath(_composed(cell))
        if Path(path).is_absolute():
            starts = [start for start in self.rooms.absolute if path.startswith(start)]
            return path.removeprefix(starts[0]) if starts else None
        if self.above:
            return path.removeprefix(self.above) if path.startswith(self.above) else None
        return os.path.normpath(self.below + path)

    def _here(self, places: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(place for place in places if place.startswith(self.below)))


def _key(path: Path) -> str:
    return _composed(path.as_posix())


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
