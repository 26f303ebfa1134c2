"""What ``participants.json`` and its like say of the columns of a BIDS table: codes and units.

A site may write 1 for female, or ages in months; where it says so, that stands.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrael.core.data.layouts.facts import AGE_COLUMNS, SEX_COLUMNS, is_age, word_for_sex
from vitrael.core.data.tables import column_name

_MOST_BYTES = 1 << 20
_NUMBER = re.compile(r"\d+([.,]\d+)?")
_LETTERS = re.compile(r"[^\W\d_]+")

About = Mapping[str, Mapping[str, Any]]
"""By the names of columns; what stands there was parsed and not checked."""


def read_sidecar(table: Path) -> About:
    """Return what the file beside a table says; nothing where it is missing or no such file."""
    try:
        with table.with_suffix(".json").open("rb") as file:
            document = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    columns = document.items() if isinstance(document, dict) else ()
    return {column_name(name): said for name, said in columns if isinstance(said, dict)}


def in_words(cells: Mapping[str, str], about: About) -> dict[str, str]:
    """Return the cells of a row with sex as a word and age with its unit, where they are told.

    A code that the list of codes does not have, or whose meaning is neither of the two, is *none*;
    an age whose unit is not understood is none that can be read.
    """
    told = dict(cells)
    for name in SEX_COLUMNS & told.keys() & about.keys():
        levels = about[name].get("Levels")
        if isinstance(levels, dict) and levels and not word_for_sex(told[name]):
            meaning = levels.get(told[name])
            text = meaning.get("Description") if isinstance(meaning, dict) else meaning
            words = {word_for_sex(word) for word in _LETTERS.findall(str(text))} - {""}
            told[name] = words.pop() if len(words) == 1 else "none"
    for name in AGE_COLUMNS & told.keys() & about.keys():
        unit = about[name].get("Units")
        if isinstance(unit, str) and unit and _NUMBER.fullmatch(told[name]):
            known = (word for word in _LETTERS.findall(unit) if is_age(f"1 {word}"))
            told[name] += f" {next(known, 'of an unknown unit')}"
    return told
