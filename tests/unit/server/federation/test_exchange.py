from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from vitrael.client.site.courier import app as courier
from vitrael.core.errors import ConfigError
from vitrael.core.messages import MakeParcel, Parcel
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
        self.due: dict[int, float] = {}
        """Node -> when its answer is there."""
        self.pulling: dict[int, Callable[[], object]] = {}
        """Node -> what happens when its answer is fetched."""
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
        there = [i for i in ids if i in self.replies]
        there = [i for i in there if self.now >= self.due.get(self._node(i), 0.0)]
        for message_id in there:
            self.pulling.get(self._node(message_id), lambda: None)()
        return [self.replies.pop(i) for i in there]

    def _node(self, message_id: str) -> int:
        return self.replies[message_id].metadata.src_node_id


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


def make() -> Parcel:
    return PARCEL


def everybody() -> dict[str, MakeParcel]:
    return dict.fromkeys(NODES, make)


def test_every_site_is_yielded_exactly_once_with_its_bytes() -> None:
    _, flower = exchange()
    answers = list(flower.send(everybody(), deadline_s=10))
    assert sorted(site for site, _ in answers) == sorted(NODES)
    assert all(parcel == PARCEL for _, parcel in answers)


def test_only_addressed_sites_get_a_parcel() -> None:
    grid, flower = exchange()
    assert dict(flower.send({"south": make}, deadline_s=10)) == {"south": PARCEL}
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
    list(flower.send({"north": make, "west": make}, deadline_s=3))
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
    assert dict(flower.send({"north": make}, deadline_s=60)) == {"north": PARCEL}
    assert grid.pushed == [NODES["north"]] * 2


def test_a_parcel_is_not_sent_for_ever() -> None:
    grid, flower = exchange(north=error(ErrorCode.NODE_UNAVAILABLE, "gone"))
    assert dict(flower.send({"north": make}, deadline_s=60)) == {"north": "site north: gone"}
    assert len(grid.pushed) == 3


def test_an_error_that_the_courier_reports_is_not_tried_again() -> None:
    grid, flower = exchange(north=error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "broken"))
    assert dict(flower.send({"north": make}, deadline_s=60)) == {"north": "site north: broken"}
    assert len(grid.pushed) == 1


def test_a_lost_site_that_stays_away_is_yielded_at_its_deadline() -> None:
    grid, flower = exchange()

    def vanish(message: Message) -> Message:
        grid.present.discard(NODES["north"])
        return error(ErrorCode.NODE_UNAVAILABLE)(message)  # type: ignore[return-value]

    grid.reactions[NODES["north"]] = [vanish]
    answers = dict(flower.send({"north": make}, deadline_s=5))
    assert answers == {"north": "site north was lost and did not return in time"}
    assert grid.now < 8


def test_what_a_site_writes_becomes_one_short_line() -> None:
    _, flower = exchange(north=error(ErrorCode.UNKNOWN, "a\n\x1b[31m" + "b" * 9000))
    answer = dict(flower.send({"north": make}, deadline_s=5))["north"]
    assert isinstance(answer, str)
    assert answer.isprintable()
    assert len(answer) < 600


def test_an_answer_without_parcel_is_no_answer() -> None:
    _, flower = exchange(north=lambda m: Message(RecordDict(), reply_to=m))
    answers = dict(flower.send({"north": make}, deadline_s=5))
    assert answers == {"north": "site north: it sent no parcel"}


def test_a_site_without_node_is_refused() -> None:
    _, flower = exchange()
    with pytest.raises(ConfigError, match="site east has no Flower node"):
        flower.send({"east": make}, deadline_s=5)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("inf"), float("nan")])
def test_an_unbounded_wait_is_refused(deadline_s: float) -> None:
    _, flower = exchange()
    for given in (deadline_s, {"north": deadline_s}):
        with pytest.raises(ConfigError, match="deadline_s"):
            flower.send({"north": make}, deadline_s=given)


def test_long_waits_are_asked_about_ever_less_often() -> None:
    grid, flower = exchange(north=silent)
    list(flower.send({"north": make}, deadline_s=600))
    assert grid.slept[0] == 0.1
    assert max(grid.slept) == 1.0
    assert len(grid.slept) < 800


@pytest.fixture
def upload() -> Iterator[threading.Event]:
    """An upload that ends when the test does, if not before: no thread outlives it."""
    event = threading.Event()
    yield event
    end(event)


def end(upload: threading.Event) -> None:
    """Let an upload end, and wait until whoever fetches it has it."""
    upload.set()
    for thread in threading.enumerate():
        if thread.name.startswith("ask "):
            thread.join(timeout=60)


