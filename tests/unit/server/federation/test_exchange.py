from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from vitrael.client.site.courier import app as courier
from vitrael.core.errors import ConfigError
from vitrael.server.federation.exchange import FlowerExchange, pack, unpack

NODES = {"north": 11, "south": 12, "west": 13}
PARCEL = {"envelope": b"\x00{}", "weights": bytes(range(256)) * 64}

Reaction = Callable[[Message], Message | None]


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


def silent(_: Message) -> None:
    return None


def error(code: int, reason: str = "lost") -> Reaction:
    return lambda message: Message(Error(code=code, reason=reason), reply_to=message)


class FakeGrid:
    """A Grid whose nodes react at once, with a clock that only its sleeper moves."""

    def __init__(self, reactions: dict[int, list[Reaction]], present: Iterable[int]) -> None:
        self.reactions = reactions
        self.present = set(present)
        self.arrivals: dict[float, int] = {}
        self.replies: dict[str, Message] = {}
        self.pushed: list[int] = []
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        self.present |= {node for moment, node in self.arrivals.items() if moment <= self.now}

    def get_node_ids(self) -> list[int]:
        return list(self.present)

    def push_messages(self, messages: list[Message]) -> list[str]:
        ids = []
        for message in messages:
            message_id = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = message_id
            node = message.metadata.dst_node_id
            self.pushed.append(node)
            reactions = self.reactions[node]
            reaction = reactions.pop(0) if len(reactions) > 1 else reactions[0]
            if (reply := reaction(message)) is not None:
                self.replies[message_id] = reply
            ids.append(message_id)
        return ids

    def pull_messages(self, ids: list[str]) -> list[Message]:
        return [self.replies.pop(i) for i in ids if i in self.replies]


def exchange(
    *, absent: set[str] | None = None, **reactions: Reaction | list[Reaction]
) -> tuple[FakeGrid, FlowerExchange]:
    table = {
        NODES[site]: r if isinstance(r, list) else [r]
        for site, r in {"north": echo, "south": echo, "west": echo, **reactions}.items()
    }
    present = {node for site, node in NODES.items() if site not in (absent or set())}
    grid = FakeGrid(table, present)
    fake: Any = grid
    return grid, FlowerExchange(fake, NODES, clock=grid.clock, sleep=grid.sleep)


def everybody() -> dict[str, dict[str, bytes]]:
    return dict.fromkeys(NODES, PARCEL)


def test_every_site_is_yielded_exactly_once_with_its_bytes() -> None:
    _, flower = exchange()
    answers = list(flower.send(everybody(), deadline_s=10))
    assert sorted(site for site, _ in answers) == sorted(NODES)
    assert all(parcel == PARCEL for _, parcel in answers)


def test_only_addressed_sites_get_a_parcel() -> None:
    grid, flower = exchange()
    assert dict(flower.send({"south": PARCEL}, deadline_s=10)) == {"south": PARCEL}
    assert grid.pushed == [NODES["south"]]


def test_a_silent_site_costs_its_deadline_and_holds_nobody_up() -> None:
    grid, flower = exchange(north=silent)
    moments = [(site, answer, grid.now) for site, answer in flower.send(everybody(), deadline_s=7)]
    assert [site for site, _, _ in moments][-1] == "north"
    assert moments[-1][1] == "site north did not answer within 7 s"
    assert moments[1][2] == 0
    assert 7 <= moments[-1][2] < 8.5


def test_each_site_has_a_deadline_of_its_own() -> None:
    grid, flower = exchange(north=silent, south=silent)
    deadlines = {"north": 7.0, "south": 30.0, "west": 3.0}
    answers = flower.send(everybody(), deadline_s=deadlines)
    moments = {site: (answer, grid.now) for site, answer in answers}
    assert moments["west"] == (PARCEL, 0)
    assert moments["north"][0] == "site north did not answer within 7 s"
    assert 7 <= moments["north"][1] < 8.5
    assert moments["south"][0] == "site south did not answer within 30 s"
    assert 30 <= moments["south"][1] < 32


