"""Only a signed answer to the very task counts; who is absent is named with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.federation import SITES, Federation, federation
from tests.fakes.federation import HandlerExchange
from vitrael.client.site.tasks import TaskResult
from vitrael.core.errors import DataError, QuorumError, StorageError
from vitrael.core.messages import MakeParcel, Parcel, Task
from vitrael.privacy.envelope import make_reply_parcel, open_reply_parcel
from vitrael.privacy.journal import read_journal
from vitrael.privacy.keys import KeyPair
from vitrael.server.demo import site_home
from vitrael.server.studies.correspondence import Answers, ask_sites

Spoil = Callable[[Federation, Task, Parcel], Parcel | str]
WEIGHTS = {"codec": {"w": np.arange(6, dtype=np.float32)}}


def add_one(_task: object, inputs: object, _context: object) -> TaskResult:
    assert isinstance(inputs, dict)
    tensors = {name: array + 1 for name, array in inputs["codec"].items()}
    return TaskResult(tensors={"codec": tensors}, num_examples=4)


def break_down(*_: object) -> TaskResult:
    raise DataError("the scans are on holiday")


@pytest.fixture
def told(home: Path) -> Iterator[Federation]:
    with federation(home, tasks={site: {"codec": add_one} for site in SITES}) as opened:
        yield opened


def ask(told: Federation) -> Answers:
    return ask_sites(told.run(), "codec", WEIGHTS)


def signed_by_a_stranger(told: Federation, task: Task, parcel: Parcel) -> Parcel:
    keys, members = told.run().keys, told.run().members
    opened = open_reply_parcel(parcel, task, coordinator=keys, site=members["north"])
    return make_reply_parcel(
        opened.reply, opened.tensors, site=KeyPair.create(), coordinator=told.run().keys.public
    )


def changed_tensor(_told: Federation, _task: Task, parcel: Parcel) -> Parcel:
    return {**parcel, "codec": parcel["codec"][:-1] + bytes([parcel["codec"][-1] ^ 1])}


def changed_envelope(_told: Federation, _task: Task, parcel: Parcel) -> Parcel:
    envelope = parcel["envelope"]
    return {**parcel, "envelope": envelope[:-1] + bytes([envelope[-1] ^ 1])}


def signed_for_another_task(told: Federation, task: Task, parcel: Parcel) -> Parcel:
    keys, members = told.run().keys, told.run().members
    opened = open_reply_parcel(parcel, task, coordinator=keys, site=members["north"])
    own = KeyPair.load(site_home(told.home, "north") / "keys")
    other = opened.reply.model_copy(update={"nonce": "0" * 32})
    return make_reply_parcel(other, opened.tensors, site=own, coordinator=keys.public)


def without_a_reply(_told: Federation, _task: Task, _parcel: Parcel) -> str:
    return "site north did not answer within 300 s"


def test_every_answer_is_kept_in_the_order_of_the_roster(told: Federation) -> None:
    answers = ask(told)
    assert tuple(answers.by_site) == SITES
    assert (answers.absent, set(answers.details)) == ({}, {"answers"})
    told_of = answers.details["answers"]["north"]
    assert (told_of["examples"], told_of["bytes"] > 100, told_of["seconds"] > 0) == (4, True, True)
    for answer in answers.by_site.values():
        assert np.array_equal(answer.get_tensors("codec")["w"], WEIGHTS["codec"]["w"] + 1)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (signed_by_a_stranger, "signature"),
        (changed_envelope, "unsealed"),
        (changed_tensor, "unsealed"),
        (signed_for_another_task, "another key or task"),
        (without_a_reply, "did not answer within 300 s"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_spoiled_reply_counts_as_absent_with_its_reason(
    spoil: Spoil, why: str, told: Federation
) -> None:
    told.spoil["north"] = lambda task, parcel: spoil(told, task, parcel)
    answers = ask(told)
    assert tuple(answers.by_site) == ("harbour", "valley")
    assert set(answers.absent) == {"north"}
    assert why in answers.absent["north"]
    assert answers.details["absent"] == answers.absent
    kind = "silent" if spoil is without_a_reply else "unusable"
    assert answers.details["kinds"] == {"north": kind}


def test_reply_of_one_site_is_not_taken_for_another_s(told: Federation) -> None:
    taken: list[Parcel] = []
    told.spoil["north"] = lambda _, parcel: taken.append(parcel) or parcel  # type: ignore[func-returns-value]
    told.spoil["harbour"] = lambda *_: taken[0]
    assert set(ask(told).absent) == {"harbour"}


def test_site_that_is_not_connected_is_absent(told: Federation) -> None:
    sites = told.exchange.sites
    assert isinstance(sites, dict)
    del sites["valley"]
    assert "valley is not connected" in ask(told).absent["valley"]


def test_failed_site_is_absent_above_the_quorum_and_named_below_it(home: Path) -> None:
    one = {"codec": break_down}
    two = {"north": {"codec": add_one}, "harbour": {"codec": add_one}, "valley": one}
    with federation(home, tasks=two) as told:  # type: ignore[arg-type]
        assert "failed: the scans are on holiday" in ask(told).absent["valley"]
    below = {"north": {"codec": add_one}, "harbour": one, "valley": one}
    with (  # type: ignore[arg-type]
        federation(home, tasks=below) as told,
        pytest.raises(QuorumError) as caught,
    ):
        ask_sites(told.run(), "codec", WEIGHTS, round_index=1)
    sentence = caught.value.sentence()
    assert "1 of 3 sites answered, 2 are needed" in sentence
    assert "harbour: failed: the scans are on holiday" in sentence
    assert "valley: failed: the scans are on holiday" in sentence
    assert "north:" not in sentence


def test_site_that_has_not_consented_refuses_in_its_own_words(home: Path) -> None:
    for file in site_home(home, "north").glob("store.sqlite*"):
        file.unlink()
    with federation(home, tasks={site: {"codec": add_one} for site in SITES}) as told:
        assert "refused: site north has given no consent" in ask(told).absent["north"]


def test_every_task_has_a_nonce_of_its_own(told: Federation) -> None:
    ask(told)
    ask_sites(told.run(), "codec", WEIGHTS, round_index=1)
    assert len({task.nonce for task in told.seen}) == 6


def test_what_sites_sent_is_gone_when_they_are_asked_again(told: Federation) -> None:
    first = ask(told).by_site["north"]
    assert first.path("codec").is_file()
    told.spoil["harbour"] = lambda *_: "it sleeps"
    second = ask_sites(told.run(), "codec", {"codec": first.get_tensors("codec")}, round_index=1)
    assert second.by_site["north"].path("codec").is_file()
    with pytest.raises(StorageError):
        first.path("codec")
    assert not any((told.home / "objects").rglob("*"))  # where nothing is ever thrown away


def test_task_is_written_down_when_it_goes(told: Federation) -> None:
    written: list[int] = []

    def count() -> int:
        lines = read_journal(told.home / "journal.jsonl")
        return sum(line.event == "asked" for line in lines)

    class OneByOne(HandlerExchange):
        def send(self, parcels: Mapping[str, MakeParcel], **_: object) -> Any:
            written.append(count())
            for site, make in parcels.items():
                make()
                written.append(count())
                yield site, "it is away" if site == "valley" else self.sites[site](make())

    told.exchange = OneByOne(told.exchange.sites)
    assert set(ask(told).absent) == {"valley"}
    assert written == [0, 1, 3, 5]  # once for each time that it went
