"""Asking all sites for one thing, and believing only what each of them signed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrael.core.digest import Digest
from vitrael.core.errors import DataError, QuorumError, VitraelError, WeightsError
from vitrael.core.messages import ENVELOPE, Parcel, Reply, StageName, Task
from vitrael.core.weights import Tensors
from vitrael.privacy.audit.tallies import check_tally
from vitrael.privacy.envelope import attachment_digests, make_task_parcel, open_reply_parcel
from vitrael.server.studies.run import StudyRun

_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """One site's signed reply; its tensors are in the object store."""

    reply: Reply
    tensors: Mapping[str, Digest]
    envelope: bytes
    """The reply as the site signed it."""

    def digest_of(self, name: str) -> Digest:
        """Return the digest of an attachment; raise WeightsError when the reply has none."""
        if name not in self.tensors:
            raise WeightsError(
                f"the reply of {self.reply.site} is refused", why=f"it brings no {name}"
            )
        return self.tensors[name]


@dataclass(slots=True)
class Answers:
    """Who answered, in the order of the roster, and who did not and why."""

    by_site: dict[str, Answer] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def bodies(self) -> dict[str, dict[str, Any]]:
        """What each site said."""
        return {site: dict(answer.reply.body) for site, answer in self.by_site.items()}

    @property
    def envelopes(self) -> dict[str, str]:
        """What each site signed, for others to check."""
        return {site: answer.envelope.decode() for site, answer in self.by_site.items()}

    @property
    def details(self) -> dict[str, Any]:
        """What the participation record keeps."""
        return {"absent": self.absent} if self.absent else {}


def ask_sites(
    run: StudyRun,
    stage: StageName,
    attachments: Mapping[str, Tensors],
    *,
    round_index: int = 0,
    check: Callable[[Answer], object] | None = None,
    quorum: int | None = None,
) -> Answers:
    """Return every site's answer to one task.

    A reply counts when its signature, its digests and its reference to the task hold, its status
    is "done", and ``check`` raises no error for it: what cannot be used later must not be kept.
    Raises QuorumError, which names the absent sites and their reasons, when fewer sites than the
    quorum answer, that of the study unless another is given.
    """
    tasks = _make_tasks(run, stage, round_index, attachments)
    parcels = {
        site: make_task_parcel(task, attachments, coordinator=run.keys, site=run.members[site])
        for site, task in tasks.items()
    }
    arrived: dict[str, Answer] = {}
    absent: dict[str, str] = {}
    deadline_s = run.study.protocol.federation.deadline_s
    for site, parcel in run.exchange.send(parcels, deadline_s=deadline_s):
        if isinstance(parcel, str):
            absent[site] = parcel
            continue
        try:
            arrived[site] = _open_answer(run, tasks[site], parcel, check)
        except VitraelError as error:
            absent[site] = error.sentence()
        run.tell(stage, round_index, "answer", done=len(arrived), total=len(tasks))
    answers = Answers({s: arrived[s] for s in run.members if s in arrived}, absent)
    quorum = quorum or run.study.protocol.federation.quorum
    if len(answers.by_site) < quorum:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(absent.items()))
        raise QuorumError(
            f"stage {stage}: {len(answers.by_site)} of {len(tasks)} sites answered, "
            f"{quorum} are needed",
            why=reasons,
            fix="mend what is named, then resume the study",
        )
    return answers


def _make_tasks(
    run: StudyRun, stage: StageName, round_index: int, attachments: Mapping[str, Tensors]
) -> dict[str, Task]:
    """Return the task of each site; they differ in site and nonce alone."""
    attempt = _earlier_attempts(run, stage, round_index)
    return {
        site: Task(
            protocol=run.study.protocol.digest,
            roster=run.roster,
            site=site,
            stage=stage,
            round=round_index,
            attempt=attempt,
            nonce=secrets.token_hex(16),
            issued_utc=run.clock().isoformat(),
            deadline_s=run.study.protocol.federation.deadline_s,
            inputs=attachment_digests(attachments),
        )
        for site in run.members
    }


def _earlier_attempts(run: StudyRun, stage: StageName, round_index: int) -> int:
    """Return how often this round was begun before the attempt that runs now."""
    history = run.ledger.history(run.study.protocol.digest)
    begun = sum((record.key.stage, record.key.round) == (stage, round_index) for record in history)
    return max(0, begun - 1)


def _open_answer(
    run: StudyRun, task: Task, parcel: Parcel, check: Callable[[Answer], object] | None
) -> Answer:
    reply, tensors = open_reply_parcel(parcel, coordinator=run.keys, site=run.members[task.site])
    reply.check_answers(task)
    if reply.status != "done":
        raise VitraelError(f"{reply.status}: {_printable(reply.reason)}")
    stored = {name: run.objects.put_tensors(t) for name, t in tensors.items()}
    answer = Answer(reply, stored, parcel[ENVELOPE])
    if check is not None:
        try:
            check(answer)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                "the answer is malformed",
                why=f"what stage {task.stage} needs is not in it ({type(error).__name__})",
                fix="run the same package version everywhere",
            ) from error
    return answer


def usable_tally(answer: Answer) -> None:
    """Raise DataError for a reply whose body cannot be pooled into Evidence."""
    check_tally(answer.reply.stage, answer.reply.body)


def _printable(text: str) -> str:
    """Return what a site wrote for records and terminals: one line, not too long."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:_LONGEST_REASON]
