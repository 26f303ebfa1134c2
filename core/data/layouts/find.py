"""What a folder holds for one recipe, told from names and tables; no image is opened.

Every file ends in exactly one place: in a source, among the tables that were used, among those
left out with a reason, or among those that only a DICOM reader can judge.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from vitrael.core.data.layouts.kinds import is_table, is_taken, judge_other
from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.layouts.planes import find_planes
from vitrael.core.data.layouts.rows import Folder
from vitrael.core.data.layouts.volumes import find_volumes
from vitrael.core.data.recipes import Recipe
from vitrael.core.data.sources import Found
from vitrael.core.data.walk import HIDDEN, SPECIAL, FoundFile

UNUSED_TABLE = "a table that is not used"
ALIKE = "patients whose name is another's but for capitals or zeros, each taken as one of its own"

_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


def find_sources(root: Path, files: Iterable[FoundFile], *, recipe: Recipe) -> Found:
    """Return what the files below ``root``, as ``walk_files`` tells them, are to a recipe.

    Raises CohortError for a table of the whole folder that cannot be read or lacks a column, when
    it could tell whose the images are, and when that is not clear. A folder without images gives
    no sources, and no error.
    """
    ledger = Ledger()
    images: list[Path] = []
    tables: list[Path] = []
    rest: list[Path] = []
    others: list[Path] = []
    closed: list[Path] = []
    for file in files:
        name = file.path.name
        if file.refusal == HIDDEN:
            ledger.count("hidden files and folders, skipped")
        elif file.refusal:
            ledger.leave([file.path], file.refusal, expected=file.refusal == SPECIAL)
            if is_table(name):
                closed.append(file.path)
        elif is_taken(name, recipe.takes):
            images.append(file.path)
        elif is_table(name):
            tables.append(file.path)
        elif judged := judge_other(name, recipe.takes):
            ledger.leave([file.path], judged[0], expected=judged[1])
            others.append(file.path)
        else:
            rest.append(file.path)
    folder = Folder(
        root=root,
        images=tuple(images),
        tables=tuple(tables),
        others=frozenset([*others, *tables, *rest]),
        closed=tuple(closed),
    )
    find = find_volumes if recipe.takes == "volume" else find_planes
    sources, used = find(folder, recipe, ledger) if images else ([], [])
    told = {path for left in ledger.left_out for path in left.paths}
    for path in tables:
        if path not in used and path not in told:
            ledger.leave([path], UNUSED_TABLE, expected=True)
    ledger.count(ALIKE, _count_alike({source.subject for source in sources}))
    return Found(
        sources=tuple(sources),
        left_out=ledger.left_out,
        tables=tuple(dict.fromkeys(used)),
        rest=tuple(rest),
        notes=ledger.notes,
    )


def _count_alike(subjects: set[str]) -> int:
    """Return how many names may be another spelling of one of the others."""
    spellings = Counter(_ZEROS.sub("", subject.casefold()) for subject in subjects)
    return sum(count for count in spellings.values() if count > 1)
