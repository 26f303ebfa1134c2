"""Each answer names the version of the cohort that it was made with, also when given again."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.ingest.places import Home as Place
from vitrael.client.site.ingest.withdraw import Found, remove_patient
from vitrael.client.site.steward import Steward
from vitrael.client.site.store import Store
from vitrael.core.errors import DataError, TaskStopped

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.core.digest import Digest
    from vitrael.core.messages import Reply


def version(home: Home) -> Digest:
    manifest = Place(home.path).cohort("main").read()
    assert manifest is not None
    return manifest.digest


def withdraw_somebody(home: Home) -> None:
    manifest = Place(home.path).cohort("main").read()
    assert manifest is not None
    gone = frozenset({manifest.items[0].subject})
    remove_patient(Place(home.path), Found(subjects=gone, items=1, cohorts=("main",), known=False))


def answer(home: Home, steward: Steward, number: int) -> Reply:
    reply, _ = home.open(steward.answer(home.parcel(home.task(round=number))))
    return reply


def test_answer_names_the_version_that_it_was_made_with(home: Home, counting: CountingTask) -> None:
    home.consent()
    first = version(home)
    steward = home.steward({"codec": counting})
    assert answer(home, steward, 0).cohort == first
    steward.close()
    withdraw_somebody(home)
    home.clock.advance(minutes=1)
    home.consent()
    assert version(home) != first
    steward = home.steward({"codec": counting})
    again = answer(home, steward, 0)
    assert (again.status, counting.calls) == ("done", 1), "it is not computed twice"
    assert again.cohort == first
    assert answer(home, steward, 1).cohort == version(home)
    steward.close()


@pytest.mark.parametrize("setting", ['release = "manual"', "[limits]\nstudy_bytes = 10"])
def test_result_of_an_earlier_version_that_never_left_does_not_leave(
    home: Home, counting: CountingTask, setting: str
) -> None:
    home.consent()
    (home.path / "site.toml").write_text(f'name = "north"\n{setting}\n')

    def nap(seconds: float) -> None:
        home.clock.advance(seconds=seconds)

    steward = Steward(
        home.settings, clock=home.clock, tasks={"codec": counting}, layouts=None, sleep=nap
    )
    assert answer(home, steward, 0).status != "done"
    steward.close()
    withdraw_somebody(home)
    home.consent()
    (home.path / "site.toml").write_text('name = "north"\n')
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        waiting = store.decisions.list_held()
    for held in waiting:
        home.control().release(held)
    steward = home.steward({"codec": counting})
    refused = answer(home, steward, 0)
    assert (refused.status, refused.cohort, counting.calls) == ("refused", None, 1)
    assert "round 1 of codec is of an earlier version of the cohort" in refused.reason
    assert not [line for line in home.lines() if line.event == "sent"]
    assert answer(home, steward, 1).status == "done"  # the control: made with the present one
    steward.close()


def test_refusal_names_no_version(home: Home, counting: CountingTask) -> None:
    home.consent()
    steward = home.steward({"codec": counting})
    counting.error = DataError("it cannot be done")
    reply = answer(home, steward, 0)
    assert (reply.status, reply.cohort) == ("failed", None)
    steward.close()


def checkpoint(home: Home) -> Path:
    """Write what a training would have left, among the records of the home's one consent."""
    (records,) = (home.path / "records").iterdir()
    path = records / "training" / "codec-1-0123" / "state"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


@pytest.mark.parametrize("error", [None, DataError("it cannot be done")], ids=["done", "failed"])
def test_checkpoints_go_when_the_result_is_finished_and_not_before(
    error: DataError | None, home: Home, counting: CountingTask
) -> None:
    home.consent()
    steward = home.steward({"codec": counting})
    answer(home, steward, 0)
    path = checkpoint(home)
    counting.error = error
    answer(home, steward, 1)
    assert path.exists() == (error is not None)
    steward.close()


def test_checkpoints_stay_when_the_task_is_stopped(home: Home, counting: CountingTask) -> None:
    home.consent()
    steward = home.steward({"codec": counting})
    answer(home, steward, 0)
    path = checkpoint(home)
    counting.error = TaskStopped("the steward was told to end")
    with pytest.raises(TaskStopped):
        answer(home, steward, 1)
    assert path.exists()
    steward.close()