def test_slow_upload_of_one_site_takes_nobody_else_s_time(upload: threading.Event) -> None:
    grid, flower = exchange()
    grid.pulling[NODES["north"]] = lambda: upload.wait(60)
    grid.due[NODES["south"]] = 200.0
    moments = {s: (came, grid.now) for s, came in flower.send(everybody(), deadline_s=300)}
    assert moments["west"][0] == PARCEL
    assert moments["south"][0] == PARCEL
    assert 200 <= moments["south"][1] < 205
    late = "site north did not answer within 300 s: its answer was still on its way"
    assert moments["north"][0] == late
    assert 300 <= moments["north"][1] < 305


def test_superlink_that_was_away_costs_no_site_its_answer(upload: threading.Event) -> None:
    grid, flower = exchange()
    grid.pulling[NODES["north"]] = lambda: upload.wait(60)
    present = grid.get_node_ids

    def return_after_a_minute() -> list[int]:
        if grid.now >= 300:
            grid.now += 60
            end(upload)
        return present()

    grid.get_node_ids = return_after_a_minute  # type: ignore[method-assign]
    assert dict(flower.send(everybody(), deadline_s=300)) == dict.fromkeys(NODES, PARCEL)
    assert 360 <= grid.now < 365


def test_upload_that_ends_in_time_counts(upload: threading.Event) -> None:
    grid, flower = exchange()
    grid.pulling[NODES["north"]] = lambda: upload.wait(60)
    answers: dict[str, Any] = {}
    for site, came in flower.send(everybody(), deadline_s=300):
        answers[site] = came
        if len(answers) == 2:
            end(upload)
    assert answers == dict.fromkeys(NODES, PARCEL)


def test_site_that_still_sends_four_answers_is_sent_nothing_new(upload: threading.Event) -> None:
    grid, flower = exchange()
    grid.pulling[NODES["north"]] = lambda: upload.wait(60)
    for _ in range(4):
        list(flower.send(everybody(), deadline_s=20))
    assert len(grid.pushed) == 12
    answers = dict(flower.send(everybody(), deadline_s=20))
    assert answers["north"] == "site north still sends earlier answers, waited 90 s"
    assert len(grid.pushed) == 14
    end(upload)
    assert dict(flower.send(everybody(), deadline_s=20))["north"] == PARCEL


def test_answer_that_came_in_time_counts_however_late_it_is_looked_at() -> None:
    grid, flower = exchange()
    grid.due[NODES["south"]] = 5.0
    sent = flower.send(everybody(), deadline_s=10)
    first = next(sent)
    grid.now = 400.0  # whoever took the first was at work on it for long
    assert dict([first, *sent]) == dict.fromkeys(NODES, PARCEL)


def test_answer_that_flower_cannot_take_apart_is_the_site_s_own_failing() -> None:
    def broken() -> None:
        raise AttributeError("'list' object has no attribute 'values'")

    grid, flower = exchange()
    grid.pulling[NODES["north"]] = broken
    answers = dict(flower.send(everybody(), deadline_s=10))
    assert answers.pop("north") == "site north: its answer cannot be read (AttributeError)"
    assert answers == dict.fromkeys(("south", "west"), PARCEL)


def test_superlink_that_is_lost_is_no_site_s_failing() -> None:
    def lost() -> None:
        raise httpx.ConnectError("gone")

    grid, flower = exchange()
    grid.pulling[NODES["north"]] = lost
    with pytest.raises(httpx.ConnectError):
        list(flower.send(everybody(), deadline_s=10))


def test_parcel_is_made_when_it_goes_and_memory_holds_one() -> None:
    grid, flower = exchange(absent={"west"}, north=[error(ErrorCode.NODE_UNAVAILABLE), echo])
    made: list[tuple[str, int]] = []

    def maker(site: str) -> MakeParcel:
        def make_one() -> Parcel:
            made.append((site, len(grid.pushed)))
            return PARCEL

        return make_one

    answers = dict(flower.send({site: maker(site) for site in NODES}, deadline_s=10))
    assert answers["north"] == PARCEL
    assert made == [("north", 0), ("south", 1), ("north", 2)]  # never for one who is away


def test_coordinator_and_courier_speak_of_parcels_alike() -> None:
    assert courier.unpack(pack(PARCEL)) == PARCEL
    assert unpack(courier.pack(PARCEL)) == PARCEL
    assert unpack(pack({"empty": b""})) == {"empty": b""}
