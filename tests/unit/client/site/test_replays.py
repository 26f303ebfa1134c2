"""Whoever repeats a signed task uses up no ceiling, and fills no journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.departures import Departures
from vitrael.client.site.outbox import MOST_ANSWERS
from vitrael.core.errors import EnvelopeError

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.client.site.steward import Steward


@pytest.mark.parametrize("same", [True, False])
def test_result_that_is_given_again_to_the_same_task_counts_once_against_the_ceiling(
    home: Home, counting: CountingTask, *, same: bool
) -> None:
    home.consent()
    steward = home.steward({"codec": counting})
    parcel = home.parcel(home.task())
    steward.answer(parcel)
    sent = home.lines()[-1].bytes
    steward.close()
    (home.path / "site.toml").write_text(f'name = "north"\n[limits]\nstudy_bytes = {3 * sent}\n')
    steward = home.steward({"codec": counting})
    for _ in range(3):
        steward.answer(parcel if same else home.parcel(home.task()))
    reply, _ = home.open(steward.answer(home.parcel(home.task(round=1))))
    assert reply.status == ("done" if same else "refused")
    assert ("limits.study_bytes" in reply.reason) == (not same)
    steward.close()


def test_every_byte_that_left_is_counted_all_the_same(home: Home, steward: Steward) -> None:
    parcel = home.parcel(home.task())
    sizes = [sum(map(len, steward.answer(parcel).values())) for _ in range(3)]
    departures, protocol = Departures(home.settings.journal), home.study.protocol.digest
    assert departures.total(protocol) == sum(sizes)
    assert departures.total_once(protocol) == sizes[0]


@pytest.mark.parametrize("round_index", [0, 99], ids=["done", "refused"])
def test_task_is_answered_so_often_and_not_more(
    home: Home, steward: Steward, round_index: int
) -> None:
    parcel = home.parcel(home.task(round=round_index))
    for _ in range(MOST_ANSWERS):
        steward.answer(parcel)
    lines = len(home.lines())
    for _ in range(20):
        with pytest.raises(EnvelopeError, match="was answered 8 times") as caught:
            steward.answer(parcel)
        steward.note_refusal(caught.value.sentence(), 10)  # as the listener does
    assert len(home.lines()) == lines + 1
    assert home.open(steward.answer(home.parcel(home.task())))[0].status == "done"
    assert sum(line.bytes for line in home.lines()[lines:-1]) == 200


def test_answers_are_counted_over_restarts(home: Home, counting: CountingTask) -> None:
    home.consent()
    parcel = home.parcel(home.task())
    for _ in range(MOST_ANSWERS):
        steward = home.steward({"codec": counting})
        steward.answer(parcel)
        steward.close()
    steward = home.steward({"codec": counting})
    with pytest.raises(EnvelopeError, match="was answered 8 times"):
        steward.answer(parcel)
    steward.close()
