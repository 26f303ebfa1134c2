"""What the end of a file's name says of it: which kind of image, a table, or nothing of use.

A name that says nothing is left to the DICOM reader: DICOM files often have no ending at all.
"""

from __future__ import annotations

import re
from typing import Literal

Taken = Literal["volume", "clip", "picture"]
"""What a recipe may take."""

_ENDINGS: dict[Taken, tuple[str, ...]] = {
    "volume": (".nii", ".nii.gz"),
    "clip": (".avi", ".mp4", ".mpeg", ".mpg", ".mov", ".mkv"),
    "picture": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
}
_TABLES = (".csv", ".tsv")
_UNREAD: dict[Taken, tuple[str, ...]] = {
    "volume": (".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".mnc"),
    "clip": (".wmv", ".webm", ".m4v", ".flv", ".gif"),
    "picture": (".gif", ".webp", ".heic", ".svg", ".jp2"),
}
_ALL_IMAGES = tuple(
    ending for group in (_ENDINGS, _UNREAD) for endings in group.values() for ending in endings
)
_OTHERS: tuple[tuple[tuple[str, ...], str, bool], ...] = (
    ((".npz", ".npy", ".h5", ".hdf5", ".mat", ".pt"), "a file of arrays, which is not read", True),
    ((".xlsx", ".xls", ".ods"), "a spreadsheet, which is not read: save it as CSV", True),
    ((".txt", ".md", ".rst", ".json", ".xml", ".html", ".pdf", ".doc", ".docx"), "a text", True),
    ((".yaml", ".yml", ".toml", ".ini", ".cff", ".bib", ".bval", ".bvec"), "a text", True),
    ((".log", ".py", ".sh", ".sha256", ".md5"), "a text", True),
    ((".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".bz2", ".xz"), "a packed archive", False),
    ((".db", ".lnk", ".tmp", ".bak", ".sqlite"), "a file of a program", True),
)
"""Endings, why such a file is left out, and whether that is to be expected."""
_TITLES = {"readme", "license", "licence", "changes", "changelog", "authors", "copying", "notice"}

PLURALS: dict[Taken, str] = {"volume": "volumes", "clip": "clips", "picture": "pictures"}


def is_taken(name: str, taken: Taken) -> bool:
    """Return whether a file's name ends like an image of a kind."""
    return name.lower().endswith(_ENDINGS[taken])


def is_table(name: str) -> bool:
    """Return whether a file's name ends like a table."""
    return name.lower().endswith(_TABLES)


def image_stem(name: str) -> str:
    """Return the name of an image file without the ending that tells its kind."""
    endings = [ending for group in _ENDINGS.values() for ending in group]
    best = max((e for e in endings if name.lower().endswith(e)), key=len, default="")
    return name[: len(name) - len(best)]


def image_ending(name: str) -> str:
    """Return the ending that tells an image's kind, in lower case; empty when it tells none."""
    return name[len(image_stem(name)) :].lower()


def judge_other(name: str, taken: Taken) -> tuple[str, bool] | None:
    """Return why a file is no image that a recipe takes, and whether that is to be expected.

    None when its name does not tell: then it may be a DICOM file.
    """
    low = name.lower()
    if low.endswith(_UNREAD[taken]):
        return f"the format *{_ending(low)} is not read", False
    if low.endswith(_ALL_IMAGES):
        return f"the recipe takes {PLURALS[taken]}", True
    if low in _TITLES:
        return "a text", True
    told = [(reason, expected) for endings, reason, expected in _OTHERS if low.endswith(endings)]
    return told[0] if told else None


def _ending(name: str) -> str:
    found = re.search(r"\.[a-z0-9]{1,5}$", name)
    return found[0] if found else ""
