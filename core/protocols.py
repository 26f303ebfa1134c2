"""What a study does: the protocol of a synthetic set, and that of experts of views.

Everything that a site consents to stands here, except who else takes part. Each protocol has a
digest, which is its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from vitrael.core.configs import (
    BrainLDMConfig,
    ExpertSystemConfig,
    Positive,
    ReidEncoderConfig,
    ScoreFusionConfig,
    Section,
    SystemConfig,
    TrainingConfig,
    ViewExpertConfig,
)
from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import StudyError
from vitrael.core.rounds import Federation

NAME_PATTERN: Final = r"^[a-z][a-z0-9-]{0,47}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""Lower-case letters, digits and hyphens; names of studies and sites."""

ViewName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.+-]{0,63}$")]
"""A word for a view, as the table of a site may give it."""

MOST_VOTES: Final = 4
"""Votes that a site gives at most for each image that is wanted, over all that a study asks."""

COVARIATES = ("age_years", "sex", "ventricle_ml", "brain_ml")
"""What the brain generator is asked for, in the order of its condition vector."""

KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "synthesis": ("brain_ldm", "reid_encoder"),
    "experts": ("view_expert", "score_fusion"),
}
"""Aim of a protocol -> the kinds of its systems, each of which it holds once."""


class DisagreementError(StudyError, ValueError):  # a ValueError, which pydantic collects
    """Parts of a section do not agree; ``key``, below the section, is the one to correct."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


class CovariateRange(Section):
    """The closed range that is mapped to [0, 1] for the condition vector."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            msg = "low must be below high"
            raise ValueError(msg)
        return self


def parse_digest(value: str) -> Digest:
    """Return a digest in its written form; raise ValueError for anything else."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        msg = "it is not written like a digest, sha256: and 64 digits"
        raise ValueError(msg)
    return Digest(value)


def _license(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", value):
        msg = "it is not written like an SPDX name, such as CC-BY-4.0"
        raise ValueError(msg)
    return value


class Splits(Section):
    """Fractions of a site's patients: T training, F filter, C calibration, A audit, U utility."""

    training_frac: float = Field(gt=0, lt=1)
    filter_frac: float = Field(gt=0, lt=1)
    calibration_frac: float = Field(gt=0, lt=1)
    audit_frac: float = Field(gt=0, lt=1)
    utility_frac: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        _demand_whole(self)
        return self


class ViewSplits(Section):
    """Fractions of a site's patients: T training, C calibration, U what experts are held to."""

    training_frac: float = Field(gt=0, lt=1)
    calibration_frac: float = Field(gt=0, lt=1)
    utility_frac: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        _demand_whole(self)
        return self


def _demand_whole(splits: Section) -> None:
    fractions = splits.model_dump().values()
    total = sum(fractions)
    if abs(total - 1) > 1e-9:  # noqa: PLR2004 - rounding of decimal fractions
        msg = f"the fractions add up to {total:.4g}, not 1"
        raise ValueError(msg)


class Data(Section):
    """What every site brings its scans to before anything else."""

    recipe: Literal["brain-t1"]
    grid_vox: tuple[Positive, Positive, Positive] = Field(description="D, H, W after the recipe")
    spacing_mm: float = Field(gt=0, description="isotropic")
    covariates: dict[Literal["age_years", "sex", "ventricle_ml", "brain_ml"], CovariateRange]
    splits: Splits

    @model_validator(mode="after")
    def _all_covariates(self) -> Self:
        if missing := set(COVARIATES) - set(self.covariates):
            msg = f"ranges are missing for {', '.join(sorted(missing))}"
            raise ValueError(msg)
        return self


class ViewData(Section):
    """What every site brings its pictures to, and the words of the study for what they show."""

    recipe: Literal["image-2d", "echo-apical"]
    edge_px: int = Field(ge=16, le=512, description="of the square pictures")
    views: tuple[ViewName, ...] = Field(
        min_length=2, description="that experts tell apart, each in the study's own word"
    )
    splits: ViewSplits

    @property
    def grid_vox(self) -> tuple[int, int]:
        """H, W after the recipe."""
        return (self.edge_px, self.edge_px)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.views)) < len(self.views):
            msg = "a view is named twice"
            raise ValueError(msg)
        return self


StudyData = Data | ViewData
"""What the scans of a study are brought to."""


