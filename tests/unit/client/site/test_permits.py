"""What no consent covers is refused before it starts, in one sentence for both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING
from weakref import ref

import pytest

from tests.factories.cohort import write_cohort
from vitrael.client.site.consent import open_agreement
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.client.site.store import Store
from vitrael.client.site.tasks import TaskResult
from vitrael.core.data.manifest import MANIFEST_NAME, read_manifest, write_manifest
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import ConsentError, TaskStopped
from vitrael.privacy.keys import KeyPair

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.client.site.steward import Steward
    from vitrael.client.site.tasks import SiteContext
    from vitrael.core.messages import Task
    from vitrael.core.weights import Tensors

Spoil = Callable[["Home", pytest.MonkeyPatch], "Task"]


def no_consent(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    return home.task(protocol=digest_bytes(b"a study that nobody read"))


def changed_study(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    """Put another study beside the consent, in its place in the store."""
    task = home.task()
    protocol = home.study.protocol.model_copy(update={"purpose": "Something else."})
    study = home.study.model_copy(update={"protocol": protocol}).model_dump(mode="json")
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        kept = store.find_consents(task.protocol)[task.roster]
        store.save_consent(
            dataclasses.replace(kept, study=study),
            protocol=task.protocol,
            roster=task.roster,
            given_utc=home.clock().isoformat(),
        )
    return task


def other_roster(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    return home.task(roster=digest_bytes(b"one site more"))


def expired(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    home.clock.advance(days=90)
    return home.task()


def one_round_too_many(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    return home.task(round=2)


def other_version(home: Home, patch: pytest.MonkeyPatch) -> Task:
    patch.setattr("vitrael.client.site.consent.package_version", lambda: "999")
    return home.task()


def other_lock(home: Home, patch: pytest.MonkeyPatch) -> Task:
    patch.setattr("vitrael.client.site.consent.lock_digest", lambda: digest_bytes(b"newer"))
    return home.task()


def changed_cohort(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    path = home.settings.cohorts / "main" / MANIFEST_NAME
    manifest = read_manifest(path)
    write_manifest(manifest.model_copy(update={"items": manifest.items[1:], "version": 2}), path)
    return home.task()


def another_cohort(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    main = home.settings.cohorts / "main"
    main.rename(main.with_name("renamed"))
    return home.task()


def withdrawn(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    home.control().stop(home.study.protocol.digest)
    return home.task()


def paused(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    home.control().pause()
    return home.task()


def left(home: Home, _patch: pytest.MonkeyPatch) -> Task:
    home.control().leave()
    return home.task()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_consent, "has given no consent to this protocol"),
        (changed_study, "says something else than its place in the store"),
        (other_roster, "with another roster"),
        (expired, "has expired"),
        (one_round_too_many, "round 3 of codec is more than site north consented to"),
        (other_version, "version 999 is installed"),
        (other_lock, "other versions of the installed software"),
        (changed_cohort, "the cohort has changed since the consent was given"),
        (another_cohort, "the cohort has changed since the consent was given"),
        (withdrawn, "has taken its consent to this protocol back"),
        (paused, "site north is paused"),
        (left, "site north has left the federation"),
    ],
)
def test_refusal_goes_to_both_sides_before_the_task_starts(
    home: Home,
    steward: Steward,
    counting: CountingTask,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Spoil,
    said: str,
) -> None:
    control, _ = home.open(steward.answer(home.parcel(home.task(round=1))))
    assert (control.status, counting.calls) == ("done", 1)
    reply, outputs = home.open(steward.answer(home.parcel(spoil(home, monkeypatch))))
    assert (reply.status, outputs, counting.calls) == ("refused", {}, 1)
    assert said in reply.reason
    assert reply.reason in caplog.text
    line = home.lines()[-1]
    assert (line.event, line.reason) == ("refused", reply.reason)


def test_finished_update_does_not_leave_after_its_consent_was_taken_back(
    home: Home, steward: Steward
) -> None:
    steward.answer(home.parcel(home.task()))
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "done"
    home.control().stop(home.study.protocol.digest)
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "refused"


def test_resumed_site_takes_tasks_again(home: Home, steward: Steward) -> None:
    assert home.control().pause()
    assert not home.control().pause()
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "refused"
    assert home.control().resume()
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "done"
    assert [line.event for line in home.lines()][1:] == ["paused", "refused", "resumed", "sent"]


def test_site_that_left_is_not_resumed(home: Home) -> None:
    home.consent()
    home.control().leave()
    with pytest.raises(ConsentError, match="has left the federation"):
        home.control().resume()


def test_changed_cohort_serves_again_after_a_new_consent(
    home: Home, steward: Steward, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_cohort(home, monkeypatch)
    manifest = read_manifest(home.settings.cohorts / "main" / MANIFEST_NAME)
    save_summary(summarize(manifest), manifest, home.settings.cohorts / "main")
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "refused"
    home.consent()
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "done"


def test_other_cohort_that_fits_no_study_changes_nothing(home: Home, steward: Steward) -> None:
    other = write_cohort(home.settings.cohorts / "clips", patients=3)
    assert other.items
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "done"


def test_running_task_ends_at_its_next_step_when_its_study_is_stopped(home: Home) -> None:
    home.consent()
    reported = []

    def train(_task: Task, _inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        for step in range(3):
            reported.append(step)
            if step == 1:
                home.control().stop(home.study.protocol.digest)
            context.report(step, 3)
        return TaskResult()

    steward = home.steward({"codec": train})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrael.client.site.steward.POLL_S", 0)
        reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert (reply.status, reported) == ("refused", [0, 1])
    assert "has taken its consent" in reply.reason


def test_result_does_not_leave_when_the_study_was_stopped_in_the_last_step(
    home: Home, counting: CountingTask
) -> None:
    home.consent()

    def train(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        home.control().stop(home.study.protocol.digest)
        return counting(task, inputs, context)

    steward = home.steward({"codec": train})
    reply, outputs = home.open(steward.answer(home.parcel(home.task())))
    assert (reply.status, outputs) == ("refused", {})


def test_warm_state_of_another_study_is_let_go(home: Home) -> None:
    class Model:
        """Stands for what a task keeps warm."""

    home.consent()
    other = home.study.protocol.model_copy(update={"version": 2})
    home.consent(home.study.model_copy(update={"protocol": other}))
    kept: list[ref[Model]] = []

    def train(_task: Task, _inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        model = context.warm.setdefault("model", Model())
        kept.append(ref(model))
        return TaskResult()

    steward = home.steward({"codec": train})
    steward.answer(home.parcel(home.task()))
    steward.answer(home.parcel(home.task(round=1)))
    steward.rest()
    assert kept[0]() is kept[1]() is not None
    steward.answer(home.parcel(home.task(protocol=other.digest)))
    steward.rest()
    assert kept[0]() is None
    assert kept[2]() is not None


def test_pause_ends_no_task_that_has_begun(home: Home, counting: CountingTask) -> None:
    home.consent()

    def train(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        home.control().pause()
        return counting(task, inputs, context)

    steward = home.steward({"codec": train})
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "done"
    assert home.open(steward.answer(home.parcel(home.task(round=1))))[0].status == "refused"


def test_stopped_task_is_answered_by_nothing_and_runs_again(
    home: Home, steward: Steward, counting: CountingTask
) -> None:
    counting.error = TaskStopped("the steward was told to end")
    with pytest.raises(TaskStopped):
        steward.answer(home.parcel(home.task()))
    assert [line.event for line in home.lines()] == ["consent"]
    counting.error = None
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "done"


def test_members_who_are_not_those_of_the_consent_vouch_for_nobody(home: Home) -> None:
    home.consent()
    task = home.task()
    strangers = {site: KeyPair.create().public.model_dump() for site in home.members}
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        kept = store.find_consents(task.protocol)[task.roster]
        own = home.keys.public
        assert set(open_agreement(kept, own=own).members) == set(home.members)  # the control
        for members in (strangers, {}, {"north": "no keys"}):
            with pytest.raises(ConsentError, match="consented to"):
                open_agreement(dataclasses.replace(kept, members=members), own=own)
