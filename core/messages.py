"""What a coordinator and a site say to each other: Task down, Reply up, Consent beforehand.

These are plain documents. ``privacy.envelope`` signs them and seals the tensors beside them;
together they make a Parcel, the one thing that is handed from process to process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, canonical_json, digest_json
from vitrael.core.errors import EnvelopeError
from vitrael.core.protocols import Name, Protocol, SynthesisProtocol, parse_digest
from vitrael.core.rounds import LONGEST_DEADLINE_S

StageName = Literal[
    "consent",
    "canary",
    "codec",
    "latents",
    "reid",
    "calibration",
    "teacher",
    "screening",
    "rescreening",
    "audit",
    "arms",
    "signing",
    "expert",
    "outlooks",
    "averaged",
    "relay",
    "comparison",
]
"""The stages in which the sites take part."""

_FIRST: Final = ("consent", "canary")
STAGES: Final[Mapping[str, tuple[StageName, ...]]] = {
    "synthesis": (
        *_FIRST,
        "codec",
        "latents",
        "reid",
        "calibration",
        "teacher",
        "screening",
        "rescreening",
        "audit",
        "arms",
        "signing",
    ),
    "experts": (*_FIRST, "expert", "outlooks", "averaged", "relay", "comparison"),
}
"""Aim of a protocol -> what its study may ask of the sites."""

IN_VOTES: Final[frozenset[StageName]] = frozenset({"screening", "rescreening"})
"""Stages of as many rounds as it takes: a site holds them to a number of votes, not of rounds."""

Parcel = Mapping[str, bytes]
"""``envelope`` holds the signed document, every other name a sealed safetensors attachment."""

MakeParcel = Callable[[], Parcel]
"""Makes one site's Parcel when it goes: memory then holds one at a time."""

ENVELOPE = "envelope"
"""The one name in a Parcel that no attachment may have."""

ENTRY_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")
"""What an entry of a Parcel may be called; each is also a plain file's name."""


def stages_of(protocol: Protocol) -> tuple[StageName, ...]:
    """Return what a study asks of the sites: ``arms`` only where its protocol compares them."""
    stages = STAGES[protocol.aim]
    compares = isinstance(protocol, SynthesisProtocol) and protocol.distillation.compare
    return stages if compares else tuple(stage for stage in stages if stage != "arms")


def parcel_size(parcel: Parcel) -> int:
    """Return how many bytes the entries of a Parcel have together."""
    return sum(len(data) for data in parcel.values())


def _utc(value: str) -> str:
    if datetime.fromisoformat(value).utcoffset() != UTC.utcoffset(None):
        msg = "not a time in UTC"
        raise ValueError(msg)
    return value


def _attachment(value: str) -> str:
    if value == ENVELOPE or not ENTRY_NAME.fullmatch(value):
        msg = "not a name for an attachment"
        raise ValueError(msg)
    return value


DigestField = Annotated[Digest, AfterValidator(parse_digest)]
UtcField = Annotated[str, StringConstraints(max_length=40), AfterValidator(_utc)]
"""ISO 8601 with offset zero."""
Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
AttachmentName = Annotated[str, AfterValidator(_attachment)]
"""Lower-case letters, digits, hyphen and underscore, never ``envelope``."""
FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,48}$")]
"""Of a reply's body: the other side writes it into its journal."""
MOST_FIELDS: Final = 32


class Message(Section):
    """A document whose canonical JSON is what gets signed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON; raise ValueError on NaN and infinity."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return the document of canonical JSON; raise ValueError for anything else."""
        message = cls.model_validate_json(data)
        if message.to_bytes() != data:
            msg = "the document is not in canonical form"
            raise ValueError(msg)
        return message

    @property
    def digest(self) -> Digest:
        """Name of the document by its content."""
        return digest_json(self.model_dump(mode="json"))


class Head(Section):
    """Where a journal ends, as one side tells it to the other, who writes it down."""

    lines: int = Field(ge=0)
    hash: DigestField
    """Of the last line; of no bytes before the first."""


