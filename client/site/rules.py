"""All that may leave a site, stage by stage: every field and every array, with its bounds.

What ``RULES`` does not name the outbox refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import ConfigDict, Field, StringConstraints

from vitrael.client.site.ingest.summary import CohortSummary
from vitrael.core.configs import Section
from vitrael.core.messages import StageName
from vitrael.core.weights import Tensors
from vitrael.privacy.evidence import NEGATIVE_KINDS, SUBGROUPS
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.suite import VOLUME_SUITE

MOST_EXAMPLES: Final = 10_000_000

Word = Annotated[str, StringConstraints(min_length=1, max_length=64)]
"""For a view."""

Count = Annotated[int, Field(ge=0, le=1 << 40)]
"""A number of things; a larger one would be a message of its own."""


class Body(Section):
    """The fields that a reply may have; an unknown one is refused, and so are NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class ConsentBody(Body):
    """The signed consent, and counts of the cohort that it is for."""

    consent: Annotated[str, StringConstraints(max_length=16_384)]
    summary: CohortSummary


class CanaryBody(Body):
    """How fast this site trains: images of the study's own batches, and the seconds they took.

    Codec, patient encoder and teacher where the study has them, the expert where it has that.
    """

    codec_images: Annotated[int, Field(ge=1, le=MOST_EXAMPLES)] = 1
    codec_s: Annotated[float, Field(ge=0)] = 0
    reid_images: Annotated[int, Field(ge=1, le=MOST_EXAMPLES)] = 1
    reid_s: Annotated[float, Field(ge=0)] = 0
    teacher_images: Annotated[int, Field(ge=1, le=MOST_EXAMPLES)] = 1
    teacher_s: Annotated[float, Field(ge=0)] = 0
    expert_images: Annotated[int, Field(ge=1, le=MOST_EXAMPLES)] = 1
    expert_s: Annotated[float, Field(ge=0)] = 0


class TrainingBody(Body):
    """How training went: losses, each the mean since the point before it."""

    curve_images: Annotated[list[Count], Field(max_length=200)] = Field(default_factory=list)
    curve_loss: Annotated[list[float], Field(max_length=200)] = Field(default_factory=list)


class MeasuredBody(Body):
    """Numbers over many patients, and whether they could be had."""

    estimable: bool = True
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    counts: dict[str, Count] = Field(default_factory=dict)