class Distillation(Section):
    """Generate, screen, retrain: how many images are to be kept of the teacher and the student."""

    target: int = Field(ge=8, strict=True, description="kept candidates, which the student learns")
    released: int = Field(ge=1, strict=True, description="kept samples in the synthetic set")
    compare: bool = Field(default=False, strict=True, description="all three arms, attacked")

    @property
    def compared(self) -> int:
        """Return how many samples of each arm an attacker is shown; more make no ratio surer."""
        return min(self.released, 512) if self.compare else 0

    @property
    def most_votes(self) -> Mapping[str, int]:
        """Return how many images each stage of screening shows to a site at most, over a study."""
        return {
            "screening": MOST_VOTES * self.target,
            "rescreening": MOST_VOTES * self.released,
        }


class Screening(Section):
    """How a site judges candidates; the operating point is frozen before any is seen."""

    enabled: bool = Field(default=True, strict=True)
    false_match_rate: float = Field(
        default=0.05, gt=0, lt=0.5, description="share of held-out patients that would be dropped"
    )
    extra_rejections: float = Field(
        default=0.03,
        ge=0.01,
        le=0.05,
        description="share that each site drops by chance, so that a drop proves nothing; below "
        "it a drop would prove a patient, above it is waste",
    )


class Audit(Section):
    """How much evidence is gathered on the student's samples."""

    plants_per_class: int = Field(default=60, ge=1, strict=True, description="over all sites")
    suite: Literal["must", "all"] = Field(
        default="all", description="classes of planted copies: all, or those that must be caught"
    )
    memorize_images: int = Field(
        default=0,
        ge=0,
        strict=True,
        description="at most, to over-train a model for samples it has by heart; 0: none",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class Baselines(Section):
    """What experts are held against, by the same sites on the same pictures."""

    averaged_rounds: int = Field(
        default=0, ge=0, description="of one network for all views, averaged; 0: not trained"
    )
    in_turn: bool = Field(default=False, strict=True, description="one network, site after site")


class ProtocolTerms(Section):
    """What every protocol says."""

    name: Name
    version: int = Field(default=1, ge=1, strict=True)
    purpose: str = Field(min_length=1)
    seed: int = Field(ge=0)
    federation: Federation

    @property
    def digest(self) -> Digest:
        """Name of the protocol by its content."""
        return digest_json(self.model_dump(mode="json"))


class SynthesisProtocol(ProtocolTerms):
    """A synthetic set: a teacher of all sites, screened candidates, a student, an audit."""

    aim: ClassVar[Literal["synthesis"]] = "synthesis"
    """It goes without saying: no document need name it, and no digest does."""
    path: Literal["dp", "empirical"]
    policy: Literal["rehearsal", "public"]
    license: Annotated[str, AfterValidator(_license)] = Field(
        description="SPDX name of the licence of a release, if any"
    )
    data: Data
    systems: tuple[SystemConfig, ...]
    distillation: Distillation
    screening: Screening = Screening()
    audit: Audit = Audit()

    @model_validator(mode="before")
    @classmethod
    def _drop_aim(cls, given: Any) -> Any:  # noqa: ANN401 - as pydantic hands it over
        if not isinstance(given, Mapping):
            return given
        return {key: value for key, value in given.items() if key != "aim"}

    @model_validator(mode="after")
    def _systems_complete(self) -> Self:
        _demand_kinds(self.systems, KINDS[self.aim])
        if self.distillation.compare and not self.screening.enabled:
            raise DisagreementError("distillation.compare", "without screening there is no filter")
        generator = self.generator
        if generator.dimensions != len(self.data.grid_vox):
            raise DisagreementError("systems", "the scans of a study have 3 dimensions")
        if generator.codec.perceptual_weight and generator.codec.perceptual == "medicalnet":
            why = 'a study carries no weights of medicalnet; perceptual must be "gradients"'
            raise DisagreementError("systems", why)
        levels = max(len(generator.teacher.channels), len(generator.student.channels))
        divisor = generator.codec.downsampling << (levels - 1)
        if any(size % divisor for size in self.data.grid_vox):
            raise DisagreementError("data.grid_vox", f"every axis must be a multiple of {divisor}")
        critic = generator.codec.critic
        if critic is not None and min(self.data.grid_vox) < critic.least_vox:
            why = f"a critic of {critic.layers} layers needs edges of at least {critic.least_vox}"
            raise DisagreementError("systems", f"{why} voxels")
        return self

    @property
    def generator(self) -> BrainLDMConfig:
        """The generative system."""
        return next(s for s in self.systems if isinstance(s, BrainLDMConfig))

    @property
    def trained(self) -> Mapping[str, TrainingConfig]:
        """What sites train, by stage."""
        return {
            "codec": self.generator.codec.training,
            "reid": self.reid.training,
            "teacher": self.generator.teacher.training,
        }

    def rounds(self, *, sites: int) -> dict[str, int]:  # noqa: ARG002 - as the other kind's
        """Return how many rounds each of these stages has."""
        return {stage: config.rounds for stage, config in self.trained.items()}

    @property
    def reid(self) -> ReidEncoderConfig:
        """The re-identification encoder."""
        return next(s for s in self.systems if isinstance(s, ReidEncoderConfig))


class ExpertsProtocol(ProtocolTerms):
    """Experts of views, one for each site, and their fusion; nothing of them is released."""

    aim: Literal["experts"]
    path: Literal["empirical"] = "empirical"
    data: ViewData
    systems: tuple[ExpertSystemConfig, ...]
    begin: Literal["fresh", "first", "given"] = Field(
        default="fresh",
        description="weights with which an expert begins: its own, those of the first expert, or "
        "those that the coordinator gives to all",
    )
    weights: Annotated[Digest, AfterValidator(parse_digest)] | None = Field(
        default=None,
        description="of the file with the weights that are given: safetensors of the same network",
    )
    told: Literal["means", "features"] = Field(
        default="means",
        description="of a site's pictures: means by class, or the features of every single one",
    )
    noise_frac: float = Field(
        default=0.5,
        ge=0,
        description="of noise over a told mean, in spreads of the site; single pictures have none",
    )
    baselines: Baselines = Baselines()

    @model_validator(mode="after")
    def _systems_complete(self) -> Self:
        _demand_kinds(self.systems, KINDS[self.aim])
        if (self.begin == "given") != (self.weights is not None):
            why = 'weights are named where begin = "given", and only there'
            raise DisagreementError("weights", why)
        if self.expert.backmix is not None and self.data.recipe != "echo-apical":
            why = f"backmix needs sectors, and the recipe {self.data.recipe} finds none"
            raise DisagreementError("systems", why)
        return self

    @property
    def expert(self) -> ViewExpertConfig:
        """The network of a site."""
        return next(s for s in self.systems if isinstance(s, ViewExpertConfig))

    @property
    def fusion(self) -> ScoreFusionConfig:
        """The network that weighs experts."""
        return next(s for s in self.systems if isinstance(s, ScoreFusionConfig))

    @property
    def trained(self) -> Mapping[str, TrainingConfig]:
        """What sites train, by stage."""
        alone = self.expert.training
        rounds = self.baselines.averaged_rounds
        averaged = TrainingConfig.model_validate({**alone.model_dump(), "rounds": max(1, rounds)})
        return {
            "expert": alone,
            **({"averaged": averaged} if rounds else {}),
            **({"relay": alone} if self.baselines.in_turn else {}),
        }

    def rounds(self, *, sites: int) -> dict[str, int]:
        """Return how many rounds each of these stages has; a relay has one for each site."""
        return {s: sites if s == "relay" else config.rounds for s, config in self.trained.items()}


def _demand_kinds(systems: Sequence[Section], wanted: Sequence[str]) -> None:
    kinds = [getattr(system, "kind", "") for system in systems]
    for kind in wanted:
        if kinds.count(kind) != 1:
            raise DisagreementError("systems", f"systems must hold exactly one of kind {kind}")


def _aim_of(given: Any) -> str:  # noqa: ANN401 - as pydantic hands it over
    """Return the aim of a document or of a protocol; synthesis where it says none."""
    if isinstance(given, Mapping):
        data = given.get("data")  # who forgets the aim is told so, and not to remove all the rest
        has_views = isinstance(data, Mapping) and "views" in data
        return str(given.get("aim", "experts" if has_views else "synthesis"))
    return str(getattr(given, "aim", "synthesis"))


Protocol = Annotated[
    Annotated[SynthesisProtocol, Tag("synthesis")] | Annotated[ExpertsProtocol, Tag("experts")],
    Discriminator(_aim_of),
]
"""What is done: everything that a site consents to, except who else takes part."""