def _without_none(document: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Leave out what is not told: what was signed before the field was known keeps its form."""
    return {key: v for key, v in document.items() if v is not None or key not in names}


class Task(Message):
    """One thing that the coordinator asks of one site."""

    protocol: DigestField
    roster: DigestField
    site: Name
    stage: StageName
    round: int = Field(ge=0, description="counted from 0; 0 where a stage has no rounds")
    attempt: int = Field(default=0, ge=0, description="how often this round was begun before")
    nonce: Nonce
    issued_utc: UtcField
    deadline_s: float = Field(
        gt=0, le=LONGEST_DEADLINE_S, description="how long the coordinator waits for the reply"
    )
    inputs: dict[AttachmentName, DigestField] = Field(default_factory=dict)
    """Digest of each attachment before it was sealed."""
    journal: Head | None = None
    """Where the coordinator's journal ended when it asked."""
    yours: Head | None = None
    """Where the site's journal ended when the coordinator was last told."""

    @model_serializer(mode="wrap")
    def _leave_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(dump(self), ("journal", "yours"))

    @property
    def input_digest(self) -> Digest:
        """Name of all that decides the result: equal for two attempts at the same work."""
        return digest_json([self.roster, self.site, self.inputs])


class Reply(Message):
    """What a site answers to one task."""

    protocol: DigestField
    roster: DigestField
    site: Name
    stage: StageName
    round: int = Field(ge=0)
    nonce: Nonce
    status: Literal["done", "refused", "failed"]
    reason: str = Field(default="", max_length=2000)
    """One sentence when the status is not ``done``; never says anything of a patient."""
    num_examples: int = Field(default=0, ge=0)
    body: dict[FieldName, JsonValue] = Field(default_factory=dict, max_length=MOST_FIELDS)
    outputs: dict[AttachmentName, DigestField] = Field(default_factory=dict)
    """Digest of each attachment before it was sealed."""
    journal: Head | None = None
    """Where the site's journal ended before the line of this reply."""
    cohort: DigestField | None = None
    """Version of the site's scans that the work was done on, as the consent to it names it."""
    package_version: str | None = Field(default=None, min_length=1, max_length=40)
    """Of the software that answers: a site may upgrade between two rounds."""

    @model_serializer(mode="wrap")
    def _leave_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(dump(self), ("journal", "cohort", "package_version"))

    def check_answers(self, task: Task) -> None:
        """Raise EnvelopeError unless this answers exactly that task."""
        for field in ("protocol", "roster", "site", "stage", "round", "nonce"):
            if getattr(self, field) != getattr(task, field):
                raise EnvelopeError(
                    f"the reply of {task.site} answers another task",
                    why=f"its {field} differs",
                    fix="send the task again",
                )


class PrivacyTerms(Section):
    """What a consent says of privacy, read from the protocol that it names."""

    path: Literal["dp", "empirical"]
    policy: str | None = Field(min_length=1, max_length=48)
    """None where nothing is released."""
    screening: bool
    """Whether candidates are judged against this site's own scans."""
    false_match_rate: float | None = Field(gt=0, lt=1)
    """None where no candidate is made."""
    votes: int = Field(
        ge=0, description="most bits told of candidates and samples; 0 without screening"
    )
    features: bool | None = None
    """Whether numbers of each single picture are told; None in a study that asks for none."""
    epsilon: float | None = Field(default=None, gt=0)
    """Privacy budget of the protocol; None on the empirical path, which prints none."""

    @model_serializer(mode="wrap")
    def _leave_out(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_none(dump(self), ("features",))


class CohortTerms(Section):
    """The cohort that a consent is for: its name at the site, its version, and counts."""

    name: Name
    version: int = Field(ge=1)
    digest: DigestField
    """Name of the version by its content."""
    patients: int | None
    """None where a count is too small to be told."""
    scans: int | None


class Consent(Message):
    """A site's yes to one protocol with one roster, for one version of scans and of software."""

    site: Name
    protocol: DigestField
    roster: DigestField
    members: dict[Name, DigestField]
    """Digest of the public keys of each member."""
    package_version: str = Field(min_length=1, max_length=40)
    lock: DigestField
    """Name of all the software that is installed: ``version.lock_digest``."""
    cohort: CohortTerms
    purpose: str = Field(min_length=1)
    privacy: PrivacyTerms
    max_rounds: int = Field(ge=1)
    """How many rounds of any one stage this site will answer; screenings are held to votes."""
    given_utc: UtcField
    expires_utc: UtcField
