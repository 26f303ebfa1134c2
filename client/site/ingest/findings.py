"""What the checks over a cohort find, and how it is said.

A sentence tells what there is and what to do. It names no patient and no file; ``items`` are
places in the manifest, for the site's own report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from vitrael.core.configs import Section
from vitrael.core.data.manifest import Item

if TYPE_CHECKING:
    from vitrael.client.site.ingest.facts import ItemFacts  # which loads readers of images

Check = Literal[
    "few-patients",
    "empty-splits",
    "missing-covariates",
    "missing-spacing",
    "cut-brain",
    "spacing",
    "orientation",
    "extent",
    "frames",
    "intensity",
    "changed-facts",
    "copies",
    "same-image",
    "alike-strangers",
    "mirrored",
    "repeated",
    "changed-anatomy",
]
Severity = Literal["note", "warning", "problem"]

COVARIATE_WORDS: Final[Mapping[str, str]] = {
    "age_years": "age",
    "sex": "sex",
    "ventricle_ml": "ventricle volume",
    "brain_ml": "brain volume",
    "lesion_ml": "lesion volume",
    "ef_frac": "ejection fraction",
    "esv_ml": "end-systolic volume",
    "edv_ml": "end-diastolic volume",
}
"""What the covariates of ``manifest.COVARIATE_BOUNDS`` are called in a sentence."""


class Entry(NamedTuple):
    """An item of the manifest with what was measured on it; private."""

    item: Item
    facts: ItemFacts


class Finding(Section):
    """What one check found; private."""

    check: Check
    severity: Severity
    count: int
    """Of items, unless the sentence says otherwise."""
    sentence: str
    items: tuple[int, ...] = ()
    """Places in the manifest."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Places of two items that are alike; each item stands with the one that it is most like."""

    def __repr__(self) -> str:
        """Show the kind, nothing of a patient."""
        return f"Finding({self.check})"

    __str__ = __repr__


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun in the singular or plural."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def have(counted: Sized) -> str:
    """Return the verb that agrees with what was counted."""
    return "has" if len(counted) == 1 else "have"


def list_words(words: Sequence[str]) -> str:
    """Return words as a list within a sentence."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def say_lack(lacking: Sized, images: Sized, *, what: str) -> str:
    """Return ``3 of 40 images have no age``, ``None of the 40 images has an age``, or the like."""
    if len(images) == 1:
        return f"The only image has no {what}"
    many = number_of(len(images), "image")
    if len(lacking) == len(images):
        article = "an" if what[0] in "aeiou" else "a"
        return f"None of the {many} has {article} {what}"
    return f"{len(lacking):,} of {many} {have(lacking)} no {what}"
