"""The outbox: the only door by which anything leaves a site.

``RULES`` of the module beside lists every field and every array that may leave; what it does not
name is refused. A result is checked, sealed for the coordinator and signed, and written into the
journal before it is handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal

import numpy as np
from pydantic import JsonValue, ValidationError

from vitrael.client.site.ceilings import check_left
from vitrael.client.site.departures import Departures
from vitrael.client.site.rules import (
    MOST_EXAMPLES,
    RULES,
    ArrayRule,
    MeasuredBody,
    StageRule,
    count_asked,
    votes_asked,
)
from vitrael.client.site.settings import Limits
from vitrael.client.site.store import Finished
from vitrael.client.site.tasks import TaskResult, study_layouts
from vitrael.core.digest import Digest
from vitrael.core.errors import (
    ConsentError,
    DataError,
    EnvelopeError,
    StorageError,
    WeightsError,
)
from vitrael.core.messages import ENVELOPE, Head, Reply, Task, parcel_size
from vitrael.core.protocols import ExpertsProtocol
from vitrael.core.study import Study
from vitrael.core.version import package_version
from vitrael.core.weights import Tensors, check_like
from vitrael.privacy.envelope import attachment_digests, make_reply_parcel
from vitrael.privacy.journal import Entry, Journal, Kept
from vitrael.privacy.keys import KeyPair, PublicKeys, fingerprint

MOST_ANSWERS: Final = 8
"""To one signed task: a coordinator sends the same one again three times at most, and every new
attempt has a nonce of its own."""
_LONGEST_REASON = 1000

Layouts = Callable[[Study], Mapping[str, Tensors]]
"""Study -> attachment -> arrays like the weights that the study trains."""


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

    def demand_not_replayed(self, task: Task) -> None:
        """Raise EnvelopeError when a task was answered so often that somebody else repeats it.

        Whoever carries parcels can lay the same one as often as he likes: a sealed answer with a
        line of its own for each would fill the journal.
        """
        if self._departures.answers_to(task) >= MOST_ANSWERS:
            raise EnvelopeError(
                f"the task was answered {MOST_ANSWERS} times",
                why="the coordinator does not ask that often with one nonce",
                fix="if it asks indeed, let it send a new task",
            )

    def demand_sent_before(self, task: Task, finished: Finished, *, cohort: Digest) -> None:
        """Raise ConsentError for a result of another version of the cohort than this one.

        But where it has left already: what the coordinator has may be given to it again.
        """
        if finished.cohort not in (None, cohort) and not self._departures.has_sent(task):
            raise ConsentError(
                f"the result of round {task.round + 1} of {task.stage} is of an earlier version "
                "of the cohort",
                why="it never left, and the consent is for the present version and no other",
                fix="go on without this site in this round; it is not made a second time",
            )

    def demand_same_past(self, task: Task) -> None:
        """Raise StorageError unless this site's journal has the line that the task quotes of it.

        The coordinator quotes what this site told it in a reply, whose own line came behind. Where
        one of these lines is missing, an older backup was restored or the journal was rewritten,
        and nothing may leave that would hide it.
        """
        told = task.yours
        if told is None:
            return
        if not self._journal.has_answered(Kept(told.lines, told.hash)):
            raise StorageError(
                "the journal is not the one that the coordinator was told of",
                why=f"line {told.lines} is missing in it or another one, or the reply after it is",
                fix="restore the newest backup; nothing leaves before. Where none is new enough: "
                "ask the coordinator for an invitation, and join in a new home",
            )

    def demand_weights(self, task: Task, inputs: Mapping[str, Tensors], *, study: Study) -> None:
        """Raise WeightsError unless the weights that a task brings are like those of the study.

        Checked before the task begins: a training of another network is not even tried.
        """
        for name in RULES[task.stage].like_input:
            if name in inputs:
                self._demand_layout(name, inputs[name], study)

    def bytes_left_for(self, protocol: Digest) -> int:
        """Return how many bytes have left this site for a protocol, by its journal.

        A result that was given again to the very same task counts once.
        """
        return self._departures.total_once(protocol)

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
        if result.num_examples != (count_asked(task.stage, inputs) or result.num_examples):
            raise DataError("the outbox refuses votes that are not counted as its examples")
        _check_attachments(rule, result.tensors, inputs)
        _check_features(rule, result, study)
        _check_words(result, study, site=self._site)
        for name in (*rule.like_input, *rule.own_weights):
            self._demand_layout(name, result.tensors[name], study, head=rule.own_weights.get(name))
        size = sum(a.nbytes for tensors in result.tensors.values() for a in tensors.values())
        if size > self._limits.parcel_bytes:
            raise DataError(
                "the outbox refuses the result",
                why=f"{size} bytes are more than the {self._limits.parcel_bytes} that may leave",
                fix="raise limits.parcel_bytes in site.toml if that is intended",
            )
        return Finished(body, result.tensors, result.num_examples)

    def send(
        self,
        task: Task,
        finished: Finished,
        *,
        leaving: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> dict[str, bytes]:
        """Return the sealed and signed reply; its line stands in the journal when this returns.

        The line is written inside of ``leaving()``, which raises where it may not leave after all.
        """
        reply = self._reply(task, status="done").model_copy(
            update={
                "num_examples": finished.num_examples,
                "body": dict(finished.body),
                "outputs": attachment_digests(finished.tensors),
                "cohort": finished.cohort,
            }
        )
        return self._release(task, reply, finished.tensors, leaving=leaving)

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

    def _demand_layout(
        self, name: str, tensors: Tensors, study: Study, *, head: str | None = None
    ) -> None:
        """Raise WeightsError unless tensors are like those that the study trains under a name.

        Arrays whose names begin with ``head`` have a row for each class that the site has.
        """
        if self._layouts is None:
            return
        digest = study.protocol.digest
        if self._known is None or self._known[0] != digest:
            self._known = (digest, self._layouts(study))
        layout = self._known[1][name]
        if head is not None:
            own = [array.shape[:1] for key, array in tensors.items() if key.startswith(head)]
            rows = max([2, *(size for shape in own for size in shape)])
            layout = {key: a[:rows] if key.startswith(head) else a for key, a in layout.items()}
        _check_same(name, tensors, layout)

    def _release(
        self,
        task: Task,
        reply: Reply,
        attachments: Mapping[str, Tensors],
        *,
        leaving: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> dict[str, bytes]:
        parcel = make_reply_parcel(
            reply, attachments, site=self._keys, coordinator=self._coordinator
        )
        size = parcel_size(parcel)
        if reply.status == "done":  # a sentence that refuses may always go
            left = self.bytes_left_for(task.protocol)
            more = 0 if self._departures.gives_again(task) else size
            check_left(self._limits, left_bytes=left, more_bytes=more)
        entry = self._entry(task, reply, size=size)
        with leaving():
            self._journal.append(entry)
        return parcel

    def _entry(self, task: Task, reply: Reply, *, size: int) -> Entry:
        fields = {*reply.body, "num_examples"} if reply.num_examples else {*reply.body}
        return Entry(
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
    allowed = {*rule.like_input, *rule.own_weights, *rule.arrays}
    for name, tensors in attachments.items():
        if name not in allowed or name == ENVELOPE:
            raise WeightsError("the outbox refuses an attachment that is not on its list")
        if name in rule.arrays:
            _check_arrays(name, tensors, rule.arrays[name], inputs)
        elif name in rule.own_weights:
            continue  # held against the study's own layout
        elif name not in inputs:
            raise WeightsError(f"the outbox refuses {name}", why="the task brought nothing like it")
        else:
            _check_same(name, tensors, inputs[name])
    wanted = (*rule.like_input, *rule.own_weights)
    if missing := [name for name in wanted if name not in attachments]:
        raise WeightsError(f"the outbox refuses the result: {missing[0]} is missing")


def _check_features(rule: StageRule, result: TaskResult, study: Study) -> None:
    """Raise WeightsError where single pictures are told of and the protocol does not say so."""
    told = [
        (name, key)
        for name, tensors in result.tensors.items()
        for key in tensors
        if name in rule.arrays and rule.arrays[name][key].of_features
    ]
    protocol = study.protocol
    if told and not (isinstance(protocol, ExpertsProtocol) and protocol.told == "features"):
        raise WeightsError(
            f"the outbox refuses {told[0][0]}: {told[0][1]} tells of single pictures",
            why="the study that was consented to asks for none",
        )
    pictures = result.body.get("pictures", 0)
    counts = {
        len(array) if key == "view" else array.shape[1]
        for name, key in told
        if (array := result.tensors[name][key]).ndim == (1 if key == "view" else 3)
    }
    if counts != ({pictures} if told else set()) or bool(told) != bool(pictures):
        raise WeightsError("the outbox refuses what tells of single pictures: their count differs")


def _check_words(result: TaskResult, study: Study, *, site: str) -> None:
    """Raise DataError for words that are not for the views that the study says."""
    told: Mapping[str, str] = result.body.get("words", {})
    if not told:
        return
    protocol, mapped = study.protocol, study.roster.labels.get(site, {})
    views = protocol.data.views if isinstance(protocol, ExpertsProtocol) else ()
    if any(view not in views or mapped.get(word, word) != view for word, view in told.items()):
        raise DataError("the outbox refuses words that the study does not map so")


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
        if ((array > 0) & (array < rule.least_count)).any():
            raise WeightsError(f"the outbox refuses {name}: {key} holds a count that is too small")
        if rule.votes_on is not None:
            asked = votes_asked(rule.votes_on, inputs)
            if not asked or array.shape != (asked,) or (array > 1).any():
                raise WeightsError(f"the outbox refuses {name}: {key} is not one vote a row")