def test_a_node_that_is_online_and_not_named_is_sent_nothing() -> None:
    grid, flower = exchange(west=silent)
    grid.present.add(4711)
    list(flower.send({"north": PARCEL, "west": PARCEL}, deadline_s=3))
    assert set(grid.pushed) == {NODES["north"], NODES["west"]}


def test_an_absent_site_is_waited_for_and_then_named() -> None:
    grid, flower = exchange(absent={"west"})
    answers = dict(flower.send(everybody(), deadline_s=500))
    assert answers["west"] == "site west is not connected, waited 90 s"
    assert answers["north"] == PARCEL
    assert 90 <= grid.now < 93


def test_a_site_that_connects_late_still_gets_its_parcel() -> None:
    grid, flower = exchange(absent={"west"})
    grid.arrivals[40.0] = NODES["west"]
    assert dict(flower.send(everybody(), deadline_s=10))["west"] == PARCEL


@pytest.mark.parametrize("code", [ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED])
def test_a_parcel_lost_with_its_courier_is_sent_again(code: int) -> None:
    grid, flower = exchange(north=[error(code), echo])
    assert dict(flower.send({"north": PARCEL}, deadline_s=60)) == {"north": PARCEL}
    assert grid.pushed == [NODES["north"]] * 2


def test_a_parcel_is_not_sent_for_ever() -> None:
    grid, flower = exchange(north=error(ErrorCode.NODE_UNAVAILABLE, "gone"))
    assert dict(flower.send({"north": PARCEL}, deadline_s=60)) == {"north": "site north: gone"}
    assert len(grid.pushed) == 3


def test_an_error_that_the_courier_reports_is_not_tried_again() -> None:
    grid, flower = exchange(north=error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "broken"))
    assert dict(flower.send({"north": PARCEL}, deadline_s=60)) == {"north": "site north: broken"}
    assert len(grid.pushed) == 1


def test_a_lost_site_that_stays_away_is_yielded_at_its_deadline() -> None:
    grid, flower = exchange()

    def vanish(message: Message) -> Message:
        grid.present.discard(NODES["north"])
        return error(ErrorCode.NODE_UNAVAILABLE)(message)  # type: ignore[return-value]

    grid.reactions[NODES["north"]] = [vanish]
    answers = dict(flower.send({"north": PARCEL}, deadline_s=5))
    assert answers == {"north": "site north was lost and did not return in time"}
    assert grid.now < 8


def test_what_a_site_writes_becomes_one_short_line() -> None:
    _, flower = exchange(north=error(ErrorCode.UNKNOWN, "a\n\x1b[31m" + "b" * 9000))
    answer = dict(flower.send({"north": PARCEL}, deadline_s=5))["north"]
    assert isinstance(answer, str)
    assert answer.isprintable()
    assert len(answer) < 600


def test_an_answer_without_parcel_is_no_answer() -> None:
    _, flower = exchange(north=lambda m: Message(RecordDict(), reply_to=m))
    answers = dict(flower.send({"north": PARCEL}, deadline_s=5))
    assert answers == {"north": "site north: it sent no parcel"}


def test_a_site_without_node_is_refused() -> None:
    _, flower = exchange()
    with pytest.raises(ConfigError, match="site east has no Flower node"):
        flower.send({"east": PARCEL}, deadline_s=5)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("inf"), float("nan")])
def test_an_unbounded_wait_is_refused(deadline_s: float) -> None:
    _, flower = exchange()
    for given in (deadline_s, {"north": deadline_s}):
        with pytest.raises(ConfigError, match="deadline_s"):
            flower.send({"north": PARCEL}, deadline_s=given)


def test_long_waits_are_asked_about_ever_less_often() -> None:
    grid, flower = exchange(north=silent)
    list(flower.send({"north": PARCEL}, deadline_s=600))
    assert grid.slept[0] == 0.1
    assert max(grid.slept) == 1.0
    assert len(grid.slept) < 800


def test_coordinator_and_courier_speak_of_parcels_alike() -> None:
    assert courier.unpack(pack(PARCEL)) == PARCEL
    assert unpack(courier.pack(PARCEL)) == PARCEL
    assert unpack(pack({"empty": b""})) == {"empty": b""}
