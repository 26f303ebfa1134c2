"""What an audit of two folders found: one document, which is written as JSON and shown as a page.

It names files of the one who asked, and is for that person's eyes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from pydantic import Field

from vitrael.core.configs import Section
from vitrael.core.errors import EXIT_OK, EXIT_PARTIAL, EXIT_REFUSED
from vitrael.privacy.evidence import Measurement

FORMAT: Final = "vitrael-audit-folder/1"

Outcome = Literal["reached", "not reached", "not estimable", "reported"]


class RefusedFile(Section):
    """A file that should have been an image of the audit."""

    file: str
    """Below the folder; of a DICOM series its first."""
    reason: str


class FolderFacts(Section):
    """What one folder held."""

    images: int
    patients: int
    told: tuple[str, ...]
    refused: dict[str, int]
    """Images that could not be used, by their reason."""
    refused_files: tuple[RefusedFile, ...] = ()
    """Each of them, by name."""
    left_out: dict[str, int]
    """Other files, by their reason."""


class SameFile(Section):
    """A synthetic file that is a real one."""

    real: str
    synthetic: str
    how: Literal["bytes", "content"]
    """``content``: the decoded values are equal, the file was written anew."""


class Conspicuous(Section):
    """A synthetic image that comes nearer to a real patient than the null allows."""

    synthetic: str
    real: str = ""
    """The real image that the filter finds most like it, which need not be the nearest by plain
    distance; empty where there were too many to ask."""
    members: tuple[str, ...]
    score: float
    """The largest of the members, in spreads of the null."""


class PlantOutcome(Section):
    """How many planted copies of one class were caught."""

    name: str
    says: str
    must: bool
    demanded: float | None
    takes: int | None = None
    """Plants that show what is demanded when all are caught: with fewer it is not estimable."""
    caught: Measurement
    outcome: Outcome


class NegativeOutcome(Section):
    """How many images of nobody's were dropped all the same."""

    name: str
    says: str
    dropped: Measurement
    most: float
    outcome: Literal["within", "above", "not estimable"]
    """``above``: even the lower bound lies above what is allowed."""


class Subgroup(Section):
    """Must-catch plants of the patients of one kind."""

    name: str
    caught: Measurement


class Certificate(Section):
    """The power of the filter, measured by planted copies of the real images themselves."""

    plants: tuple[PlantOutcome, ...] = ()
    negatives: tuple[NegativeOutcome, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    agreement: Measurement
    """Share of images whose vote changed between mixtures of 1 % and of 40 % plants."""
    not_made: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Classes that this audit cannot make, by the reason."""


class Filter(Section):
    """The filter as it was calibrated, before plants were made or a synthetic image was judged."""

    calibrated: bool
    reason: str = ""
    """Why not."""
    rate: float
    patients: int
    """Of the null."""
    threshold: float | None = None
    """In spreads of the null."""
    knows_visits: bool = False
    notes: tuple[str, ...] = ()


class Distances(Section):
    """Nearest-neighbor distances of a kind, by their quantiles."""

    n: int
    least: float
    p05: float
    median: float
    p95: float


class Neighbor(Section):
    """The real image at the least plain distance from a synthetic one."""

    synthetic: str
    real: str
    distance: float


class Neighbors(Section):
    """How near synthetic images lie to real ones, and strangers to each other."""

    synthetic_to_real: Distances
    stranger_to_stranger: Distances
    nearer_share: float
    """How often a synthetic image lies nearer to a real patient than a stranger does; 0.5: as
    often as not."""
    each: tuple[Neighbor, ...]


class Findings(Section):
    """All of it."""

    format: Literal["vitrael-audit-folder/1"] = FORMAT
    version: str
    kind: Literal["picture", "clip", "volume"]
    grid: tuple[int, int, int]
    seed: int
    images_budget: int
    plants: int | None = None
    """Patients who were copied in each class, at most; None in findings of before it was told."""
    real: FolderFacts
    synthetic: FolderFacts
    notes: tuple[str, ...]
    same_files: tuple[SameFile, ...]
    shared_patients: int
    filter: Filter
    conspicuous: tuple[Conspicuous, ...]
    conspicuous_share: Measurement
    chance: float | None
    """How likely as many or more are conspicuous when nothing was copied."""
    certificate: Certificate
    neighbors: Neighbors | None
    found: tuple[str, ...]
    not_estimated: tuple[str, ...]
    not_claimed: tuple[str, ...]
    seconds: dict[str, float]
    """Wall time of each step: the one part that differs between equal runs."""

    @property
    def copies_found(self) -> bool:
        """Whether there are copies, or more conspicuous images than chance explains."""
        return bool(self.same_files) or (self.chance is not None and self.chance <= CHANCE)

    @property
    def exit_code(self) -> int:
        """The exit code of the command: 6 copies, 7 an incomplete audit, 0 neither."""
        if self.copies_found:
            return EXIT_REFUSED
        return EXIT_PARTIAL if self.gaps else EXIT_OK

    @property
    def gaps(self) -> tuple[str, ...]:
        """Why the audit is incomplete, each in one clause."""
        gaps = []
        if self.real.refused or self.synthetic.refused:
            gaps.append("files were refused")
        if not self.filter.calibrated:
            gaps.append("disguised copies could not be looked for")
        elif self._powerless:
            gaps.append("the filter is not shown to catch any class that must be caught")
        elif self._missed:
            gaps.append(
                f"the filter is not shown to catch {_say(self._missed)}, which must be caught"
            )
        return tuple(gaps)

    @property
    def _powerless(self) -> bool:
        """Whether no class that must be caught is reached: then finding none says nothing."""
        must = [plant.outcome for plant in self.certificate.plants if plant.must]
        return "reached" not in must

    @property
    def _missed(self) -> tuple[str, ...]:
        """The classes that must be caught, could be judged, and are not reached."""
        plants = self.certificate.plants
        return tuple(one.says for one in plants if one.must and one.outcome == "not reached")


_NAMED: Final = 3
CHANCE: Final = 0.05
"""Probability below which as many conspicuous images are no chance."""


def _say(kinds: Sequence[str]) -> str:
    """Return the first kinds, and how many more there are."""
    more = f", and {len(kinds) - _NAMED} more kinds" if len(kinds) > _NAMED else ""
    return f"{', '.join(kinds[:_NAMED])}{more}"
