"""What was found: sources, each of which may become one item, and what is left out with its reason.

A Source still holds the site's own names and paths. It lives in memory only: whatever is written
holds pseudonyms and keyed hashes instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

Kind = Literal["dicom", "nifti", "video", "picture"]


@dataclass(frozen=True, slots=True, repr=False)
class Source:
    """The files of one image (or one set of contrasts) of one visit of one patient."""

    kind: Kind
    subject: str
    """As the site calls the patient."""
    session: str
    """As the site calls the visit; numbers sort as numbers. Visits with a date sort by it."""
    images: Mapping[str, tuple[Path, ...]]
    """By BIDS suffix or ``image``; a DICOM series has one path for each instance, in order."""
    masks: Mapping[str, Path] = field(default_factory=dict)
    """``brain`` and ``lesion``."""
    part: str = ""
    """Tells several images of one visit apart, and orders them."""
    taken: date | None = None
    covariates: Mapping[str, float] = field(default_factory=dict)
    """Keys of ``manifest.COVARIATE_BOUNDS``; what is not known is absent."""
    labels: Mapping[str, str] = field(default_factory=dict)
    site: str = ""
    """That an index or the first folder names; only a rehearsal, which parts a folder, uses it."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return f"Source({self.kind})"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it rests on, each once."""
        paths = [path for group in self.images.values() for path in group]
        return tuple(dict.fromkeys([*paths, *self.masks.values()]))


@dataclass(frozen=True, slots=True, repr=False)
class LeftOut:
    """Files that become no item, and why."""

    paths: tuple[Path, ...]
    reason: str
    """One clause without a name, a path or a value of a patient."""
    expected: bool = False
    """True for what is no image of the recipe's kind (a table, a license, a mask that is used
    elsewhere): told, but the intake is not partial because of it."""

    def __repr__(self) -> str:
        """Show the reason alone."""
        return f"LeftOut({self.reason!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Found:
    """All that a folder holds; every file of it stands in exactly one of the four places."""

    sources: tuple[Source, ...] = ()
    """In the order of the sorted paths of their first image."""
    left_out: tuple[LeftOut, ...] = ()
    tables: tuple[Path, ...] = ()
    """The tables that were used; one may lie in the folder above."""
    rest: tuple[Path, ...] = ()
    """Files that only a DICOM reader can judge."""
    notes: tuple[str, ...] = ()
    """What an operator should know of the whole: counts and assumptions, no value of a patient."""

    def __repr__(self) -> str:
        """Show counts alone."""
        return f"Found({len(self.sources)} sources, {len(self.rest)} files for DICOM)"
