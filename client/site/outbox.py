"""The outbox: the only door by which anything leaves a site.

``RULES`` lists, stage by stage, every field and every array that may leave, with its bounds; what
it does not name is refused. A result is checked, sealed for the coordinator and signed, and
written into the journal before it is handed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from vitrael.client.site.ingest.summary import CohortSummary
from vitrael.client.site.journal import Entry, Journal
from vitrael.client.site.settings import Limits
from vitrael.client.site.store import Finished
from vitrael.client.site.tasks import TaskResult
from vitrael.core.configs import Section
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.messages import ENVELOPE, Reply, StageName, Task
from vitrael.core.weights import Tensors, check_like
from vitrael.privacy.envelope import attachment_digests, make_reply_parcel
from vitrael.privacy.evidence import PLANT_CLASSES
from vitrael.privacy.keys import KeyPair, PublicKeys, fingerprint

MOST_EXAMPLES: Final = 10_000_000
_LONGEST_REASON = 1000


class Body(Section):
    """The fields that a reply may have; an unknown one is refused, and so are NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class ConsentBody(Body):
    """The signed consent, and counts of the cohort that it is for."""

    consent: Annotated[str, StringConstraints(max_length=16_384)]
    summary: CohortSummary


class TrainingBody(Body):
    """How training went: losses, each the mean since the point before it."""

    curve_images: Annotated[list[int], Field(max_length=200)] = Field(default_factory=list)
    curve_loss: Annotated[list[float], Field(max_length=200)] = Field(default_factory=list)


class MeasuredBody(Body):
    """Numbers over many patients, and whether they could be had."""

    estimable: bool = True
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
    metrics: dict[str, float] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)


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


class Outbox:
    """Checks, journals, seals and signs; nothing else of a site holds the signing key's reply."""

    def __init__(
        self,
        journal: Journal,
        *,
        site: str,
        keys: KeyPair,
        coordinator: PublicKeys,
        limits: Limits,
    ) -> None:
        """Take the journal and whom replies are for."""
        self._journal = journal
        self._site = site
        self._keys = keys
        self._coordinator = coordinator
        self._limits = limits
        self._to = f"coordinator {fingerprint(coordinator.signing)[:19]}"

    def check(self, task: Task, result: TaskResult, inputs: Mapping[str, Tensors]) -> Finished:
        """Return what may leave; raise DataError or WeightsError for anything else."""
        rule = RULES[task.stage]
        body = _check_body(rule, result.body)
        if not 0 <= result.num_examples <= MOST_EXAMPLES:
            raise DataError("the outbox refuses the count of examples", why="it is out of bounds")
        _check_attachments(rule, result.tensors, inputs)
        size = sum(a.nbytes for tensors in result.tensors.values() for a in tensors.values())
        if size > self._limits.parcel_bytes:
            raise DataError(
                "the outbox refuses the result",
                why=f"{size} bytes are more than the {self._limits.parcel_bytes} that may leave",
                fix="raise limits.parcel_bytes in site.toml if that is intended",
            )
        return Finished(body, result.tensors, result.num_examples)

    def send(self, task: Task, finished: Finished) -> dict[str, bytes]:
        """Return the sealed and signed reply; its line stands in the journal when this returns."""
        reply = self._reply(task, status="done").model_copy(
            update={
                "num_examples": finished.num_examples,
                "body": dict(finished.body),
                "outputs": attachment_digests(finished.tensors),
            }
        )
        return self._release(task, reply, finished.tensors)

    def send_word(
        self, task: Task, *, status: Literal["refused", "failed"], reason: str
    ) -> dict[str, bytes]:
        """Return a signed reply that holds one sentence and nothing else."""
        reply = self._reply(task, status=status, reason=reason[:_LONGEST_REASON])
        return self._release(task, reply, {})

    def note_refusal(self, reason: str, size: int) -> None:
        """Write down that something was refused to which there is no signed reply.

        ``size`` counts the bytes of the fixed sentences that its bearers get.
        """
        entry = Entry(event="refused", bytes=size, reason=reason[:_LONGEST_REASON])
        self._journal.append(entry)

    def _reply(
        self, task: Task, *, status: Literal["done", "refused", "failed"], reason: str = ""
    ) -> Reply:
        return Reply(
            protocol=task.protocol,
            roster=task.roster,
            site=self._site,
            stage=task.stage,
            round=task.round,
            nonce=task.nonce,
            status=status,
            reason=reason,
        )

    def _release(
        self, task: Task, reply: Reply, attachments: Mapping[str, Tensors]
    ) -> dict[str, bytes]:
        parcel = make_reply_parcel(
            reply, attachments, site=self._keys, coordinator=self._coordinator
        )
        fields = {*reply.body, "num_examples"} if reply.num_examples else {*reply.body}
        self._journal.append(
            Entry(
                event="sent" if reply.status == "done" else reply.status,
                to=self._to,
                protocol=task.protocol,
                stage=task.stage,
                round=task.round,
                nonce=task.nonce,
                bytes=sum(len(data) for data in parcel.values()),
                fields=tuple(sorted(fields)),
                attachments={name: str(digest) for name, digest in reply.outputs.items()},
                reason=reply.reason,
            )
        )
        return parcel


