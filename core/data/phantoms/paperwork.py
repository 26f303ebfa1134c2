"""The tables of a made-up hospital, as text: written, and read back to be written anew."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_rows(path: Path, rows: Iterable[Sequence[object]], *, separator: str = ",") -> None:
    """Write a table, the header first; lines end as on Unix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows)


def read_rows(path: Path) -> list[list[str]]:
    """Return a table of ours, the header first; tabs part the columns of a ``.tsv``."""
    separator = "\t" if path.suffix == ".tsv" else ","
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), delimiter=separator))


def write_json(path: Path, value: object) -> None:
    """Write a JSON document for people to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
