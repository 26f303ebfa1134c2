"""Which row of which table speaks of which file, and which tables were used.

Two kinds of tables name files. An ``index.csv`` (columns ``path`` and ``subject``) lies in the
folder, in one below, or in one of the two above; its paths start where it lies. Any other table,
for clips and pictures, has a column such as ``FileName`` or ``image_id``; it may leave folders and
endings out.

Whose an image is stands in them: to go on without one that cannot be read would make new patients.
So whatever lies below it is left out; nothing is taken in where that is the whole folder.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

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
BROKEN_TABLE = "a table that cannot be read"
UNTOLD = "whose it is stands in a table that cannot be read"
MAYBE_UNTOLD = "whose it is may stand in a table that cannot be read or is empty"
ELSEWHERE = "a table tells whose other files are, and none of them is here"

PARTICIPANTS = "participants.tsv"
SESSIONS = re.compile(r"(?:(sub-[A-Za-z0-9]+)_)?(?:ses-[A-Za-z0-9]+_)?sessions\.tsv", re.IGNORECASE)
"""Tables of BIDS, which do not tell whose an image is."""

_PATH_COLUMNS = ("path", "file_path", "filepath", "image_path")
_IMAGE_COLUMNS = (
    *_PATH_COLUMNS,
    *("filename", "file_name", "file", "image", "image_index", "image_id", "dicom_id"),
)


_Taken = Literal["images", "others", "absent", "nothing"]
"""What the cells of a column name: images, else other files of the folder, else absent ones."""


@dataclass(frozen=True, slots=True, repr=False)
class Folder:
    """The files of a folder that a layout looks at."""

    root: Path
    images: tuple[Path, ...]
    """Those of the recipe's kind, in the order of the walk."""
    tables: tuple[Path, ...]
    others: frozenset[Path] = frozenset()
    closed: tuple[Path, ...] = ()
    """Tables that may not be opened."""

    def inside(self, path: Path) -> Path:
        """Return a path as seen from the folder."""
        return path.relative_to(self.root)


@dataclass(slots=True, repr=False)
class Listed:
    """What tables say of files."""

    facts: dict[Path, Facts] = field(default_factory=dict)
    used: list[Path] = field(default_factory=list)
    untold: dict[Path, str] = field(default_factory=dict)
    """Folders in which nothing can be believed, and why."""
    doubted: dict[Path, str] = field(default_factory=dict)
    """Folders in which a file is no patient of its own because no table names one, and why."""

    def add(self, path: Path, facts: Facts) -> None:
        """Take in what one more row says of a file."""
        known = self.facts.get(path)
        self.facts[path] = facts if known is None else reconcile(known, facts)

    def refusal(self, path: Path) -> str:
        """Return why an image must not be used, whatever its name says; empty when it may."""
        return _reason_below(self.untold, path)

    def doubt(self, path: Path) -> str:
        """Return why an image is not to count as a patient of its own; empty when it may."""
        return _reason_below(self.doubted, path)


def _reason_below(folders: Mapping[Path, str], path: Path) -> str:
    return next((folders[home] for home in path.parents if home in folders), "")


def list_index(folder: Folder, ledger: Ledger) -> Listed:
    """Return what every ``index.csv`` says of the images; unused where it names none of them.

    One below the folder that cannot be read, or lacks a column, leaves out what lies below it.
    Raises CohortError for such a one of the whole folder; those above it may be about something
    else, and may then lack a column.
    """
    listed = Listed()
    rooms = _Rooms(folder)
    own = [path for path in folder.tables if path.name.lower() == INDEX]
    closed = [path for path in folder.closed if path.name.lower() == INDEX]
    for path in [*_indexes_above(folder.root), *own, *closed]:
        try:
            table = read_table(path, label=INDEX)
        except CohortError as fault:
            _leave_untold(listed, path, fault, folder=folder, ledger=ledger)
            continue
        column = _first_of(_PATH_COLUMNS, table.columns)
        if column and _first_of(SUBJECT_COLUMNS, table.columns):
            _take_rows(listed, path, table, rooms=rooms, column=column, ledger=ledger)
        elif path in own:
            lack = CohortError(
                f"the table {INDEX} lacks the column {'subject' if column else 'path'}",
                fix="name each file in path and its patient in subject, or remove the table",
            )
            _leave_untold(listed, path, lack, folder=folder, ledger=ledger)
    return listed


