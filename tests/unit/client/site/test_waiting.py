"""The steward waits for hours and for a release, never beyond a deadline, and hears its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from vitrael.client.site.decisions import Held
from vitrael.client.site.steward import Steward
from vitrael.client.site.store import Store
from vitrael.client.site.waiting import answer_by
from vitrael.core.errors import TaskStopped, UsageError

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import CountingTask, Home

MANUAL = 'name = "north"\nrelease = "manual"\n'


@dataclass
class Naps:
    """Lets time pass while the steward sleeps, and does something after some of it."""

    home: Home
    after_s: float = 1e9
    then: Callable[[], object] = lambda: None
    slept_s: float = 0
    done: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> None:
        self.slept_s += seconds
        self.home.clock.advance(seconds=seconds)
        if not self.done and self.slept_s >= self.after_s:
            self.done.append(self.slept_s)
            self.then()


def open_steward(home: Home, counting: CountingTask, naps: Naps, **options: Any) -> Steward:
    tasks: Any = {"codec": counting, "teacher": counting}
    return Steward(
        home.settings, clock=home.clock, tasks=tasks, layouts=None, sleep=naps, **options
    )


def held(home: Home) -> list[Held]:
    store = Store(home.settings.store, updates=home.settings.updates)
    try:
        return store.decisions.list_held()
    finally:
        store.close()


@pytest.fixture
def manual(home: Home) -> Home:
    home.consent()
    (home.path / "site.toml").write_text(MANUAL)
    return home


def test_result_waits_for_its_release(manual: Home, counting: CountingTask) -> None:
    naps = Naps(manual, 20, lambda: manual.control().release(held(manual)[0]))
    steward = open_steward(manual, counting, naps)
    reply, _ = manual.open(steward.answer(manual.parcel(manual.task())))
    assert (reply.status, naps.slept_s, counting.calls) == ("done", 20, 1)
    assert [line.event for line in manual.lines()] == ["consent", "held", "released", "sent"]


def test_result_that_nobody_releases_is_held_and_leaves_later_without_being_made_again(
    manual: Home, counting: CountingTask
) -> None:
    naps = Naps(manual)
    steward = open_steward(manual, counting, naps)
    reply, outputs = manual.open(steward.answer(manual.parcel(manual.task())))
    assert (reply.status, outputs, naps.slept_s) == ("failed", {}, 54)  # of 60 s: 6 for the way
    assert "is held for release" in reply.reason
    (waiting,) = held(manual)
    assert (waiting.stage, waiting.round, waiting.fields) == ("codec", 0, "curve_loss, codec")
    assert waiting.bytes > 24
    again, _ = manual.open(steward.answer(manual.parcel(manual.task())))
    assert again.status == "failed"
    manual.control().release(waiting)
    reply, _ = manual.open(steward.answer(manual.parcel(manual.task())))
    assert (reply.status, counting.calls, len(held(manual))) == ("done", 1, 1)
    events = [line.event for line in manual.lines()]
    assert events == ["consent", "held", "failed", "failed", "released", "sent"]


def test_rejected_result_never_leaves(manual: Home, counting: CountingTask) -> None:
    naps = Naps(manual, 5, lambda: manual.control().reject(held(manual)[0], reason="too few"))
    steward = open_steward(manual, counting, naps)
    for _ in range(2):
        reply, outputs = manual.open(steward.answer(manual.parcel(manual.task())))
        assert (reply.status, outputs, counting.calls) == ("refused", {}, 1)
        assert "has rejected the result of round 1 of codec: too few" in reply.reason
    steward.close()
    (manual.path / "site.toml").write_text('name = "north"\n')
    reply, _ = manual.open(manual.steward().answer(manual.parcel(manual.task())))
    assert reply.status == "refused"  # also without manual release
    manual.control().release(held(manual)[0])
    reply, _ = manual.open(manual.steward().answer(manual.parcel(manual.task())))
    assert reply.status == "done"  # the operator has thought again


def test_released_result_is_not_rejected_any_more(manual: Home, counting: CountingTask) -> None:
    steward = open_steward(manual, counting, Naps(manual))
    steward.answer(manual.parcel(manual.task()))
    manual.control().release(held(manual)[0])
    with pytest.raises(UsageError, match="was released already"):
        manual.control().reject(held(manual)[0], reason="too late")


def test_consent_and_refusals_are_not_held(manual: Home) -> None:
    naps = Naps(manual)
    steward = Steward(manual.settings, clock=manual.clock, sleep=naps)
    reply, _ = manual.open(steward.answer(manual.parcel(manual.task({}, stage="consent"), {})))
    assert reply.status == "done"
    reply, _ = manual.open(steward.answer(manual.parcel(manual.task(round=99))))
    assert (reply.status, naps.slept_s) == ("refused", 0)


def test_stop_takes_what_is_held_along(manual: Home, counting: CountingTask) -> None:
    naps = Naps(manual, 5, lambda: manual.control().stop(manual.study.protocol.digest))
    steward = open_steward(manual, counting, naps)
    reply, _ = manual.open(steward.answer(manual.parcel(manual.task())))
    assert (reply.status, naps.slept_s) == ("refused", 5)
    assert held(manual)[0].state == "rejected"


def test_waiting_steward_hears_that_it_is_to_end(manual: Home, counting: CountingTask) -> None:
    asked: list[int] = []
    naps = Naps(manual, 3, lambda: asked.append(1))
    steward = open_steward(manual, counting, naps, stopping=lambda: bool(asked))
    with pytest.raises(TaskStopped):
        steward.answer(manual.parcel(manual.task()))
    assert naps.slept_s == 3
    asked.clear()
    manual.control().release(held(manual)[0])
    reply, _ = manual.open(steward.answer(manual.parcel(manual.task())))
    assert (reply.status, counting.calls) == ("done", 1)


def test_clock_that_is_set_back_prolongs_no_wait(manual: Home, counting: CountingTask) -> None:
    naps = Naps(manual)
    naps.after_s, naps.then = 10, lambda: manual.clock.advance(seconds=-3000)
    reply, _ = manual.open(
        open_steward(manual, counting, naps).answer(manual.parcel(manual.task()))
    )
    assert (reply.status, naps.slept_s) == ("failed", 54)


def test_stop_asked_for_in_a_task_ends_it_at_its_next_step(home: Home) -> None:
    home.consent()
    steps: list[int] = []

    def train(_task: object, _inputs: object, context: Any) -> None:
        for step in range(1, 4):
            steps.append(step)
            context.report(step, 3)

    steward = Steward(
        home.settings,
        clock=home.clock,
        tasks={"codec": train},  # type: ignore[dict-item]
        layouts=None,
        stopping=lambda: len(steps) >= 2,
    )
    with pytest.raises(TaskStopped):
        steward.answer(home.parcel(home.task()))
    assert steps == [1, 2]


def test_task_that_is_finished_when_the_stop_comes_is_answered(
    home: Home, counting: CountingTask
) -> None:
    home.consent()
    counting.calls = 9  # it reports its tenth step of ten
    steward = open_steward(home, counting, Naps(home), stopping=lambda: True)
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "done"


def at(home: Home, hours: str, *, now: str) -> None:
    """Set the hours of the site, whose wall clock is two hours ahead of UTC, and the time there."""
    (home.path / "site.toml").write_text(f'name = "north"\n[schedule]\nhours = "{hours}"\n')
    wall = datetime.fromisoformat(f"2031-05-03T{now}").replace(tzinfo=UTC)
    home.clock.now = wall - timedelta(hours=2)


def ahead(utc: datetime) -> datetime:
    return utc + timedelta(hours=2)


def test_task_waits_until_the_window_opens(home: Home, counting: CountingTask) -> None:
    home.consent()
    at(home, "22:00-06:00", now="21:59:30")
    naps = Naps(home)
    steward = open_steward(home, counting, naps, local=ahead)
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert (reply.status, naps.slept_s, counting.calls) == ("done", 30, 1)


def test_task_whose_deadline_is_before_the_window_is_refused_at_once(
    home: Home, counting: CountingTask
) -> None:
    home.consent()
    at(home, "22:00-06:00", now="21:00:00")
    naps = Naps(home)
    steward = open_steward(home, counting, naps, local=ahead)
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert (reply.status, naps.slept_s, counting.calls) == ("refused", 0, 0)
    assert "computes from 22:00 to 06:00 alone: it is 21:00 there" in reply.reason
    assert "after 2031-05-03T20:00+00:00" in reply.reason


@pytest.mark.parametrize("now", ["22:00:00", "23:59:59", "00:00:00", "05:59:59"])
def test_task_in_the_window_starts_at_once(home: Home, counting: CountingTask, now: str) -> None:
    home.consent()
    at(home, "22:00-06:00", now=now)
    naps = Naps(home)
    reply, _ = home.open(
        open_steward(home, counting, naps, local=ahead).answer(home.parcel(home.task()))
    )
    assert (reply.status, naps.slept_s) == ("done", 0)


def test_task_in_the_window_starts_also_where_the_sites_clock_is_ahead(
    home: Home, counting: CountingTask
) -> None:
    home.consent()
    at(home, "22:00-06:00", now="23:00:00")
    issued = (home.clock() - timedelta(seconds=60)).isoformat()
    steward = open_steward(home, counting, Naps(home), local=ahead)
    task = home.task(issued_utc=issued, deadline_s=60.0)
    assert home.open(steward.answer(home.parcel(task)))[0].status == "done"
    at(home, "22:00-06:00", now="21:59:30")  # the control: its deadline is before the window opens
    issued = (home.clock() - timedelta(seconds=60)).isoformat()
    task = home.task(round=1, issued_utc=issued, deadline_s=60.0)
    assert home.open(steward.answer(home.parcel(task)))[0].status == "refused"


def test_consent_and_finished_updates_need_no_window(home: Home, counting: CountingTask) -> None:
    home.consent()
    home.steward({"codec": counting}).answer(home.parcel(home.task()))
    at(home, "22:00-06:00", now="12:00:00")
    steward = open_steward(home, counting, Naps(home), local=ahead)
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "done"
    asked = home.parcel(home.task({}, stage="consent"), {})
    real = Steward(home.settings, clock=home.clock, local=ahead)
    assert home.open(real.answer(asked))[0].status == "done"


def test_consent_that_is_taken_back_before_the_window_ends_the_wait(
    home: Home, counting: CountingTask
) -> None:
    home.consent()
    at(home, "22:00-06:00", now="21:59:30")
    naps = Naps(home, 10, lambda: home.control().stop(home.study.protocol.digest))
    steward = open_steward(home, counting, naps, local=ahead)
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert (reply.status, naps.slept_s, counting.calls) == ("refused", 10, 0)


@pytest.mark.parametrize(
    ("late_s", "deadline_s", "left_s"), [(0, 60, 54), (20, 60, 34), (-50, 60, 54), (0, 1000, 970)]
)
def test_answer_goes_in_time_also_by_another_clock(
    home: Home, late_s: float, deadline_s: float, left_s: float
) -> None:
    task = home.task(deadline_s=deadline_s)
    now = home.clock() + timedelta(seconds=late_s)
    assert answer_by(task, now=now) - now == timedelta(seconds=left_s)
