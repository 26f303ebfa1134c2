"""What a folder holds for one recipe, told from names and tables; no image is opened.

Every file ends in exactly one place: in a source, among the tables that were used, among those
left out with a reason, or among those that only a DICOM reader can judge.
"""

from __future__ import annotations

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


def find_sources(root: Path, files: Iterable[FoundFile], *, recipe: Recipe) -> Found:
    """Return what the files below ``root``, as ``walk_files`` tells them, are to a recipe.

    Raises CohortError for a table that cannot be read or lacks a column, and when it is not clear
    whose an image is. A folder without images gives no sources, and no error.
    """
    ledger = Ledger()
    images: list[Path] = []
    tables: list[Path] = []
    rest: list[Path] = []
    others: list[Path] = []
    for file in files:
        name = file.path.name
        if file.refusal == HIDDEN:
            ledger.count("hidden files and folders, skipped")
        elif file.refusal:
            ledger.leave([file.path], file.refusal, expected=file.refusal == SPECIAL)
        elif is_taken(name, recipe.takes):
            images.append(file.path)
        elif is_table(name):
            tables.append(file.path)
        elif judged := judge_other(name, recipe.takes):
            ledger.leave([file.path], judged[0], expected=judged[1])
            others.append(file.path)
        else:
            rest.append(file.path)
    folder = Folder(root, tuple(images), tuple(tables), frozenset([*others, *tables, *rest]))
    find = find_volumes if recipe.takes == "volume" else find_planes
    sources, used = find(folder, recipe, ledger) if images else ([], [])
    for path in tables:
        if path not in used:
            ledger.leave([path], UNUSED_TABLE, expected=True)
    return Found(
        sources=tuple(sources),
        left_out=ledger.left_out,
        tables=tuple(dict.fromkeys(used)),
        rest=tuple(rest),
        notes=ledger.notes,
    )