def _check_body(rule: StageRule, body: Mapping[str, Any]) -> dict[str, JsonValue]:
    try:
        checked = rule.body.model_validate(dict(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        known = first["loc"] and first["loc"][0] in rule.body.model_fields
        what = f"the field {first['loc'][0]}" if known else "a field that is not on its list"
        raise DataError(
            f"the outbox refuses {what}", why="its type or size is not allowed" if known else ""
        ) from error
    if isinstance(checked, MeasuredBody) and {*checked.metrics, *checked.counts} - rule.labels:
        raise DataError("the outbox refuses a number whose name is not on its list")
    document: dict[str, JsonValue] = checked.model_dump(mode="json", exclude_unset=True)
    return document


def _check_attachments(
    rule: StageRule, attachments: Mapping[str, Tensors], inputs: Mapping[str, Tensors]
) -> None:
    allowed = {*rule.like_input, *rule.arrays}
    for name, tensors in attachments.items():
        if name not in allowed or name == ENVELOPE:
            raise WeightsError("the outbox refuses an attachment that is not on its list")
        if name in rule.arrays:
            _check_arrays(name, tensors, rule.arrays[name], inputs)
        elif name not in inputs:
            raise WeightsError(f"the outbox refuses {name}", why="the task brought nothing like it")
        else:
            _check_same(name, tensors, inputs[name])
    if missing := [name for name in rule.like_input if name not in attachments]:
        raise WeightsError(f"the outbox refuses the result: {missing[0]} is missing")


def _check_same(name: str, tensors: Tensors, expected: Tensors) -> None:
    if tensors.keys() - expected.keys():
        raise WeightsError(f"the outbox refuses {name}: it holds a tensor that is not expected")
    try:
        check_like(tensors, expected)
    except WeightsError as error:
        raise WeightsError(f"the outbox refuses {name}", why=error.what) from error


def _check_arrays(
    name: str,
    tensors: Tensors,
    rules: Mapping[str, ArrayRule],
    inputs: Mapping[str, Tensors],
) -> None:
    for key, array in tensors.items():
        if key not in rules:
            raise WeightsError(f"the outbox refuses {name}: it holds an array that is not listed")
        rule = rules[key]
        if str(array.dtype) not in rule.dtypes or array.size > rule.most_elements:
            raise WeightsError(f"the outbox refuses {name}: {key} has a dtype or size not allowed")
        if not np.isfinite(array).all():
            raise WeightsError(f"the outbox refuses {name}: {key} is not finite")
        if rule.votes_on is not None:
            attachment, rows = rule.votes_on
            asked = inputs.get(attachment, {}).get(rows)
            if asked is None or array.shape != (len(asked),) or (array > 1).any():
                raise WeightsError(f"the outbox refuses {name}: {key} is not one vote a row")