def _leave_untold(
    listed: Listed, table: Path, fault: CohortError, *, folder: Folder, ledger: Ledger
) -> None:
    """Believe nothing of what lies below a table; raise CohortError where that is all there is."""
    home = table.parent
    if home == folder.root or not home.is_relative_to(folder.root):
        told = "it tells whose the images are, and that is not guessed"
        raise CohortError(
            fault.what, why=f"{fault.why}; {told}" if fault.why else told, fix=fault.fix
        ) from None
    listed.untold[home] = UNTOLD
    if table not in folder.closed:  # which the walk has told
        ledger.leave([table], BROKEN_TABLE)


def _indexes_above(root: Path) -> list[Path]:
    """Return the indexes of the two folders above, the nearest last.

    One without the columns of an index is about something else. One that cannot be read at all is
    returned, and will be refused, when it lies directly above: patients could be lost with it.
    """
    found = []
    for distance, home in enumerate(root.resolve().parents[:2]):
        columns = set(peek_columns(home / INDEX))
        is_index = columns & set(_PATH_COLUMNS) and columns & set(SUBJECT_COLUMNS)
        is_damaged = distance == 0 and not columns and is_there(home / INDEX)
        if is_index or is_damaged:
            found.append(home / INDEX)
    return found[::-1]


def list_tables(folder: Folder, ledger: Ledger, *, listed: Listed) -> None:
    """Add what the other tables that name images say of them.

    Such a table has a column of files, and says something besides: the patient, the visit, a
    covariate or a label. One that cannot be read leaves out what lies below it, and raises
    CohortError where that is the whole folder. Below one of which nothing is known, since it is
    empty or no text, and below one that names patients for files that are not here, no file
    counts as a patient of its own.
    """
    rooms = _Rooms(folder)
    for path in [*folder.tables, *folder.closed]:
        if path.name.lower() in {INDEX, PARTICIPANTS} or SESSIONS.fullmatch(path.name):
            continue
        columns = peek_columns(path)
        candidates = [name for name in _IMAGE_COLUMNS if name in columns]
        if not columns:
            listed.doubted.setdefault(path.parent, MAYBE_UNTOLD)
            if path not in folder.closed:
                ledger.leave([path], BROKEN_TABLE)
        elif candidates and FACT_COLUMNS.intersection(columns):
            try:
                table = read_table(path)
            except CohortError as fault:
                _leave_untold(listed, path, fault, folder=folder, ledger=ledger)
                continue
            told = _take_columns(
                listed, path, table, rooms=rooms, columns=candidates, ledger=ledger
            )
            if told == "absent" and _first_of(SUBJECT_COLUMNS, columns):
                listed.doubted.setdefault(path.parent, ELSEWHERE)


def is_there(path: Path) -> bool:
    """Return whether a file lies there; False where the folder may not be looked into."""
    try:
        return path.is_file()
    except OSError:
        return False


def _take_columns(
    listed: Listed,
    path: Path,
    table: Table,
    *,
    rooms: _Rooms,
    columns: Iterable[str],
    ledger: Ledger,
) -> _Taken:
    """Take in what the rows say by the first of some columns that names images."""
    taken: set[_Taken] = set()
    for column in columns:
        taken.add(_take_rows(listed, path, table, rooms=rooms, column=column, ledger=ledger))
        if "images" in taken:
            break
    return next((each for each in get_args(_Taken) if each in taken), "nothing")


def _take_rows(
    listed: Listed, path: Path, table: Table, *, rooms: _Rooms, column: str, ledger: Ledger
) -> _Taken:
    """Take in what the rows of a table say of images; return which files its cells name."""
    reader = FactReader(table, ledger)
    room = rooms.of(path)
    subject = _first_of(SUBJECT_COLUMNS, table.columns)
    absent = 0
    taken: _Taken = "nothing"
    for row in table.rows():
        cell = row.cells.get(column, "")
        hit = room.find(cell, row.cells.get(subject, "")) if is_said(cell) else _ABSENT
        absent += hit.is_absent
        if hit.paths:
            taken = "images"
            facts = Facts(refused=AMBIGUOUS) if hit.is_ambiguous else reader.read(row)
            for image in hit.paths:
                listed.add(image, facts)
        elif taken not in {"images", "others"} and is_said(cell):
            taken = "others" if hit.is_other else "absent"
    if taken == "images":
        listed.used.append(path)
        ledger.count("rows of tables that name no file here", absent)
    return taken


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
    is_other: bool = False
    """Whether it names a file of the folder that is no image for the recipe."""


_ABSENT = _Hit(is_absent=True)
_OUTSIDE = _Hit()
_OTHER = _Hit(is_other=True)


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
            return _OTHER if inside else _OUTSIDE
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
