"""What a coordinator and a site say to each other: Task down, Reply up, Consent beforehand.

These are plain documents. ``privacy.envelope`` signs them and seals the tensors beside them;
together they make a Parcel, the one thing that is handed from process to process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, StringConstraints

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, canonical_json, digest_json
from vitrael.core.errors import EnvelopeError
from vitrael.core.study import Name

StageName = Literal[
    "consent", "codec", "latents", "calibration", "teacher", "screening", "audit", "signing"
]
"""The stages in which the sites take part."""

Parcel = Mapping[str, bytes]
"""``envelope`` holds the signed document, every other name a sealed safetensors attachment."""

ENVELOPE = "envelope"
"""The one name in a Parcel that no attachment may have."""

ENTRY_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")
"""What an entry of a Parcel may be called; each is also a plain file's name."""


def _digest(value: str) -> Digest:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        msg = "not a digest"
        raise ValueError(msg)
    return Digest(value)


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


DigestField = Annotated[Digest, AfterValidator(_digest)]
UtcField = Annotated[str, StringConstraints(max_length=40), AfterValidator(_utc)]
"""ISO 8601 with offset zero."""
Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
AttachmentName = Annotated[str, AfterValidator(_attachment)]
"""Lower-case letters, digits, hyphen and underscore, never ``envelope``."""


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
    deadline_s: float = Field(gt=0, description="how long the coordinator waits for the reply")
    inputs: dict[AttachmentName, DigestField] = Field(default_factory=dict)
    """Digest of each attachment before it was sealed."""

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
    body: dict[str, JsonValue] = Field(default_factory=dict)
    outputs: dict[AttachmentName, DigestField] = Field(default_factory=dict)
    """Digest of each attachment before it was sealed."""

    def check_answers(self, task: Task) -> None:
        """Raise EnvelopeError unless this answers exactly that task."""
        for field in ("protocol", "roster", "site", "stage", "round", "nonce"):
            if getattr(self, field) != getattr(task, field):
                raise EnvelopeError(
                    f"the reply of {task.site} answers another task",
                    why=f"its {field} differs",
                    fix="send the task again",
                )


class Consent(Message):
    """A site's yes to one protocol with one roster."""

    site: Name
    protocol: DigestField
    roster: DigestField
    package_version: str = Field(min_length=1, max_length=40)
    purpose: str = Field(min_length=1)
    max_rounds: int = Field(ge=1)
    """How many rounds of any one stage this site will answer."""
    given_utc: UtcField
    expires_utc: UtcField
    cohort: dict[Literal["patients", "scans"], int | None]
    """Counts only; None where a count is too small to be told."""
