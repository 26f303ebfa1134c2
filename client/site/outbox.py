"""The outbox: the only door by which anything leaves a site.

``RULES`` lists, stage by stage, every field and every array that may leave, with its bounds; what
it does not name is refused. A result is checked, sealed for the coordinator and signed, and
written into the journal before it is handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from vitrael.client.site.ceilings import check_left
from vitrael.client.site.departures import Departures
from vitrael.client.site.ingest.summary import CohortSummary
from vitrael.client.site.settings import Limits
from vitrael.client.site.store import Finished
from vitrael.client.site.tasks import TaskResult, study_layouts
from vitrael.core.configs import Section
from vitrael.core.digest import Digest
from vitrael.core.errors import DataError, StorageError, WeightsError
from vitrael.core.messages import ENVELOPE, Head, Reply, StageName, Task
from vitrael.core.study import Study
from vitrael.core.version import package_version
from vitrael.core.weights import Tensors, check_like
from vitrael.privacy.envelope import attachment_digests, make_reply_parcel
from vitrael.privacy.evidence import PLANT_CLASSES
from vitrael.privacy.journal import Entry, Journal, Kept
from vitrael.privacy.keys import KeyPair, PublicKeys, fingerprint

MOST_EXAMPLES: Final = 10_000_000
_LONGEST_REASON = 1000

Count = Annotated[int, Field(ge=0, le=1 << 40)]
"""A number of things; a larger one would be a message of its own."""
Layouts = Callable[[Study], Mapping[str, Tensors]]
"""Study -> attachment -> arrays like the weights that the study trains."""


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
        layouts: Layouts | None = study_layouts,
    ) -> None:
        """Take the journal, whom replies are for, and what weights a study has.

        Without ``layouts`` weights are compared with those that the task brought, and with no
        study's: only where the tasks are not those of this package.
        """
        self._journal = journal
        self._site = site
        self._keys = keys
        self._coordinator = coordinator
        self._limits = limits
        self._layouts = layouts
        self._known: tuple[Digest, Mapping[str, Tensors]] | None = None
        self._departures = Departures(journal.path)
        self._to = f"coordinator {fingerprint(coordinator.signing)[:19]}"

    def demand_same_past(self, task: Task) -> None:
        """Raise StorageError unless this site's journal has the line that the task quotes of it.

        The coordinator quotes what this site told it in a reply, whose own line came next. Where
        one of these lines is missing, an older backup was restored or the journal was rewritten,
        and nothing may leave that would hide it.
        """
        told = task.yours
        if told is None:
            return
        longer = self._journal.head().lines > told.lines
        if not (longer and self._journal.holds(Kept(told.lines, told.hash))):
            raise StorageError(
                "the journal is not the one that the coordinator was told of",
                why=f"line {told.lines} is missing in it or another one, or the line after it is",
                fix="restore the newest backup of journal.jsonl and journal.head.json; nothing "
                "leaves before",
            )

    def demand_weights(self, task: Task, inputs: Mapping[str, Tensors], *, study: Study) -> None:
        """Raise WeightsError unless the weights that a task brings are like those of the study.

        Checked before the task begins: a training of another network is not even tried.
        """
        for name in RULES[task.stage].like_input:
            if name in inputs:
                self._demand_layout(name, inputs[name], study)

    def bytes_left_for(self, protocol: Digest) -> int:
        """Return how many bytes have left this site for a protocol, as its journal counts them."""
        return self._departures.total(protocol)

    def check(
        self,
        task: Task,
        result: TaskResult,
        inputs: Mapping[str, Tensors],
        *,
        study: Study,
    ) -> Finished:
        """Return what may leave; raise DataError or WeightsError for anything else."""
        rule = RULES[task.stage]
        body = _check_body(rule, result.body)
        if not 0 <= result.num_examples <= MOST_EXAMPLES:
            raise DataError("the outbox refuses the count of examples", why="it is out of bounds")
        _check_attachments(rule, result.tensors, inputs)
        for name in rule.like_input:
            self._demand_layout(name, result.tensors[name], study)
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
                "cohort": finished.cohort,
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
        entry = Entry(
            event="refused", origin=self._site, bytes=size, reason=reason[:_LONGEST_REASON]
        )
        self._journal.append(entry)

    def _reply(
        self, task: Task, *, status: Literal["done", "refused", "failed"], reason: str = ""
    ) -> Reply:
        head = self._journal.head()
        return Reply(
            protocol=task.protocol,
            roster=task.roster,
            site=self._site,
            stage=task.stage,
            round=task.round,
            nonce=task.nonce,
            status=status,
            reason=reason,
            journal=Head(lines=head.lines, hash=head.hash),
            package_version=package_version(),
        )

    def _demand_layout(self, name: str, tensors: Tensors, study: Study) -> None:
        """Raise WeightsError unless tensors are like those that the study trains under a name."""
        if self._layouts is None:
            return
        digest = study.protocol.digest
        if self._known is None or self._known[0] != digest:
            self._known = (digest, self._layouts(study))
        _check_same(name, tensors, self._known[1][name])

    def _release(
        self, task: Task, reply: Reply, attachments: Mapping[str, Tensors]
    ) -> dict[str, bytes]:
        parcel = make_reply_parcel(
            reply, attachments, site=self._keys, coordinator=self._coordinator
        )
        size = sum(len(data) for data in parcel.values())
        if reply.status == "done":  # a sentence that refuses may always go
            left = self.bytes_left_for(task.protocol)
            check_left(self._limits, left_bytes=left, more_bytes=size)
        fields = {*reply.body, "num_examples"} if reply.num_examples else {*reply.body}
        self._journal.append(
            Entry(
                event="sent" if reply.status == "done" else reply.status,
                to=self._to,
                origin=self._site,
                key=fingerprint(self._coordinator.signing),
                protocol=task.protocol,
                roster=task.roster,
                stage=task.stage,
                round=task.round,
                attempt=task.attempt,
                nonce=task.nonce,
                bytes=size,
                fields=tuple(sorted(fields)),
                attachments={name: str(digest) for name, digest in reply.outputs.items()},
                reason=reply.reason,
                other="" if task.journal is None else task.journal.hash,
                other_lines=0 if task.journal is None else task.journal.lines,
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