class FilterBody(MeasuredBody):
    """Numbers of the filter, and the operating point that gave them by its salted digest."""

    commitment: Annotated[str, StringConstraints(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""
    """Empty without an operating point."""


class ExpertBody(TrainingBody):
    """How training went, and what the site calls the views that its expert tells apart."""

    words: Annotated[dict[Word, Word], Field(min_length=2, max_length=64)]
    calibrated: bool


class OutlooksBody(MeasuredBody):
    """How many single pictures are told of, and what could be done with what is told."""

    pictures: Count = 0


class SigningBody(Body):
    """The site's signature on the manifest of a release."""

    signature: Annotated[str, StringConstraints(max_length=65_536)]


@dataclass(frozen=True, slots=True)
class ArrayRule:
    """What one array may be."""

    dtypes: tuple[str, ...]
    most_elements: int
    votes_on: tuple[str, str | None] | None = None
    """Attachment and array of the task: one vote, 0 or 1, for each of its rows. Without an array
    for each file of the attachment, in the order of their names."""
    least_count: int = 0
    """Its values are 0 or at least this."""
    of_features: bool = False
    """It tells of single pictures, and leaves only where the protocol says so."""


@dataclass(frozen=True, slots=True)
class StageRule:
    """All that may leave in one stage."""

    body: type[Body]
    labels: frozenset[str] = frozenset()
    """Names that metrics and counts may have."""
    like_input: tuple[str, ...] = ()
    """Attachments that must have the names, shapes and dtypes of the task's own."""
    own_weights: Mapping[str, str] = field(default_factory=dict)
    """Attachments with weights of the study's layout -> how the names of those arrays begin that
    have a row for each class: a site has as many as it has, from two to all of the study's."""
    arrays: Mapping[str, Mapping[str, ArrayRule]] = field(default_factory=dict)
    """Other attachments, array by array."""


_VOTES = ArrayRule(("uint8",), 1_000_000, votes_on=("candidates", "image"))
_SAMPLE_VOTES = ArrayRule(("uint8",), 1_000_000, votes_on=("samples", None))
_MOMENT = ArrayRule(("float64",), 4_096)
_MOMENTS = {
    f"{name}.{part}": _MOMENT
    for name in ("latent", "condition", "ceiling")
    for part in ("count", "sum", "square")
}
_CALIBRATION = frozenset(
    {
        "patients.training",
        "verification.patients",
        "verification.wins",
    }
)
_AUDIT = frozenset(
    {
        *(f"plants.{name}.{count}" for name in VOLUME_SUITE for count in ("shown", "dropped")),
        "plants.absent",
        *(f"negatives.{kind}.{count}" for kind in NEGATIVE_KINDS for count in ("shown", "dropped")),
        *(f"mixing.{count}" for count in ("shown", "dropped")),
        *(f"must.{part}" for part in ("patients", "caught")),
        *(f"subgroups.{name}.{part}" for name in SUBGROUPS for part in ("patients", "caught")),
        *(f"fresh.{count}" for count in ("shown", "dropped")),
        *(f"copies.{part}" for part in ("samples", "hits", "control_hits", "scale")),
        *(f"copies.{part}" for part in ("planted", "planted_hits")),
        *(f"closeness.{part}" for part in ("patients", "share", "error")),
        *(f"membership.{part}" for part in ("members", "others")),
        *(f"membership.{part}" for part in ("attack", "placebo", "control")),
        *(f"membership.{part}_error" for part in ("attack", "placebo", "control")),
    }
)
_ARMS = frozenset(
    {
        *("arms.samples", "arms.held_out", "arms.held_out_hits"),
        *(f"arms.{arm}_hits" for arm in ("teacher", "random", "student")),
        *(f"arms.teacher_and_{arm}" for arm in ("random", "student")),
    }
)

_ATTACKS = (
    *(f"experts.members_by_{way}" for way in ("nearness", "likelihood", "match")),
    "experts.members_under_noise",
    *(
        f"experts.inversion_{part}_from_{way}"
        for part in ("rebuilt", "control", "gain", "detail")
        for way in ("means", "features")
    ),
)
_RISK = frozenset(
    f"{attack}{suffix}" for attack in _ATTACKS for suffix in ("", ".low", ".high", ".n")
)

_TOLD = 1 << 24
"""Numbers in what is told of experts: views times features, over all of them."""
_OUTLOOKS = {
    "images": ArrayRule(("int64",), 256, least_count=SMALLEST_COUNT),
    "mean": ArrayRule(("float32",), _TOLD),
    "std": ArrayRule(("float32",), _TOLD),
    "view": ArrayRule(("int64",), MOST_EXAMPLES, of_features=True),
    "seen": ArrayRule(("float32",), 1 << 28, of_features=True),
}
_COUNTED = {
    "images": ArrayRule(("int64",), 256, least_count=SMALLEST_COUNT),
    "right": ArrayRule(("int64",), 4_096),
    "heaviest": ArrayRule(("int64",), 256),
    "weight": ArrayRule(("float64",), 256),
}

RULES: Final[Mapping[StageName, StageRule]] = {
    "consent": StageRule(ConsentBody),
    "canary": StageRule(CanaryBody),
    "codec": StageRule(TrainingBody, like_input=("codec",)),
    "latents": StageRule(Body, arrays={"moments": _MOMENTS}),
    "reid": StageRule(TrainingBody, like_input=("encoder",)),
    "calibration": StageRule(FilterBody, labels=_CALIBRATION),
    "teacher": StageRule(TrainingBody, like_input=("denoiser",)),
    "screening": StageRule(
        FilterBody, labels=frozenset({"candidates"}), arrays={"votes": {"keep": _VOTES}}
    ),
    "rescreening": StageRule(
        FilterBody, labels=frozenset({"candidates"}), arrays={"votes": {"keep": _SAMPLE_VOTES}}
    ),
    "audit": StageRule(FilterBody, labels=_AUDIT),
    "arms": StageRule(MeasuredBody, labels=_ARMS),
    "signing": StageRule(SigningBody),
    "expert": StageRule(ExpertBody, own_weights={"expert": "net.head."}),
    "outlooks": StageRule(OutlooksBody, labels=_RISK, arrays={"outlooks": _OUTLOOKS}),
    "averaged": StageRule(TrainingBody, like_input=("common",)),
    "relay": StageRule(TrainingBody, like_input=("common",)),
    "comparison": StageRule(Body, arrays={"counts": _COUNTED}),
}
"""The allow-list. Whoever adds a line adds it to the page on what leaves a site."""


def count_asked(stage: StageName, inputs: Mapping[str, Tensors]) -> int | None:
    """Return on how many images a task wants votes; None where it wants none."""
    for arrays in RULES[stage].arrays.values():
        for rule in arrays.values():
            if rule.votes_on is not None:
                return votes_asked(rule.votes_on, inputs)
    return None


def votes_asked(votes_on: tuple[str, str | None], inputs: Mapping[str, Tensors]) -> int:
    """Return how many rows, or files, what is voted on has; 0 where it is not there."""
    attachment, rows = votes_on
    brought = inputs.get(attachment, {})
    return len(brought) if rows is None else len(brought.get(rows, ()))
