"""A task that nobody waits for is not begun; what is finished is returned however late."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.client.site.steward import Steward


@pytest.fixture
def steward(home: Home, counting: CountingTask) -> Steward:
    home.consent()
    return home.steward({"codec": counting})


@pytest.mark.parametrize(
    ("hours", "said"), [(1.1, "too old"), (24 * 30, "too old"), (-1.1, "in the future")]
)
@pytest.mark.parametrize("stage", ["codec", "consent"])
def test_task_that_nobody_waits_for_is_not_begun(
    home: Home, counting: CountingTask, hours: float, said: str, stage: str
) -> None:
    home.consent()
    brought = {} if stage == "consent" else None
    parcel = home.parcel(home.task(brought, stage=stage), brought)
    home.clock.advance(hours=hours)
    steward = home.steward({"codec": counting, "consent": counting})
    reply, _ = home.open(steward.answer(parcel))
    assert (reply.status, counting.calls) == ("refused", 0)
    assert said in reply.reason
    fresh = home.parcel(home.task())  # the old one does not block the round
    assert home.open(steward.answer(fresh))[0].status == "done"


@pytest.mark.parametrize("minutes", [-59, 0.9, 60])
def test_task_within_its_deadline_and_the_slack_is_done(
    home: Home, steward: Steward, minutes: float
) -> None:
    parcel = home.parcel(home.task(deadline_s=60.0))
    home.clock.advance(minutes=minutes)
    assert home.open(steward.answer(parcel))[0].status == "done"


def test_finished_update_is_returned_however_late(
    home: Home, steward: Steward, counting: CountingTask
) -> None:
    parcel = home.parcel(home.task())
    first = home.open(steward.answer(parcel))[0]
    home.clock.advance(days=30)
    again = home.open(steward.answer(parcel))[0]
    assert again.model_copy(update={"journal": first.journal}) == first
    assert counting.calls == 1
