"""The steward: has scans, keys, consents and the outbox, and no network.

It obeys only envelopes that the coordinator's key signed, the one fixed at enrollment, whoever
delivers them. Before a task starts it checks, in this order: signature, site, consent, nonce, and
for what is not finished yet: whether it is still waited for. A finished Update is returned again,
however late, and never computed twice, and nobody gets a second one for other inputs: who could
ask again with one voxel changed would learn from every answer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from vitrael.client.site.backup.restored import demand_confirmed
from vitrael.client.site.ceilings import check_votes
from vitrael.client.site.checkpoints import forget_checkpoints
from vitrael.client.site.consent import Agreement, standing_agreements
from vitrael.client.site.control import Control
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.memory import give_back_memory
from vitrael.client.site.outbox import Layouts, Outbox
from vitrael.client.site.permits import Permits
from vitrael.client.site.progress import ProgressFile
from vitrael.client.site.refusals import Refusals
from vitrael.client.site.rules import count_asked
from vitrael.client.site.schedule import Hours, Local, local_time
from vitrael.client.site.settings import SiteSettings
from vitrael.client.site.store import Finished, Store
from vitrael.client.site.tasks import TASKS, SiteContext, TaskRunner, study_layouts
from vitrael.client.site.waiting import NEVER_HELD, POLL_S, Waiting, demand_not_rejected
from vitrael.core.data.cohort import Cohort, find_cohort
from vitrael.core.errors import (
    AuthError,
    CohortError,
    ConsentError,
    EnvelopeError,
    TaskStopped,
    VitraelError,
    storage_error,
)
from vitrael.core.logs import place_of
from vitrael.core.messages import ENVELOPE, IN_VOTES, Parcel, StageName, Task
from vitrael.core.study import Study
from vitrael.privacy.envelope import open_task, open_task_attachments
from vitrael.privacy.journal import Clock, Journal
from vitrael.privacy.keys import KeyPair, load_public_keys

logger = logging.getLogger(__name__)

CLOCK_SLACK: Final = timedelta(hours=1)
"""How far two hospitals' clocks may differ, and how long a parcel may lie in a queue beyond its
deadline: an hour is more than either takes, and less than a coordinator takes to ask again."""

LOOK_EVERY: Final = timedelta(hours=1)
"""A task is begun where the whole journal was looked at since; each line looks at the last one."""

_IN_ROUNDS: Final[frozenset[StageName]] = frozenset(
    {"codec", "reid", "teacher", "averaged", "relay", *IN_VOTES}
)


def open_cohort(settings: SiteSettings, study: Study) -> Cohort:
    """Return the site's scans under a study, parted with the site's own key.

    Raises CohortError when there are none that fit, and when one is of a patient who has withdrawn:
    a withdrawal was not finished, or a backup has undone it.
    """
    protocol = study.protocol
    folder = find_cohort(settings.cohorts, protocol.data, name=settings.document.cohort)
    cohort = Cohort.open(folder, protocol, key=settings.read_split_key())
    if cohort.subjects & Home(settings.home).read_withdrawn():
        # A site sends the sentence: it does not say that somebody has withdrawn.
        raise CohortError(
            "the cohort is not ready",
            why="a command that changes it was not finished, or it is older than the site's home",
            fix="take its folder in again: vitrael site ingest",
        )
    return cohort


class Steward:
    """Answers parcels, one at a time."""

    def __init__(
        self,
        settings: SiteSettings,
        *,
        clock: Clock,
        tasks: Mapping[StageName, TaskRunner] = TASKS,
        load_cohort: Callable[[SiteSettings, Study], Cohort] = open_cohort,
        stopping: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
        local: Local = local_time,
        layouts: Layouts | None = study_layouts,
        keys: KeyPair | None = None,
    ) -> None:
        """Open store and journal, and the keys unless they are given.

        ``layouts`` says what weights a study has; None only for tasks that train none of its own.
        Raises AuthError or StorageError when they cannot be used, or when the journal is not whole.
        """
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._load_cohort = load_cohort
        self._keys = keys or settings.load_keys()
        self._coordinator = load_public_keys(settings.coordinator)
        self._store = Store(settings.store, updates=settings.updates)
        self._progress = ProgressFile(settings.progress, clock=clock)
        self._journal = Journal(settings.journal, clock=clock, witness=self._store)
        try:
            self._journal.demand_whole()
            for owed in Control(self._store, self._journal, clock=clock).settle():
                logger.warning("written down after the fact: %s", owed)
        except VitraelError:
            self._store.close()
            raise
        self._outbox = Outbox(
            self._journal,
            site=settings.name,
            keys=self._keys,
            coordinator=self._coordinator,
            limits=settings.document.limits,
            layouts=layouts,
        )
        self._refusals = Refusals(self._outbox.note_refusal, clock=clock)
        self._local = local
        self._permits = Permits(
            settings,
            self._store,
            own=self._keys.public,
            clock=clock,
            left_bytes=self._outbox.bytes_left_for,
        )
        self._waiting = Waiting(self._permits, clock=clock, sleep=sleep, stopping=stopping)
        self._context: SiteContext | None = None
        self._worked = False
        self._found_whole = clock()

    def close(self) -> None:
        """Write down what refusals were only counted, and close the store."""
        try:
            self._refusals.settle()
        except VitraelError as error:
            logger.error("refusals stand in no journal: %s", error)  # noqa: TRY400
        finally:
            self._store.close()

    def answer(self, parcel: Parcel) -> dict[str, bytes]:
        """Return the sealed and signed reply to a parcel.

        A task that cannot be done is answered with status ``refused`` (no consent, no right) or
        ``failed`` and one sentence. Raises TaskStopped when the process is to end before the task
        is finished, EnvelopeError for what deserves no reply at all (whoever
        refuses its bearer then calls ``note_refusal``), and StorageError when not even the journal
        can be written. Of ``parcel`` the envelope alone is read until its signature holds.
        """
        task = self._open(parcel)
        self._demand_whole()
        self._outbox.demand_not_replayed(task)
        self._outbox.demand_same_past(task)
        demand_confirmed(self._settings.home, task)
        self._refusals.settle()
        try:
            finished = self._finish(task, parcel)
            return self._outbox.send(task, finished, leaving=lambda: self._leaving(task))
        except TaskStopped:
            raise  # nobody is answered: the task goes on when it is sent again
        except AuthError as error:
            sentence = error.sentence()
            logger.warning(
                "refused: %s",
                sentence,
                extra={"stage": task.stage, "round": task.round + 1, "reason": sentence},
            )
            return self._outbox.send_word(task, status="refused", reason=sentence)
        except VitraelError as error:
            reason = error.sentence()
        except OSError as error:
            reason = storage_error("the task's work", error).sentence()
        except Exception as error:  # noqa: BLE001 - the process boundary: logged, told by type alone
            reason = self._explain_unexpected(error)
        logger.warning(
            "failed: %s",
            reason,
            extra={"stage": task.stage, "round": task.round + 1, "reason": reason},
        )
        return self._outbox.send_word(task, status="failed", reason=reason)

    def consent_ends(self) -> dict[str, datetime]:
        """Return until when each consent holds that was not taken back; raise as the store does."""
        own = self._keys.public
        given = [each.consent for each in standing_agreements(self._store, own=own)]
        return {one.protocol: datetime.fromisoformat(one.expires_utc) for one in given}

    def rest(self) -> None:
        """Give the memory of a task back once it is answered; what is kept warm stays."""
        if self._worked:
            give_back_memory()
            self._worked = False

    def note_refusal(self, reason: str, size: int) -> None:
        """Write down why a parcel got no signed reply, and the bytes that its bearer gets instead.

        The only place from which such a refusal reaches the journal, a line a minute at most (see
        ``refusals``). Raises StorageError when the journal cannot be written.
        """
        self._refusals.note(reason, size)

    def _demand_whole(self) -> None:
        """Raise StorageError unless the whole journal was whole within the last hour."""
        now = self._clock()
        if not timedelta(0) <= now - self._found_whole < LOOK_EVERY:
            self._journal.demand_whole()
            self._found_whole = now

    def _open(self, parcel: Parcel) -> Task:
        task = open_task(parcel.get(ENVELOPE, b""), self._coordinator)
        if task.site != self._settings.name:
            raise EnvelopeError(
                f"the task is for site {task.site}",
                why=f"this is site {self._settings.name}",
                fix="send it to the site that it names",
            )
        return task

    def _finish(self, task: Task, parcel: Parcel) -> Finished:
        now = self._clock()
        agreement = self._permits.demand(task)
        if not self._store.claim_nonce(task, now=now):
            raise EnvelopeError(
                "the task's nonce was used before by another task",
                why="a nonce belongs to one task alone",
                fix="send the task with a fresh nonce",
            )
        # A consent is always the newest that was given; all else is computed once.
        done = None if task.stage == "consent" else self._store.find_finished(task)
        if done is None:
            _check_fresh(task, now=now)
            self._check_first(task)
            agreement = self._wait_for_hours(task, agreement)
            done = self._compute(task, parcel, agreement)
        self._outbox.demand_sent_before(task, done, cohort=agreement.consent.cohort.digest)
        self._worked |= bool(done.tensors)
        if self._settings.document.release == "manual" and task.stage not in NEVER_HELD:
            self._waiting.for_release(task, done, self._store, self._journal)
        self._demand_leave(task)
        return done

    def _compute(self, task: Task, parcel: Parcel, agreement: Agreement) -> Finished:
        inputs = open_task_attachments(task, parcel, site=self._keys)
        self._outbox.demand_weights(task, inputs, study=agreement.study)
        asked, given = count_asked(task.stage, inputs), self._store.votes_given(task)
        check_votes(task, agreement.study, asked=asked, given=given)
        self._progress.begin(task.stage, task.round)
        context = self._prepare_context(agreement)
        context.report = self._watch(task)
        self._worked = True
        try:
            result = self._tasks[task.stage](task, inputs, context)
        except ConsentError:
            if self._permits.is_taken_back(task):
                forget_checkpoints(context.records)  # nobody may go on from what was learned
            raise
        finished = self._outbox.check(task, result, inputs, study=agreement.study)
        if task.stage != "consent":
            finished = replace(finished, cohort=agreement.consent.cohort.digest)
            self._store.finish(task, finished, now=self._clock())
            forget_checkpoints(context.records)
        return finished

    def _wait_for_hours(self, task: Task, agreement: Agreement) -> Agreement:
        """Return the agreement that stands once the site computes; a consent waits for nothing."""
        schedule = self._settings.document.schedule
        if schedule is None or task.stage == "consent":
            return agreement
        self._waiting.for_hours(task, Hours.of(schedule), local=self._local)
        return self._permits.demand(task)

    def _demand_leave(self, task: Task) -> None:
        """Raise ConsentError unless a result may leave now."""
        if task.stage not in NEVER_HELD:
            demand_not_rejected(task, self._store)
        self._permits.demand_still(task)

    @contextmanager
    def _leaving(self, task: Task) -> Iterator[None]:
        """Hold the store while a result goes: an act of the operator comes before it or after it.

        Sealing took a while: what was done in the meantime is heard.
        """
        with self._store.acting():
            self._demand_leave(task)
            yield

    def _watch(self, task: Task) -> Callable[[int, int], None]:
        """Return what a task reports to.

        It raises TaskStopped when the process is to end and something is left to be done, and
        ConsentError when no consent covers it any more.
        """
        looked_s = -math.inf

        def report(done: int, total: int) -> None:
            nonlocal looked_s
            self._progress.report(done, total)
            if done < total:
                self._waiting.demand_running()
            now_s = time.monotonic()
            if now_s - looked_s >= POLL_S:
                looked_s = now_s
                self._permits.demand_still(task)

        return report

    def _check_first(self, task: Task) -> None:
        """Raise ConsentError when the round has its answer, or is none of the stage's.

        A consent may be asked for again.
        """
        if task.stage == "consent":
            return
        if task.round and task.stage not in _IN_ROUNDS:
            raise ConsentError(
                f"stage {task.stage} has one round alone",
                why=f"the task asks for round {task.round + 1}",
                fix="ask for it once a study",
            )
        if self._store.has_other_answer(task):
            raise ConsentError(
                f"round {task.round + 1} of {task.stage} was answered already for other inputs",
                why="one answer a round is what this site consented to",
                fix="resume the study from its records, or propose a new study",
            )

    def _prepare_context(self, agreement: Agreement) -> SiteContext:
        """Return the warm context of this protocol and roster; that of others is let go."""
        context, consent = self._context, agreement.consent
        records = self._settings.records_of(protocol=consent.protocol, roster=consent.roster)
        if context is None or context.records != records:
            self._context = None  # gone before the next one fills the memory
            for folder in (records.parent, records):
                folder.mkdir(mode=0o700, exist_ok=True)
            context = SiteContext(
                settings=self._settings,
                study=agreement.study,
                members=agreement.members,
                consent=agreement.envelope,
                keys=self._keys,
                records=records,
                load_cohort=self._load_cohort,
                report=self._progress.report,
            )
            self._context = context
        context.study, context.consent = agreement.study, agreement.envelope
        return context

    def _explain_unexpected(self, error: Exception) -> str:
        """Return a sentence with the error's type; its place goes to the log, its text nowhere."""
        told = {"error": type(error).__name__, "place": place_of(error)}
        logger.error("unexpected %s in %s", told["error"], told["place"], extra=told)
        return VitraelError(
            f"the task failed at site {self._settings.name}",
            why=f"an unexpected {type(error).__name__}",
            fix=f"read {self._settings.log.name} at the site",
        ).sentence()


def _check_fresh(task: Task, *, now: datetime) -> None:
    """Raise EnvelopeError for a task that nobody waits for, or that comes from the future."""
    age_s = (now - datetime.fromisoformat(task.issued_utc)).total_seconds()
    slack_s = CLOCK_SLACK.total_seconds()
    if age_s > task.deadline_s + slack_s:
        raise EnvelopeError(
            "the task is too old to be begun",
            why=f"it was issued at {task.issued_utc} with {task.deadline_s:g} s to answer it",
            fix="ask again with a new task; if this one is new, set the clocks of both sides",
        )
    if age_s < -slack_s:
        raise EnvelopeError(
            "the task was issued in the future",
            why=f"it says {task.issued_utc} and this site's clock {now.isoformat()}",
            fix="set the clocks of both sides",
        )
