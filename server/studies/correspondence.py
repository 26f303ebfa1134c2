"""Asking all sites for one thing, and believing only what each of them signed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrael.core.digest import Digest
from vitrael.core.errors import QuorumError, VitraelError, WeightsError
from vitrael.core.messages import Parcel, Reply, StageName, Task
from vitrael.core.weights import Tensors
from vitrael.privacy.envelope import attachment_digests, make_task_parcel, open_reply_parcel
from vitrael.server.studies.run import StudyRun


@dataclass(frozen=True, slots=True)
class Answer:
    """One site's signed reply; its tensors are in the object store."""

    reply: Reply
    tensors: Mapping[str, Digest]

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
    def details(self) -> dict[str, Any]:
        """What the participation record keeps."""
        return {"absent": self.absent} if self.absent else {}


def ask_sites(
    run: StudyRun,
    stage: StageName,
    attachments: Mapping[str, Tensors],
    *,
    round_index: int = 0,
) -> Answers:
    """Return every site's answer to one task.

    A reply counts when its signature, its digests and its reference to the task hold and its
    status is "done". Raises QuorumError, which names the absent sites and their reasons, when
    fewer sites than the quorum answer.
    """
    tasks = {
        site: Task(
            protocol=run.study.protocol.digest,
            roster=run.roster,
            site=site,
            stage=stage,
            round=round_index,
            nonce=secrets.token_hex(16),
            issued_utc=run.clock().isoformat(),
            deadline_s=run.study.protocol.federation.deadline_s,
            inputs=attachment_digests(attachments),
        )
        for site in run.members
    }
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
            arrived[site] = _open_answer(run, tasks[site], parcel)
        except VitraelError as error:
            absent[site] = error.sentence()
        run.tell(stage, round_index, "answer", done=len(arrived), total=len(tasks))
    answers = Answers({s: arrived[s] for s in run.members if s in arrived}, absent)
    quorum = run.study.protocol.federation.quorum
    if len(answers.by_site) < quorum:
        reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(absent.items()))
        raise QuorumError(
            f"stage {stage}: {len(answers.by_site)} of {len(tasks)} sites answered, "
            f"{quorum} are needed",
            why=reasons,
            fix="mend what is named, then resume the study",
        )
    return answers


def _open_answer(run: StudyRun, task: Task, parcel: Parcel) -> Answer:
    reply, tensors = open_reply_parcel(parcel, coordinator=run.keys, site=run.members[task.site])
    reply.check_answers(task)
    if reply.status != "done":
        raise VitraelError(f"{reply.status}: {reply.reason}")
    return Answer(reply, {name: run.objects.put_tensors(t) for name, t in tensors.items()})
