"""Asking all sites for one thing, and believing only what each of them signed."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.errors import (
    ConsentError,
    DataError,
    QuorumError,
    StorageError,
    VitraelError,
    WeightsError,
)
from vitrael.core.messages import IN_VOTES, Parcel, Reply, StageName, Task, parcel_size
from vitrael.core.text import one_line
from vitrael.core.weights import Tensors, check_finite
from vitrael.privacy.audit.tallies import check_tally
from vitrael.privacy.envelope import (
    OpenedReply,
    attachment_digests,
    make_task_parcel,
    open_reply_parcel,
)
from vitrael.server.objects import ObjectStore
from vitrael.server.studies.absences import Absence, Kind, find_deadlines, find_not_asked
from vitrael.server.studies.run import StudyRun

_LONGEST_REASON = 500
_SMALL_BYTES: Final = 16 << 20
"""More than any answer takes beside the weights that it brings back: the envelope has 8 MiB."""
_BRINGS: Final[Mapping[StageName, str]] = {
    "codec": "codec",
    "latents": "moments",
    "reid": "encoder",
    "teacher": "denoiser",
    "screening": "votes",
    "rescreening": "votes",
    "expert": "expert",
    "outlooks": "outlooks",
    "averaged": "common",
    "relay": "common",
    "comparison": "counts",
}
"""The one attachment that the answer to a stage may have; the other stages have none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One site's signed reply; its tensors lie on disk until the sites are asked again."""

    reply: Reply
    tensors: Mapping[str, Digest]
    received: ObjectStore
    """Holds the tensors."""
    envelope: bytes
    """The reply as the site signed it."""
    size_bytes: int
    """Of the sealed parcel."""
    seconds: float
    """From when all were asked to when this came."""

    def path(self, name: str) -> Path:
        """Return the file of an attachment; raise WeightsError when the reply has none."""
        return self.received.path(self._digest_of(name))

    def get_tensors(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of an attachment; raise WeightsError when the reply has none."""
        return self.received.get_tensors(self._digest_of(name))

    def _digest_of(self, name: str) -> Digest:
        if name not in self.tensors:
            raise WeightsError(
                f"the reply of {self.reply.site} is refused", why=f"it brings no {name}"
            )
        return self.tensors[name]


@dataclass(slots=True)
class Answers:
    """Who answered, in the order of the roster, and who did not and why."""

    by_site: dict[str, Answer] = field(default_factory=dict)
    absences: dict[str, Absence] = field(default_factory=dict)

    @property
    def absent(self) -> dict[str, str]:
        """The reason of each site that is absent."""
        return {site: absence.reason for site, absence in sorted(self.absences.items())}

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
        kinds = {site: absence.kind for site, absence in sorted(self.absences.items())}
        told = {
            site: {
                "examples": answer.reply.num_examples,
                "bytes": answer.size_bytes,
                "seconds": round(answer.seconds, 3),
                "outputs": dict(answer.tensors),
                "cohort": answer.reply.cohort,
                "package_version": answer.reply.package_version,
            }
            for site, answer in self.by_site.items()
        }
        return {"answers": told, **({"absent": self.absent, "kinds": kinds} if kinds else {})}


@dataclass(frozen=True, slots=True)
class _Asked:
    """One exchange: what was asked of whom, and what an answer is held to."""

    run: StudyRun
    stage: StageName
    tasks: Mapping[str, Task]
    received: ObjectStore
    began: datetime
    most_bytes: int
    earlier: Mapping[str, Mapping[Digest, int]]
    """For each site its updates of other rounds, by digest."""
    check: Callable[[Answer], object] | None


def ask_sites(
    run: StudyRun,
    stage: StageName,
    attachments: Mapping[str, Tensors],
    *,
    round_index: int = 0,
    check: Callable[[Answer], object] | None = None,
    compare: Callable[[Mapping[str, Answer]], Mapping[str, str]] | None = None,
    quorum: int | None = None,
    among: Collection[str] | None = None,
    more_bytes: int = 0,
) -> Answers:
    """Return every site's answer to one task.

    Asked are the members of the roster, or those ``among`` them, whoever else is connected, but for
    those who take no part any more. Each has the time that its canary told, and never more than the
    study's deadline. A reply counts when its size, signature, digests and its reference to the task
    hold, its status is "done", it is no update of another round, and ``check`` raises no error for
    it. ``compare`` sees all that are left and names those to refuse, with the reason. What the
    sites send is kept until they are asked again. Raises QuorumError, which names the absent sites
    and their reasons, when fewer sites than the quorum answer, that of the study unless another is
    given. A round whose result was lost is asked of those who took part in it, and needs them all:
    another result would be one that no site goes on from. An answer may have ``more_bytes`` beyond
    what the task brings.
    """
    again = run.find_lost(stage, round_index)
    wanted = set(run.members if among is None else among)
    absent = find_not_asked(run, stage, again)
    answers = Answers(absences={site: why for site, why in absent.items() if site in wanted})
    for site, reason in answers.absent.items():
        run.tell(stage, round_index, "absent", about={"site": site, "reason": reason})
    needed = 0 if again is None else len(wanted & set(again.participants))
    wanted -= answers.absences.keys()
    deadlines = {site: d for site, d in find_deadlines(run, stage).items() if site in wanted}
    tasks = _make_tasks(run, stage, round_index, attachments, deadlines)
    asked = _Asked(
        run=run,
        stage=stage,
        tasks=tasks,
        received=_empty_store(run.home / "received"),
        began=run.clock(),
        most_bytes=_most_bytes(stage, attachments) + more_bytes,
        earlier=_earlier_updates(run, stage, round_index, attachments),
        check=check,
    )
    arrived = _exchange(asked, attachments, deadlines, answers.absences)
    for site, reason in (compare(arrived) if compare is not None else {}).items():
        del arrived[site]
        run.journal.refused(tasks[site], reason)
        answers.absences[site] = Absence("outlier", reason)
        run.tell(stage, round_index, "absent", about={"site": site, "reason": reason})
    answers.by_site = arrived
    quorum = run.study.protocol.federation.quorum if quorum is None else quorum
    demand_quorum(run, stage, answers, quorum=max(quorum, needed))
    return answers


def demand_quorum(run: StudyRun, stage: StageName, answers: Answers, *, quorum: int) -> None:
    """Raise QuorumError, which names the absent sites and their reasons, when too few answered."""
    if len(answers.by_site) < quorum:
        asked = len(answers.by_site.keys() | answers.absences.keys())
        reasons = "; ".join(f"{site}: {why}" for site, why in answers.absent.items())
        reasons = reasons.replace(". To do: ", "; ")  # a site's remedy stays; one To do is said
        raise QuorumError(
            f"stage {stage}: {len(answers.by_site)} of {asked} sites answered, {quorum} are needed",
            why=reasons,
            fix=f"mend what is named, then run `vitrael study start {run.study.protocol.name}`",
            absences={k: v for k, v in answers.details.items() if k in {"absent", "kinds"}},
        )


def _exchange(
    asked: _Asked,
    attachments: Mapping[str, Tensors],
    deadlines: Mapping[str, float],
    absences: dict[str, Absence],
) -> dict[str, Answer]:
    """Send every task, return the answers that count, and write down why the others do not."""
    run, tasks = asked.run, asked.tasks
    arrived: dict[str, Answer] = {}
    round_index = next((task.round for task in tasks.values()), 0)

    def make(site: str) -> Parcel:
        parcel = make_task_parcel(
            tasks[site], attachments, coordinator=run.keys, site=run.members[site]
        )
        run.journal.asked(tasks[site], parcel)
        size, deadline_s = parcel_size(parcel), deadlines[site]
        about: dict[str, str | float] = {"site": site, "bytes": size, "deadline_s": deadline_s}
        run.tell(asked.stage, round_index, "asked", about=about)
        return parcel

    parcels = {site: partial(make, site) for site in tasks}
    for site, came in run.exchange.send(parcels, deadline_s=deadlines) if parcels else ():
        seconds = max(0.0, (run.clock() - asked.began).total_seconds())
        result = _settle(asked, site, came, seconds=seconds)
        size = 0 if isinstance(came, str) else parcel_size(came)
        about: dict[str, str | float] = {"site": site, "seconds": round(seconds, 3), "bytes": size}
        if isinstance(result, Absence):
            absences[site] = result
            about["reason"] = result.reason
            run.tell(asked.stage, round_index, "absent", about=about)
        else:
            arrived[site] = result
            done, total = len(arrived), len(tasks)
            run.tell(asked.stage, round_index, "answer", done=done, total=total, about=about)
    return {site: arrived[site] for site in run.members if site in arrived}


def _settle(asked: _Asked, site: str, came: Parcel | str, *, seconds: float) -> Answer | Absence:
    """Return the answer that a parcel holds, or why it is none; the journal has it first.

    Raises StorageError when the coordinator's own disk fails: that is no site's failing.
    """
    task, journal = asked.tasks[site], asked.run.journal
    if isinstance(came, str):
        journal.missed(task, came)
        return Absence("silent", came)
    try:
        opened = _open_reply(asked, task, came)
    except VitraelError as error:
        journal.refused(task, error.sentence(), size=parcel_size(came))
        return Absence("unusable", error.sentence())
    journal.received(task, opened, came)
    if opened.reply.status != "done":
        kind: Kind = "declined" if opened.reply.status == "refused" else "failed"
        reason = one_line(opened.reply.reason, _LONGEST_REASON)
        return Absence(kind, f"{opened.reply.status}: {reason}")
    try:
        return _open_answer(asked, opened, size_bytes=parcel_size(came), seconds=seconds)
    except StorageError:
        raise
    except VitraelError as error:
        journal.refused(task, error.sentence())
        return Absence("unusable", error.sentence())


def _make_tasks(
    run: StudyRun,
    stage: StageName,
    round_index: int,
    attachments: Mapping[str, Tensors],
    deadlines: Mapping[str, float],
) -> dict[str, Task]:
    """Return the task of each site; they differ in site, nonce and deadline alone."""
    attempt = _earlier_attempts(run, stage, round_index)
    head, inputs = run.journal.head(), attachment_digests(attachments)
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
            deadline_s=deadline_s,
            inputs=inputs,
            journal=head,
            yours=run.journal.head_of(site),
        )
        for site, deadline_s in deadlines.items()
    }


def _most_bytes(stage: StageName, attachments: Mapping[str, Tensors]) -> int:
    """Return how large an answer may be: as the weights that it was asked to change, and a bit."""
    like = attachments.get(_BRINGS.get(stage, ""), {})
    return _SMALL_BYTES + sum(array.nbytes for array in like.values())


def _earlier_updates(
    run: StudyRun, stage: StageName, round_index: int, attachments: Mapping[str, Tensors]
) -> dict[str, dict[Digest, int]]:
    """Return the updates that each site gave in other rounds, but for what is sent now anyway."""
    if stage in IN_VOTES:  # those of two rounds may well be equal
        return {}
    sent = set(attachment_digests(attachments).values())
    earlier: dict[str, dict[Digest, int]] = {}
    for record in run.finished():
        if record.key.stage != stage or record.key.round == round_index:
            continue
        for site, told in record.details.get("answers", {}).items():
            for digest in set(told["outputs"].values()) - sent:
                earlier.setdefault(site, {})[Digest(digest)] = record.key.round
    return earlier


def _earlier_attempts(run: StudyRun, stage: StageName, round_index: int) -> int:
    """Return how often this round was begun before the attempt that runs now."""
    begun = sum((r.key.stage, r.key.round) == (stage, round_index) for r in run.history())
    return max(0, begun - 1)


def _open_reply(asked: _Asked, task: Task, parcel: Parcel) -> OpenedReply:
    """Return what the site signed for this very task; nothing too large is opened."""
    if (size := parcel_size(parcel)) > asked.most_bytes:
        raise WeightsError(
            f"the answer of {task.site} is refused",
            why=f"it has {size:,} bytes, and no more than {asked.most_bytes:,} can be meant",
        )
    run = asked.run
    return open_reply_parcel(parcel, task, coordinator=run.keys, site=run.members[task.site])


def _open_answer(asked: _Asked, opened: OpenedReply, *, size_bytes: int, seconds: float) -> Answer:
    reply, tensors = opened.reply, opened.tensors
    if reply.package_version is not None:
        demand_admitted(asked.run, reply.site, reply.package_version)
    if strange := sorted(tensors.keys() - {_BRINGS.get(asked.stage)}):
        raise WeightsError(
            f"the answer of {reply.site} is refused", why=f"{strange[0]} was not asked for"
        )
    for arrays in tensors.values():
        check_finite(arrays)
    for digest in reply.outputs.values():
        if digest in asked.earlier.get(reply.site, {}):
            number = asked.earlier[reply.site][digest] + 1
            raise WeightsError(
                f"the update of {reply.site} is refused", why=f"it is that of round {number} again"
            )
    stored = {name: asked.received.put_tensors(t) for name, t in tensors.items()}
    answer = Answer(reply, stored, asked.received, opened.envelope, size_bytes, seconds)
    if asked.check is not None:
        try:
            asked.check(answer)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise DataError(
                "the answer is malformed",
                why=f"what stage {asked.stage} needs is not in it ({type(error).__name__})",
                fix="run the same package version everywhere",
            ) from error
    return answer


def _empty_store(folder: Path) -> ObjectStore:
    """Return a store for what is sent now; what was sent before is gone: nothing names it."""
    shutil.rmtree(folder, ignore_errors=True)
    return ObjectStore(folder)


def demand_admitted(run: StudyRun, site: str, version: str) -> None:
    """Raise ConsentError, which names the site, unless the study admits its version."""
    federation = run.study.protocol.federation
    if not federation.admits(version):
        raise ConsentError(
            f"version {version} of the package at {site} may take no part",
            why=f'protocol.federation.software is "{federation.software}"',
            fix="install a version that the study admits, and consent again",
        )


def usable_tally(answer: Answer) -> None:
    """Raise DataError for a reply whose body cannot be pooled into Evidence."""
    check_tally(answer.reply.stage, answer.reply.body)
