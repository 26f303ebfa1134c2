"""What an operator decides holds at once, stands in the journal, and outlives a kill."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.steward import Steward
from vitrael.client.site.store import Store
from vitrael.core.errors import StorageError, UsageError
from vitrael.privacy.journal import Journal, verify_journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.client.site.control import Control
    from vitrael.client.site.decisions import Held


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


def kill(*_: object, **__: object) -> None:
    raise Killed


def killed_at(step: str, act: Callable[[], object]) -> None:
    """Do something in a process that dies when it comes to a step."""
    kind, name = {"journal": (Journal, "append"), "store": (Store, "save_consent")}[step]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, kill)
        with pytest.raises(Killed):
            act()


def consents(home: Home) -> int:
    store = Store(home.settings.store, updates=home.settings.updates)
    try:
        return len(store.find_consents(home.study.protocol.digest))
    finally:
        store.close()


@pytest.mark.parametrize("step", ["journal", "store"])
def test_half_written_consent_is_none_and_is_told_by_the_next_command(
    home: Home, step: str
) -> None:
    killed_at(step, home.consent)
    assert consents(home) == 0
    reply, _ = home.open(home.steward().answer(home.parcel(home.task({}, stage="consent"), {})))
    assert reply.status == "refused"
    lines = home.lines()
    assert [line.event for line in lines][-2:] == ["repaired", "refused"]
    assert "was not finished: none was given" in lines[-2].reason
    assert home.control().settle() == []  # told once
    assert verify_journal(home.settings.journal) == []
    home.consent()  # the control: one that is finished
    assert consents(home) == 1
    assert home.control().settle() == []


@pytest.mark.parametrize("step", ["journal", "store"])
def test_half_written_consent_leaves_the_one_before_as_it_was(home: Home, step: str) -> None:
    given = home.consent()
    home.clock.advance(days=1)
    killed_at(step, home.consent)
    assert consents(home) == 1
    reply, _ = home.open(home.steward().answer(home.parcel(home.task({}, stage="consent"), {})))
    assert reply.status == "done"
    assert given.given_utc != home.clock().isoformat(timespec="seconds")
    assert "repaired" in [line.event for line in home.lines()]


def stop(control: Control, home: Home) -> None:
    control.stop(home.study.protocol.digest, reason="asked for by the committee")


def pause(control: Control, _home: Home) -> None:
    control.pause(reason="maintenance")


def leave(control: Control, _home: Home) -> None:
    control.leave()


@pytest.mark.parametrize(
    ("act", "event"), [(stop, "withdrawn"), (pause, "paused"), (leave, "left")]
)
def test_killed_act_holds_and_its_line_is_written_by_the_next_command(
    home: Home, act: Callable[[Control, Home], None], event: str
) -> None:
    home.consent()
    steward = home.steward()
    killed_at("journal", lambda: act(home.control(), home))
    assert [line.event for line in home.lines()] == ["consent"]
    reply, _ = home.open(steward.answer(home.parcel(home.task({}, stage="consent"), {})))
    assert reply.status == "refused"
    (told,) = home.control().settle()
    assert told.split(":")[0] == event
    assert home.lines()[-1].event == event
    assert home.control().settle() == []


def test_stop_takes_back_the_consents_to_one_protocol_alone(home: Home) -> None:
    home.consent()
    other = home.study.protocol.model_copy(update={"version": 2})
    home.consent(home.study.model_copy(update={"protocol": other}))
    home.control().stop(other.digest)
    store = Store(home.settings.store, updates=home.settings.updates)
    states = {
        version: bool(next(iter(store.find_consents(protocol).values())).withdrawn_utc)
        for version, protocol in ((1, home.study.protocol.digest), (2, other.digest))
    }
    store.close()
    assert states == {1: False, 2: True}


def test_leaving_takes_every_consent_back(home: Home) -> None:
    home.consent()
    home.control().leave(reason="the project has ended")
    store = Store(home.settings.store, updates=home.settings.updates)
    assert all(stored.withdrawn_utc for stored in store.list_consents())
    store.close()
    assert home.lines()[-1].reason == "the project has ended"


def test_line_written_down_after_the_fact_is_told_with_stage_and_reason(
    home: Home, counting: CountingTask
) -> None:
    control, held = hold(home, counting)
    killed_at("journal", lambda: control.reject(held, reason="too few"))
    assert home.control().settle() == ["rejected of codec 1: too few"]


def hold(home: Home, counting: CountingTask) -> tuple[Control, Held]:
    """Return a result that waits for its operator, and who may decide."""
    home.consent()
    (home.path / "site.toml").write_text('name = "north"\nrelease = "manual"\n')
    steward = Steward(
        home.settings,
        clock=home.clock,
        tasks={"codec": counting},
        layouts=None,
        sleep=lambda seconds: home.clock.advance(seconds=seconds),
    )
    steward.answer(home.parcel(home.task()))
    steward.close()
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        (held,) = store.decisions.list_held()
    return home.control(), held


def test_result_that_another_terminal_has_released_is_not_rejected(
    home: Home, counting: CountingTask
) -> None:
    control, held = hold(home, counting)
    home.control().release(held)
    with pytest.raises(UsageError, match="was released already"):
        control.reject(held, reason="too late")
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        assert [each.state for each in store.decisions.list_held()] == ["released"]
    assert home.control().settle() == []
    assert home.lines()[-1].event == "released"


@pytest.mark.parametrize(
    ("act", "event"), [(stop, "withdrawn"), (pause, "paused"), (leave, "left")]
)
def test_journal_that_refuses_stops_no_act_that_takes_away(
    home: Home, act: Callable[[Control, Home], None], event: str
) -> None:
    home.consent()
    steward = home.steward()
    lines = home.settings.journal
    away = lines.rename(lines.with_suffix(".away"))
    control = home.control()
    act(control, home)
    assert control.unwritten is not None
    assert "not whole" in control.unwritten.sentence()
    away.rename(lines)
    reply, _ = home.open(steward.answer(home.parcel(home.task({}, stage="consent"), {})))
    assert reply.status == "refused"
    (told,) = home.control().settle()
    assert told.startswith(event)


def test_journal_that_refuses_lets_nothing_be_given(home: Home, counting: CountingTask) -> None:
    control, held = hold(home, counting)
    control.pause()
    lines = home.settings.journal
    away = lines.rename(lines.with_suffix(".away"))
    for give in (control.resume, lambda: control.release(held)):
        with pytest.raises(StorageError, match="not whole"):
            give()
    assert given(home) == (False, "held")
    away.rename(lines)
    assert any("not finished, and does not hold" in told for told in home.control().settle())
    control.resume()
    control.release(held)
    assert given(home) == (True, "released")
    assert [line.event for line in home.lines()][-2:] == ["resumed", "released"]


def given(home: Home) -> tuple[bool, str]:
    """Return whether the site takes tasks, and what became of its one held result."""
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        (held,) = store.decisions.list_held()
        return not store.decisions.standing().paused_utc, held.state


@pytest.mark.parametrize("give", ["resume", "release"])
def test_half_written_act_that_gives_does_not_hold(
    home: Home, counting: CountingTask, give: str
) -> None:
    control, held = hold(home, counting)
    control.pause()
    acts = {"resume": control.resume, "release": lambda: control.release(held)}
    killed_at("journal", acts[give])
    assert given(home) == (False, "held")
    assert [told.split(":")[1].strip() for told in home.control().settle()] == [
        "not finished, and does not hold"
    ]
    acts[give]()
    assert given(home) != (False, "held")
