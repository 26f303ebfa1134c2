"""What a report says, as one frozen document: every number that the page shows stands here.

Nothing in it is about one patient. How many patients a site trained with is a bucket, and fewer
than eleven are not told more exactly. The n of a measurement, over all sites together
or of the smallest one, is exact: without it no interval could be checked.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal, Self

from pydantic import AwareDatetime, Field, field_validator, model_validator

from vitrael.core.configs import Section
from vitrael.core.digest import Digest
from vitrael.core.protocols import Name
from vitrael.core.study import Study
from vitrael.privacy.audit.arms import Comparison
from vitrael.privacy.evidence import Evidence, Measurement
from vitrael.privacy.gates import POLICIES, Verdict
from vitrael.privacy.leakage import BUCKETS, bucket_of

SCHEMA: Final = "vitrael.report/1"


class StudySummary(Section):
    """The frozen study in the words of its document."""

    name: str
    version: int
    purpose: str
    study: Digest
    protocol: Digest
    path: Literal["dp", "empirical"]
    policy: str
    policy_title: str
    recipe: str
    grid_vox: tuple[int, int, int]
    spacing_mm: float
    rounds: dict[str, int]
    """Stage to its number of federated rounds."""
    target: int
    """Kept candidates from which the student learns."""
    released: int
    seed: int


class SiteSummary(Section):
    """One site of the roster."""

    name: Name
    status: str
    """Such as "took part to the end", or why not."""
    training_patients: str
    """The name of a bucket of ``privacy.leakage``."""
    consented_utc: AwareDatetime | None = None

    @field_validator("training_patients")
    @classmethod
    def _no_count(cls, name: str) -> str:
        if name not in {bucket.name for bucket in BUCKETS}:
            msg = "the number of patients is no bucket"
            raise ValueError(msg)
        return name


class StageSummary(Section):
    """One attempt at a stage."""

    stage: str
    round: int = Field(ge=1)
    status: Literal["running", "finished", "failed"]
    started_utc: AwareDatetime
    seconds: float | None = Field(default=None, ge=0)
    participants: tuple[str, ...] = ()
    output: Digest | None = None
    reason: str = ""


class Curve(Section):
    """One diagram: named lines over a common axis."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, tuple[tuple[float, float], ...]]
    """Line name to (x, y) in the order of x."""


class Conditioning(Section):
    """Whether the samples have the ventricle volume that was asked for."""

    ceiling: Measurement
    """The same correlation for phantoms or scans that only passed through the autoencoder."""
    asked_measured: Measurement
    permuted: Measurement
    difference: Measurement
    """Mean of measured minus asked, in milliliters: what a correlation does not tell."""
    asked_ml: tuple[float, ...]
    measured_ml: tuple[float, ...]
    """Of the same released samples, in the same order."""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.asked_ml) != len(self.measured_ml):
            msg = "asked and measured volumes are not pairs"
            raise ValueError(msg)
        return self


class SiteVote(Section):
    """How many images one site was shown, in all rounds of a screening, and how many it kept."""

    site: Name
    asked: int = Field(ge=0)
    kept: int | None = Field(ge=0)
    """None where the images are too few for it to be told."""
    judged: bool
    """Whether it had a filter to judge with; without one it drops nothing."""


class Screening(Section):
    """What the sites left of candidates, or of samples: kept is what every site kept."""

    asked: int = Field(ge=0)
    kept: int = Field(ge=0)
    share: float = Field(ge=0, le=1)
    rounds: int = Field(ge=1)
    votes: tuple[SiteVote, ...]
    subgroups: tuple[Measurement, ...] = ()
    """The share that was kept of each sex and band of age."""
    shifted: tuple[str, ...] = ()
    """Those that are not shown to be kept as often as all."""


class SitePlants(Section):
    """How many planted copies of each class one site showed its filter, and how many it caught."""

    site: Name
    planted: dict[str, int]
    caught: dict[str, int]


class SiteRound(Section):
    """What one site did in one round; of one that was absent nothing but that it was asked."""

    stage: str
    """With the round's number, such as ``codec 2``."""
    site: Name
    answered: bool
    examples: str = ""
    """The name of a bucket of ``privacy.leakage``; empty where none were counted."""
    weight: float | None = Field(default=None, ge=0, le=1)
    """Its share in the mean, in tenths."""
    seconds: float | None = Field(default=None, ge=0)
    size_bytes: int | None = Field(default=None, ge=0)


class Event(Section):
    """One line of the participation record."""

    utc: AwareDatetime
    site: str
    event: str


class ReportData(Section):
    """The whole report, without its pictures."""

    title: str
    created_utc: AwareDatetime
    release: str
    """``name@version``."""
    volumes: int = Field(ge=0)
    """Released synthetic volumes."""
    unscreened: bool = False
    """Whether candidates or samples could not be judged against the sites' own scans."""
    unscreened_reason: str = ""
    """Why not, in words of ours; empty when they were judged."""
    screening: Screening | None = None
    """Of the candidates; None when the stage did not finish."""
    rescreening: Screening | None = None
    """Of the samples."""
    study: StudySummary
    sites: tuple[SiteSummary, ...]
    verdict: Verdict
    evidence: Evidence
    plants: tuple[SitePlants, ...] = ()
    """One for each site that was audited."""
    arms: Comparison | None = None
    """Teacher, random filter and student; None where the protocol compares none."""
    conditioning: Conditioning | None = None
    curves: tuple[Curve, ...] = ()
    stages: tuple[StageSummary, ...] = ()
    rounds: tuple[SiteRound, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def is_rehearsal(self) -> bool:
        """Whether the policy allows no publication; an unknown policy allows none."""
        policy = POLICIES.get(self.verdict.policy)
        return policy is None or not policy.publishable


def summarize_study(study: Study) -> StudySummary:
    """Return what the report tells of a study."""
    protocol = study.synthesis
    policy = POLICIES.get(protocol.policy)
    return StudySummary(
        name=protocol.name,
        version=protocol.version,
        purpose=protocol.purpose,
        study=study.digest,
        protocol=protocol.digest,
        path=protocol.path,
        policy=protocol.policy,
        policy_title=policy.title if policy else protocol.policy,
        recipe=protocol.data.recipe,
        grid_vox=protocol.data.grid_vox,
        spacing_mm=protocol.data.spacing_mm,
        rounds=protocol.rounds(sites=len(study.roster.sites)),
        target=protocol.distillation.target,
        released=protocol.distillation.released,
        seed=protocol.seed,
    )


def summarize_site(
    name: str, *, training_patients: int, status: str, consented_utc: datetime | None = None
) -> SiteSummary:
    """Return what the report tells of a site; the count of patients becomes a bucket here."""
    return SiteSummary(
        name=name,
        status=status,
        training_patients=bucket_of(training_patients).name,
        consented_utc=consented_utc,
    )
