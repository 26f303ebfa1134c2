"""A steward answers a round once, for one set of inputs, and signs one release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vitrael.client.site.tasks import TaskResult
from vitrael.core.errors import AuthError, CohortError, VitraelError
from vitrael.core.messages import Parcel
from vitrael.core.weights import pack_tensors
from vitrael.privacy.keys import KeyPair

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.client.site.steward import Steward
    from vitrael.client.site.tasks import SiteContext
    from vitrael.core.messages import Task
    from vitrael.core.weights import Tensors

SECRET = "patient p-17"


def test_finished_update_is_returned_again_and_not_computed_twice(
    home: Home, steward: Steward, counting: CountingTask
) -> None:
    first, outputs = home.open(steward.answer(home.parcel(home.task())))
    steward.close()
    counting.error = RuntimeError("must not run")
    task = home.task(attempt=1)
    again, same = home.open(home.steward({"codec": counting}).answer(home.parcel(task)))
    again.check_answers(task)
    assert counting.calls == 1
    assert (again.nonce != first.nonce, again.outputs) == (True, first.outputs)
    assert pack_tensors(same["codec"]) == pack_tensors(outputs["codec"])


def screening(home: Home, image: np.ndarray, **changes: object) -> Parcel:
    attachments = {"candidates": {"image": image}}
    return home.parcel(home.task(attachments, stage="screening", **changes), attachments)


@dataclass
class Voter:
    calls: int = 0
    error: Exception | None = None

    def __call__(
        self, _task: object, inputs: Mapping[str, Tensors], _context: object
    ) -> TaskResult:
        self.calls += 1
        if self.error is not None:
            raise self.error
        keep = np.ones(len(inputs["candidates"]["image"]), np.uint8)
        return TaskResult(
            body={"estimable": True}, tensors={"votes": {"keep": keep}}, num_examples=len(keep)
        )


def test_round_is_answered_for_one_set_of_inputs(home: Home) -> None:
    home.consent()
    vote = Voter()
    steward = home.steward({"screening": vote})
    image = np.zeros((3, 1, 2, 2, 2), np.float32)
    changed = image.copy()
    changed[0, 0, 0, 0, 0] = 1e-3
    first, votes = home.open(steward.answer(screening(home, image)))
    assert first.status == "done"

    reply, outputs = home.open(steward.answer(screening(home, changed)))
    assert (reply.status, reply.body, outputs, vote.calls) == ("refused", {}, {}, 1)
    assert "answered already for other inputs" in reply.reason
    line = home.lines()[-1]
    assert (line.event, line.stage, line.reason) == ("refused", "screening", reply.reason)

    again, same = home.open(steward.answer(screening(home, image)))
    assert (again.status, vote.calls) == ("done", 1)
    np.testing.assert_array_equal(same["votes"]["keep"], votes["votes"]["keep"])


@pytest.mark.parametrize("said", [CohortError("no patients"), AuthError("not now")])
def test_round_without_an_answer_may_be_asked_with_other_inputs(
    home: Home, said: VitraelError
) -> None:
    home.consent()
    vote = Voter(error=said)
    steward = home.steward({"screening": vote})
    image = np.zeros((3, 1, 2, 2, 2), np.float32)
    assert home.open(steward.answer(screening(home, image)))[0].status in {"failed", "refused"}
    vote.error = None
    assert home.open(steward.answer(screening(home, image + 1)))[0].status == "done"


def test_stage_without_rounds_has_one_alone(home: Home) -> None:
    home.consent()
    steward = home.steward({"signing": lambda *_: TaskResult(body={"signature": "x"})})
    brought = {"manifest": {"manifest.json": np.zeros(3, np.uint8)}}
    parcel = home.parcel(home.task(brought, stage="signing", round=1), brought)
    reply, _ = home.open(steward.answer(parcel))
    assert (reply.status, reply.body) == ("refused", {})
    assert "one round alone" in reply.reason


def cap_of(home: Home) -> int:
    return home.study.synthesis.distillation.most_votes["screening"]


def test_votes_over_the_cap_are_refused_and_tell_nothing(home: Home) -> None:
    home.consent()
    vote = Voter()
    steward, most = home.steward({"screening": vote}), cap_of(home)
    assert most == 32
    rounds = [np.full((most // 4, 1, 2, 2, 2), number, np.float32) for number in range(4)]
    parcels = [screening(home, image, round=n) for n, image in enumerate(rounds)]
    for parcel in parcels:
        assert home.open(steward.answer(parcel))[0].status == "done"
    reply, outputs = home.open(steward.answer(screening(home, rounds[0][:1], round=4)))
    assert (reply.status, reply.body, outputs, vote.calls) == ("failed", {}, {}, 4)
    assert "1 after 32, of at most 32" in reply.reason
    for number, image in enumerate(rounds):  # what was asked before costs nothing
        again, _ = home.open(steward.answer(screening(home, image, round=number)))
        assert again.status == "done"
    assert vote.calls == 4


def test_one_round_over_the_cap_is_refused_and_costs_nothing(home: Home) -> None:
    home.consent()
    vote = Voter()
    steward, most = home.steward({"screening": vote}), cap_of(home)
    many = np.zeros((most + 1, 1, 2, 2, 2), np.float32)
    reply, _ = home.open(steward.answer(screening(home, many)))
    assert (reply.status, reply.body, vote.calls) == ("failed", {}, 0)
    assert home.open(steward.answer(screening(home, many[:-1])))[0].status == "done"  # the control


def test_votes_of_another_roster_count_against_the_cap(home: Home) -> None:
    home.consent()
    vote = Voter()
    image = np.zeros((cap_of(home), 1, 2, 2, 2), np.float32)
    steward = home.steward({"screening": vote})
    assert home.open(steward.answer(screening(home, image)))[0].status == "done"
    home.members["valley"] = KeyPair.create()
    home.consent()
    reply, _ = home.open(steward.answer(screening(home, image[:1])))
    assert (reply.status, reply.body, vote.calls) == ("failed", {}, 1)


def test_votes_on_samples_have_a_cap_of_their_own(home: Home) -> None:
    home.consent()

    def vote(_task: Task, inputs: Mapping[str, Tensors], _context: object) -> TaskResult:
        keep = np.ones(len(inputs["samples"]), np.uint8)
        return TaskResult(
            body={"estimable": True}, tensors={"votes": {"keep": keep}}, num_examples=len(keep)
        )

    steward = home.steward({"rescreening": vote, "screening": Voter()})
    image = np.zeros((cap_of(home), 1, 2, 2, 2), np.float32)
    assert home.open(steward.answer(screening(home, image)))[0].status == "done"
    said = []
    for number, count in enumerate((4, 1)):  # one sample is wanted
        brought = {"samples": {f"{name}.nii.gz": np.zeros(3, np.uint8) for name in range(count)}}
        task = home.task(brought, stage="rescreening", round=number)
        said.append(home.open(steward.answer(home.parcel(task, brought)))[0].status)
    assert said == ["done", "failed"]


def test_votes_that_are_not_counted_as_such_do_not_leave(home: Home) -> None:
    home.consent()

    def vote(_task: Task, inputs: Mapping[str, Tensors], _context: object) -> TaskResult:
        keep = np.ones(len(inputs["candidates"]["image"]), np.uint8)
        return TaskResult(
            body={"estimable": True}, tensors={"votes": {"keep": keep}}, num_examples=1
        )

    steward = home.steward({"screening": vote})
    reply, _ = home.open(steward.answer(screening(home, np.zeros((3, 1, 2, 2, 2), np.float32))))
    assert (reply.status, reply.body) == ("failed", {})
    assert "not counted" in reply.reason


def test_next_round_has_other_inputs(home: Home, steward: Steward) -> None:
    for number in range(2):
        brought = {"codec": {"w": np.full((2, 3), number, np.float32)}}
        task = home.task(brought, round=number)
        assert home.open(steward.answer(home.parcel(task, brought)))[0].status == "done"


def test_one_release_of_a_protocol_is_signed(home: Home) -> None:
    home.consent()
    steward = home.steward({"signing": lambda *_: TaskResult(body={"signature": "x"})})
    for number, status in enumerate(("done", "refused")):
        brought = {"manifest": {"manifest.json": np.full(3, number, np.uint8)}}
        task = home.task(brought, stage="signing")
        assert home.open(steward.answer(home.parcel(task, brought)))[0].status == status


@pytest.mark.parametrize("amends", [True, False])
def test_amended_roster_opens_no_answered_round_for_other_inputs(
    home: Home, counting: CountingTask, *, amends: bool
) -> None:
    home.consent()
    steward = home.steward({"codec": counting})
    earlier = home.task()
    assert home.open(steward.answer(home.parcel(earlier)))[0].status == "done"
    home.members["valley"] = KeyPair.create()
    predecessor = earlier.roster if amends else None
    roster = home.study.roster.model_copy(update={"predecessor": predecessor})
    home.consent(home.study.model_copy(update={"roster": roster}))
    other = {"codec": {"w": np.full((2, 3), 7, np.float32)}}
    reply, _ = home.open(steward.answer(home.parcel(home.task(other), other)))
    assert reply.status == ("refused" if amends else "done")
    same = home.task()  # a round that was cut off is asked again as it was
    assert home.open(steward.answer(home.parcel(same)))[0].status == (
        "done" if amends else "refused"
    )


def test_another_roster_has_records_of_its_own_and_no_second_release(home: Home) -> None:
    seen: list[SiteContext] = []

    def sign(_task: Task, _inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        seen.append(context)
        return TaskResult(body={"signature": "x"})

    def vote(_task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        seen.append(context)
        keep = np.ones(len(inputs["candidates"]["image"]), np.uint8)
        return TaskResult(
            body={"estimable": True}, tensors={"votes": {"keep": keep}}, num_examples=len(keep)
        )

    image = np.zeros((3, 1, 2, 2, 2), np.float32)
    brought = {"manifest": {"manifest.json": np.zeros(3, np.uint8)}}
    said = []
    for _ in range(2):
        home.consent()
        steward = home.steward({"signing": sign, "screening": vote})
        steward.answer(screening(home, image))
        reply, _ = home.open(
            steward.answer(home.parcel(home.task(brought, stage="signing"), brought))
        )
        said.append(reply.status)
        home.members["valley"] = KeyPair.create()  # the same names, another roster
        image = image + 1  # what another roster's networks would draw
    assert said == ["done", "refused"]
    assert len({context.records for context in seen}) == 2
    assert seen[0] is seen[1]
