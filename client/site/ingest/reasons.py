"""Reasons, as a table shows them: one clause without a name, a path or a value of a patient.

None leaves the site: ``class_of_reason`` is all that is told of one.
"""

from __future__ import annotations

from typing import Final, Literal

from vitrael.core.data.sources import LeftOut
from vitrael.core.errors import VitraelError

ReasonClass = Literal[
    "withdrawn",
    "same image as another",
    "another image of its visit",
    "not of this recipe",
    "no patient or visit known",
    "parts missing",
    "burned-in text",
    "not readable",
    "not usable",
]
_REASONS: Final[tuple[tuple[str, ReasonClass], ...]] = (
    ("withdrawn", "withdrawn"),
    ("same image", "same image as another"),
    ("visit has another", "another image of its visit"),
    ("missing", "parts missing"),
    ("lacks", "parts missing"),
    ("burned", "burned-in text"),
    ("no patient", "no patient or visit known"),
    ("cannot be read", "not readable"),
    ("cannot be opened", "not readable"),
    ("cannot be decoded", "not readable"),
    ("damaged", "not readable"),
    ("cut short", "not readable"),
    ("is empty", "not readable"),
)
"""Words of a reason with their class; the first that is found decides."""


def clause(error: VitraelError) -> str:
    """Return what an error says, and why, without its advice."""
    return f"{error.what}: {error.why}" if error.why else error.what


def class_of_reason(left: LeftOut) -> ReasonClass:
    """Return the class of what was left out: no text that a reason has is told."""
    for word, reason in _REASONS:
        if word in left.reason:
            return reason
    return "not of this recipe" if left.expected else "not usable"
