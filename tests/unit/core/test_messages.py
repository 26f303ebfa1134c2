"""Messages have one byte form, bounded fields and a name by content."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import EnvelopeError
from vitrael.core.messages import MOST_FIELDS, Reply, Task
from vitrael.core.rounds import LONGEST_DEADLINE_S

DIGEST = digest_bytes(b"a protocol")
OTHER = digest_bytes(b"another")


def task(**changes: object) -> Task:
    fields = {
        "protocol": DIGEST,
        "roster": DIGEST,
        "site": "north",
        "stage": "codec",
        "round": 0,
        "nonce": "0" * 32,
        "issued_utc": "2031-05-01T12:00:00+00:00",
        "deadline_s": 60.0,
        **changes,
    }
    return Task.model_validate(fields)


def reply(**changes: object) -> Reply:
    names = ("protocol", "roster", "site", "stage", "round", "nonce")
    fields = {name: getattr(task(), name) for name in names}
    return Reply.model_validate({**fields, "status": "done", **changes})


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,48}", fullmatch=True),
        st.floats(allow_nan=False, allow_infinity=False),
        max_size=3,
    )
)
def test_bytes_give_the_same_reply_back(body: dict[str, float]) -> None:
    sent = reply(body=body)
    assert Reply.from_bytes(sent.to_bytes()) == sent


def test_bytes_that_are_not_canonical_are_refused() -> None:
    with pytest.raises(ValueError, match="canonical"):
        Task.from_bytes(task().to_bytes() + b" ")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_body_without_a_json_form_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"JSON|finite"):
        reply(body={"x": value}).to_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "delete"},
        {"round": -1},
        {"nonce": "0" * 31},
        {"protocol": "sha256:1234"},
        {"issued_utc": "2031-05-01T12:00:00+02:00"},
        {"issued_utc": "2031-05-01T12:00:00"},
        {"deadline_s": 0},
        {"deadline_s": LONGEST_DEADLINE_S + 1},
        {"deadline_s": 1e300},
        {"inputs": {"envelope": DIGEST}},
        {"inputs": {"../up": DIGEST}},
        {"surprise": 1},
    ],
)
def test_field_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        task(**changes)


def test_longest_deadline_is_one() -> None:
    assert task(deadline_s=LONGEST_DEADLINE_S).deadline_s == LONGEST_DEADLINE_S


@pytest.mark.parametrize("name", ["", "a" * 49, "\x1b]0;owned\x07", "Loss", "loss\n", "a b", "p1"])
def test_field_name_that_could_carry_a_message_is_refused(name: str) -> None:
    assert reply(body={"curve_loss": 1}).body == {"curve_loss": 1}
    with pytest.raises(ValidationError):
        reply(body={name: 1})


def test_body_has_a_bounded_number_of_fields() -> None:
    names = ["a" * length for length in range(1, MOST_FIELDS + 2)]
    reply(body=dict.fromkeys(names[:-1], 1))
    with pytest.raises(ValidationError):
        reply(body=dict.fromkeys(names, 1))


def test_input_digest_forgets_attempt_and_nonce_alone() -> None:
    again = task(nonce="1" * 32, attempt=1, issued_utc="2031-05-02T12:00:00+00:00")
    assert again.input_digest == task().input_digest
    others = [
        task(inputs={"codec": DIGEST}),
        task(site="south"),
        task(roster=OTHER),
    ]
    assert task().input_digest not in {other.input_digest for other in others}


def test_reply_answers_its_task() -> None:
    reply().check_answers(task())


@pytest.mark.parametrize(
    "changes", [{"nonce": "1" * 32}, {"round": 1}, {"stage": "teacher"}, {"protocol": OTHER}]
)
def test_reply_to_another_task_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeError, match=next(iter(changes))):
        reply(**changes).check_answers(task())
