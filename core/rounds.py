"""How the rounds of a study go: who must answer, for how long, and what becomes of updates."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from vitrael.core.configs import Section

LONGEST_DEADLINE_S: Final = 7 * 86_400.0
"""A week: no site trains longer without a word, and nobody waits longer for one."""

Aggregation = Literal["weighted_mean", "trimmed_mean", "median"]

_LEAST_ROBUST: Final = 3


def _specifier(value: str) -> str:
    if value:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - 40 ms

        try:
            SpecifierSet(value)
        except InvalidSpecifier:
            msg = "it is no list of versions, such as ==0.1.*"
            raise ValueError(msg) from None
    return value


class Federation(Section):
    """Who must answer, for how long the coordinator waits, and how it makes one of many updates."""

    quorum: int = Field(ge=1, description="results without which a round fails")
    deadline_s: float = Field(
        default=600,
        gt=0,
        le=LONGEST_DEADLINE_S,
        description="for one exchange with a site; the longest, where its canary tells a shorter",
    )
    software: Annotated[str, AfterValidator(_specifier)] = Field(
        default="", description="versions of the package that may take part (PEP 440); empty: any"
    )
    aggregation: Aggregation = Field(
        default="weighted_mean", description="the others stand a minority of hostile sites"
    )
    trim_frac: float = Field(
        default=0.2,
        gt=0,
        lt=0.5,
        description="of the updates, left out at each end of a trimmed mean",
    )
    norm_bound: float = Field(
        default=10,
        ge=1,
        description="times the median of the updates' distances from the round's start, "
        "of two the smaller",
    )
    outliers: Literal["bound", "refuse"] = Field(
        default="bound", description="what becomes of an update that is farther away"
    )
    most_weight: float = Field(
        default=1, gt=0, le=1, description="largest share of one site in a weighted mean"
    )

    @model_validator(mode="after")
    def _robust_with_three(self) -> Self:
        if self.aggregation != "weighted_mean" and self.quorum < _LEAST_ROBUST:
            msg = f"{self.aggregation} can leave out none of fewer than {_LEAST_ROBUST} updates, "
            msg += "so that quorum must not be smaller"
            raise ValueError(msg)
        return self

    def admits(self, version: str) -> bool:
        """Return whether this version of the package may take part; what is none may not."""
        if not self.software:
            return True
        from packaging.specifiers import SpecifierSet  # noqa: PLC0415 - 40 ms
        from packaging.version import InvalidVersion, Version  # noqa: PLC0415

        try:
            return SpecifierSet(self.software).contains(Version(version), prereleases=True)
        except InvalidVersion:
            return False
