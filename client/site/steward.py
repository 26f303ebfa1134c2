"""The steward: has scans, keys, consents and the outbox, and no network.

It obeys only envelopes that the coordinator's key signed, the one fixed at enrolment, whoever
delivers them. Before a task starts it checks, in this order: signature, site, consent, nonce, and
for what is not finished yet: whether it is still waited for. A finished Update is returned again,
however late, and never computed twice, and nobody gets a second one for other inputs: who could
ask again with one voxel changed would learn from every answer.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

from vitrael.client.site.consent import Agreement, find_agreement
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.journal import Clock, Journal
from vitrael.client.site.outbox import Outbox
from vitrael.client.site.progress import ProgressFile
from vitrael.client.site.refusals import Refusals
from vitrael.client.site.settings import SiteSettings
from vitrael.client.site.store import Finished, Store
from vitrael.client.site.tasks import TASKS, SiteContext, TaskRunner
from vitrael.core.data.cohort import Cohort, find_cohort
from vitrael.core.errors import (
    AuthError,
    CohortError,
    ConsentError,
    EnvelopeError,
    VitraelError,
    storage_error,
)
from vitrael.core.messages import ENVELOPE, Parcel, StageName, Task
from vitrael.core.study import Study
from vitrael.privacy.envelope import open_task, open_task_attachments
from vitrael.privacy.keys import KeyPair, load_public_keys

logger = logging.getLogger(__name__)

CLOCK_SLACK: Final = timedelta(hours=1)
"""How far two hospitals' clocks may differ, and how long a parcel may lie in a queue beyond its
deadline: an hour is more than either takes, and less than a coordinator takes to ask again."""

_IN_ROUNDS: Final[frozenset[StageName]] = frozenset({"codec", "teacher"})


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
    ) -> None:
        """Open keys, store and journal.

        Raises AuthError or StorageError when they cannot be used, or when the journal is not whole.
        """
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._load_cohort = load_cohort
        self._keys = KeyPair.load(settings.keys)
        self._coordinator = load_public_keys(settings.coordinator)
        self._store = Store(settings.store, updates=settings.updates)
        self._progress = ProgressFile(settings.progress, clock=clock)
        journal = Journal(settings.journal, clock=clock, witness=self._store)
        try:
            journal.demand_whole()
        except VitraelError:
            self._store.close()
            raise
        self._outbox = Outbox(
            journal,
            site=settings.name,
            keys=self._keys,
            coordinator=self._coordinator,
            limits=settings.document.limits,
        )
        self._refusals = Refusals(self._outbox.note_refusal, clock=clock)
        self._context: SiteContext | None = None

    def close(self) -> None:
        """Write down what refusals were only counted, and close the store."""
        try:
            self._refusals.settle()
        except VitraelError as error:
            logger.error("refusals stand in no journal: %s", error.sentence())  # noqa: TRY400
        finally:
            self._store.close()

    def answer(self, parcel: Parcel) -> dict[str, bytes]:
        """Return the sealed and signed reply to a parcel.

        A task that cannot be done is answered with status ``refused`` (no consent, no right) or
        ``failed`` and one sentence. Raises EnvelopeError for what deserves no reply at all (whoever
        refuses its bearer then calls ``note_refusal``), and StorageError when not even the journal
        can be written. Of ``parcel`` the envelope alone is read until its signature holds.
        """
        task = self._open(parcel)
        self._refusals.settle()
        try:
            finished = self._finish(task, parcel)
            return self._outbox.send(task, finished)
        except AuthError as error:
            logger.warning("refused: round %d of %s", task.round + 1, task.stage)
            return self._outbox.send_word(task, status="refused", reason=error.sentence())
        except VitraelError as error:
            reason = error.sentence()
        except OSError as error:
            reason = storage_error("the task's work", error).sentence()
        except Exception as error:  # noqa: BLE001 - the process boundary: logged, told by type alone
            reason = self._explain_unexpected(error)
        logger.warning("failed: round %d of %s", task.round + 1, task.stage)
        return self._outbox.send_word(task, status="failed", reason=reason)

    def note_refusal(self, reason: str, size: int) -> None:
        """Write down why a parcel got no signed reply, and the bytes that its bearer gets instead.

        The only place from which such a refusal reaches the journal, a line a minute at most (see
        ``refusals``). Raises StorageError when the journal cannot be written.
        """
        self._refusals.note(reason, size)

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
        agreement = find_agreement(
            task, self._store, site=self._settings.name, own=self._keys.public, now=now
        )
        if not self._store.claim_nonce(task, now=now):
            raise EnvelopeError(
                "the task's nonce was used before by another task",
                why="a nonce belongs to one task alone",
                fix="send the task with a fresh nonce",
            )
        # A consent is always the newest that was given; all else is computed once.
        done = None if task.stage == "consent" else self._store.find_finished(task)
        if done is not None:
            return done
        _check_fresh(task, now=now)
        self._check_first(task)
        inputs = open_task_attachments(task, parcel, site=self._keys)
        self._progress.begin(task.stage, task.round)
        context = self._prepare_context(agreement)
        result = self._tasks[task.stage](task, inputs, context)
        finished = self._outbox.check(task, result, inputs)
        if task.stage != "consent":
            self._store.finish(task, finished, now=self._clock())
        return finished

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
            for folder in (records.parent, records):
                folder.mkdir(mode=0o700, exist_ok=True)
            context = SiteContext(
                settings=self._settings,
                study=agreement.study,
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
        frames = traceback.extract_tb(error.__traceback__)
        places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
        logger.error("unexpected %s in %s", type(error).__name__, places)
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
