"""Sentences that may be shown: one line of printable text, whoever wrote it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def one_line(text: str, longest: int) -> str:
    """Return at most ``longest`` characters of a text, a blank for each that cannot be printed.

    Line breaks, escape sequences and marks that turn the direction of writing are such characters:
    whoever shows the line shows one line, and no terminal obeys it.
    """
    return "".join(sign if sign.isprintable() else " " for sign in text[:longest])


def _sentence(value: str) -> str:
    if not value.isprintable():
        msg = "it holds a character that cannot be printed"
        raise ValueError(msg)
    return value


Sentence = Annotated[str, AfterValidator(_sentence)]
"""One line of printable text; how long it may be is the field's to say."""
