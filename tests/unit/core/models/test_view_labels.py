"""A site's words are the study's, or are mapped by it, or are refused."""

from __future__ import annotations

import pytest

from vitrael.core.errors import DataError
from vitrael.core.models.view_labels import translate_labels

VIEWS = ("A4C", "A2C", "PLAX")


def translate(labels: tuple[str, ...], **synonyms: str) -> tuple[str, ...]:
    return translate_labels(labels, site="north", views=VIEWS, synonyms=synonyms)


def test_own_words_are_mapped_and_the_order_is_kept() -> None:
    assert translate(("long-axis", "A4C"), **{"long-axis": "PLAX"}) == ("PLAX", "A4C")


def test_word_of_the_study_that_a_site_uses_otherwise_is_mapped_too() -> None:
    assert translate(("A2C", "PLAX"), A2C="A4C") == ("A4C", "PLAX")


def test_label_that_is_not_mapped_is_refused() -> None:
    with pytest.raises(DataError, match="does not map"):
        translate(("A4C", "four-chamber"))


def test_map_to_an_unknown_view_is_refused() -> None:
    with pytest.raises(DataError, match="view that it does not know"):
        translate(("A4C",), old="PSAX")


def test_two_labels_for_one_view_are_refused() -> None:
    with pytest.raises(DataError, match="two labels of north mean A4C"):
        translate(("A4C", "four-chamber"), **{"four-chamber": "A4C"})
