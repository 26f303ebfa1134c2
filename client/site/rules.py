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
from vitrael.privacy.evidence import PLANT_CLASSES

MOST_EXAMPLES: Final = 10_000_000

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
    """How fast this site trains: images of the study's own batches, and the seconds they took."""

    codec_images: Annotated[int, Field(ge=1, le=MOST_EXAMPLES)]
    codec_s: Annotated[float, Field(ge=0)]
    teacher_images: Annotated[int, Field(ge=1, le=MOST_EXAMPLES)]
    teacher_s: Annotated[float, Field(ge=0)]


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


class SigningBody(Body):
    """The site's signature on the manifest of a release."""

    signature: Annotated[str, StringConstraints(max_length=65_536)]


@dataclass(frozen=True, slots=True)
class ArrayRule:
    """What one array may be."""

    dtypes: tuple[str, ...]
    most_elements: int
    votes_on: tuple[str, str] | None = None
    """Attachment and array of the task: one vote, 0 or 1, for each of its rows."""


@dataclass(frozen=True, slots=True)
class StageRule:
    """All that may leave in one stage."""

    body: type[Body]
    labels: frozenset[str] = frozenset()
    """Names that metrics and counts may have."""
    like_input: tuple[str, ...] = ()
    """Attachments that must have the names, shapes and dtypes of the task's own."""
    arrays: Mapping[str, Mapping[str, ArrayRule]] = field(default_factory=dict)
    """Other attachments, array by array."""


_VOTES = ArrayRule(("uint8",), 1_000_000, votes_on=("candidates", "image"))
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
        *(f"plants.{kind}.{count}" for kind in PLANT_CLASSES for count in ("shown", "dropped")),
        *(f"fresh.{count}" for count in ("shown", "dropped")),
        *(f"copies.{part}" for part in ("samples", "hits", "control_hits", "scale")),
        *(f"copies.{part}" for part in ("planted", "planted_hits")),
        *(f"closeness.{part}" for part in ("patients", "share", "error")),
        *(f"membership.{part}" for part in ("members", "others")),
        *(f"membership.{part}" for part in ("attack", "placebo", "control")),
        *(f"membership.{part}_error" for part in ("attack", "placebo", "control")),
    }
)

RULES: Final[Mapping[StageName, StageRule]] = {
    "consent": StageRule(ConsentBody),
    "canary": StageRule(CanaryBody),
    "codec": StageRule(TrainingBody, like_input=("codec",)),
    "latents": StageRule(Body, arrays={"moments": _MOMENTS}),
    "calibration": StageRule(FilterBody, labels=_CALIBRATION),
    "teacher": StageRule(TrainingBody, like_input=("denoiser",)),
    "screening": StageRule(
        FilterBody, labels=frozenset({"candidates", "kept"}), arrays={"votes": {"keep": _VOTES}}
    ),
    "audit": StageRule(FilterBody, labels=_AUDIT),
    "signing": StageRule(SigningBody),
}
"""The allow-list. Whoever adds a line adds it to the page on what leaves a site."""
