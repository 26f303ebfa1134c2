"""Nothing leaves but what the allow-list names, within its bounds, after its line is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest

from tests.factories.certificates import make_certificate
from vitrael.client.site.outbox import Layouts, Outbox
from vitrael.client.site.rules import RULES
from vitrael.client.site.settings import Limits
from vitrael.client.site.tasks import TASKS, TaskResult
from vitrael.core.digest import Digest
from vitrael.core.errors import ConsentError, DataError, StorageError, WeightsError
from vitrael.core.messages import StageName
from vitrael.core.metrics.intervals import Estimate
from vitrael.privacy.audit.closeness import Closeness
from vitrael.privacy.audit.copies import Copies
from vitrael.privacy.audit.membership import Membership
from vitrael.privacy.audit.parts import write_audit
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.journal import Entry, Journal

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home
    from vitrael.core.study import Study
    from vitrael.core.weights import Tensors

W = np.ones((2, 3), np.float32)
INPUTS = {"codec": {"w": W}}


@pytest.fixture
def outbox(home: Home) -> Outbox:
    return make_outbox(home)


def study_layouts(_study: Study) -> dict[str, Tensors]:
    return {"codec": {"w": np.empty((2, 3), np.float32)}}


def make_outbox(home: Home, layouts: Layouts = study_layouts, **limits: int) -> Outbox:
    return Outbox(
        Journal(home.settings.journal, clock=home.clock),
        site="north",
        keys=home.keys,
        coordinator=home.coordinator.public,
        limits=Limits(**limits),
        layouts=layouts,
    )


def result(body: Mapping[str, object] | None = None, **tensors: Tensors) -> TaskResult:
    return TaskResult(body=body or {}, tensors=tensors or {"codec": {"w": W}}, num_examples=3)


def test_every_stage_has_a_task_and_a_rule() -> None:
    assert set(RULES) == set(TASKS) == set(get_args(StageName))


def test_listed_result_leaves_sealed_and_signed(home: Home, outbox: Outbox) -> None:
    task = home.task()
    sent = result({"curve_images": [8], "curve_loss": [0.5]})
    parcel = outbox.send(task, outbox.check(task, sent, INPUTS, study=home.study))
    reply, outputs = home.open(parcel)
    reply.check_answers(task)
    assert (reply.status, reply.num_examples, reply.body["curve_loss"]) == ("done", 3, [0.5])
    np.testing.assert_array_equal(outputs["codec"]["w"], W)
    assert W.tobytes() not in parcel["codec"]


def test_line_says_all_but_the_values(home: Home, outbox: Outbox) -> None:
    task = home.task()
    parcel = outbox.send(
        task, outbox.check(task, result({"curve_loss": [0.5]}), INPUTS, study=home.study)
    )
    (line,) = home.lines()
    assert line.bytes == sum(map(len, parcel.values()))
    assert (line.event, line.stage, line.round, line.nonce) == ("sent", "codec", 0, task.nonce)
    assert line.to.startswith("coordinator ")
    assert line.fields == ("curve_loss", "num_examples")
    assert line.attachments == home.open(parcel)[0].outputs
    assert "0.5" not in line.model_dump_json()


def test_nothing_leaves_when_its_line_cannot_be_written(
    home: Home, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitrael.privacy.journal.os.fsync", full)
    with pytest.raises(StorageError, match="journal"):
        outbox.send(home.task(), outbox.check(home.task(), result(), INPUTS, study=home.study))


def test_line_is_written_while_the_result_may_leave_and_not_otherwise(
    home: Home, outbox: Outbox
) -> None:
    task = home.task()
    finished = outbox.check(task, result(), INPUTS, study=home.study)

    @contextmanager
    def leaving() -> Iterator[None]:
        assert home.lines() == []
        yield
        assert [line.event for line in home.lines()] == ["sent"]

    @contextmanager
    def staying() -> Iterator[None]:
        raise ConsentError("the consent was taken back")
        yield

    with pytest.raises(ConsentError):
        outbox.send(task, finished, leaving=staying)
    outbox.send(task, finished, leaving=leaving)


@pytest.mark.parametrize(
    "body",
    [
        {"patient": "p-17"},
        {"curve_loss": "long"},
        {"curve_loss": [float("nan")]},
        {"curve_loss": [float("inf")]},
        {"curve_loss": [0.5] * 201},
        {"curve_images": [0.5]},
        {"curve_loss": {"p-17": 0.5}},
    ],
)
def test_field_off_the_list_or_out_of_bounds_is_refused(
    home: Home, outbox: Outbox, body: dict[str, object]
) -> None:
    with pytest.raises(DataError, match="outbox refuses") as caught:
        outbox.check(home.task(), result(body), INPUTS, study=home.study)
    assert "p-17" not in str(caught.value)
    assert "patient" not in str(caught.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {"codec": {"w": W}, "scans": {"x": W}},
        {"envelope": {"w": W}},
        {"codec": {"w": W, "p-17": W}},
        {"codec": {}},
        {"codec": {"w": W[:1]}},
        {"codec": {"w": W.astype(np.float64)}},
        {"codec": {"w": W * np.nan}},
        {"codec": {"w": W * np.inf}},
    ],
)
def test_tensor_off_the_list_or_not_like_the_task_is_refused(
    home: Home, outbox: Outbox, tensors: dict[str, Tensors]
) -> None:
    with pytest.raises(WeightsError, match="outbox refuses") as caught:
        outbox.check(home.task(), result(**tensors), INPUTS, study=home.study)
    assert "p-17" not in str(caught.value)


def test_weights_that_are_missing_are_refused(home: Home, outbox: Outbox) -> None:
    with pytest.raises(WeightsError, match="codec is missing"):
        outbox.check(home.task(), TaskResult(num_examples=3), INPUTS, study=home.study)


def test_weights_for_which_the_task_brought_no_like_are_refused(home: Home, outbox: Outbox) -> None:
    with pytest.raises(WeightsError, match="nothing like it"):
        outbox.check(home.task(), result(), {}, study=home.study)


@pytest.mark.parametrize(
    "arrays",
    [
        {"keep": np.ones(2, np.uint8)},
        {"keep": np.ones((3, 1), np.uint8)},
        {"keep": np.full(3, 2, np.uint8)},
        {"keep": np.ones(3, np.float32)},
        {"scores": np.ones(3, np.uint8)},
    ],
)
def test_votes_are_one_bit_a_candidate(
    home: Home, outbox: Outbox, arrays: dict[str, np.ndarray]
) -> None:
    task = home.task(stage="screening")
    asked = {"candidates": {"image": np.zeros((3, 1, 2, 2, 2), np.float32)}}
    good = TaskResult(tensors={"votes": {"keep": np.ones(3, np.uint8)}}, num_examples=3)
    outbox.check(task, good, asked, study=home.study)
    bad = replace(good, tensors={"votes": arrays})
    with pytest.raises(WeightsError, match="outbox refuses votes"):
        outbox.check(task, bad, asked, study=home.study)
    files = {"samples": {f"{name}.nii.gz": np.zeros(9, np.uint8) for name in "abc"}}
    again = home.task(stage="rescreening")
    outbox.check(again, good, files, study=home.study)
    with pytest.raises(WeightsError, match="outbox refuses votes"):
        outbox.check(again, bad, files, study=home.study)


@pytest.mark.parametrize(
    "arrays",
    [
        {"latent.sum": np.ones(5_000)},
        {"latent.sum": np.array([np.nan])},
        {"latent.sum": np.ones(3, np.float32)},
        {"latent.values": np.ones(3)},
    ],
)
def test_sum_off_the_list_or_out_of_bounds_is_refused(
    home: Home, outbox: Outbox, arrays: dict[str, np.ndarray]
) -> None:
    task = home.task(stage="latents")
    outbox.check(
        task, TaskResult(tensors={"moments": {"latent.sum": np.ones(3)}}), {}, study=home.study
    )
    with pytest.raises(WeightsError, match="outbox refuses moments"):
        outbox.check(task, TaskResult(tensors={"moments": arrays}), {}, study=home.study)


@pytest.mark.parametrize("stage", ["calibration", "screening", "rescreening", "audit"])
@pytest.mark.parametrize("part", ["metrics", "counts"])
def test_number_off_the_list_is_refused(home: Home, outbox: Outbox, stage: str, part: str) -> None:
    body = {"estimable": True, part: {"patient.17.age": 44}}
    with pytest.raises(DataError, match="not on its list") as caught:
        outbox.check(home.task(stage=stage), TaskResult(body=body), {}, study=home.study)
    assert "17" not in str(caught.value)


DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize("stage", ["calibration", "screening", "rescreening", "audit"])
def test_commitment_is_a_digest_or_nothing(home: Home, outbox: Outbox, stage: str) -> None:
    for commitment in ("", DIGEST):
        body = {"estimable": True, "commitment": commitment}
        assert (
            outbox.check(home.task(stage=stage), TaskResult(body=body), {}, study=home.study).body
            == body
        )
    for wrong in ("p-17", DIGEST[:-1], f"{DIGEST}\n", DIGEST.upper(), None):
        body = {"estimable": True, "commitment": wrong}
        with pytest.raises(DataError, match="refuses the field commitment"):
            outbox.check(home.task(stage=stage), TaskResult(body=body), {}, study=home.study)


def test_commitment_is_the_filters_alone(home: Home, outbox: Outbox) -> None:
    with pytest.raises(DataError, match="not on its list"):
        outbox.check(
            home.task(stage="latents"),
            TaskResult(body={"commitment": DIGEST}),
            {},
            study=home.study,
        )


def test_whole_audit_is_on_the_list(home: Home, outbox: Outbox) -> None:
    estimate = Estimate(0.5, 0.01)
    body = write_audit(
        certificate=make_certificate(20, 19),
        plants_absent=400,
        fresh=Tally(20, 1),
        copies=Copies(samples=96, hits=1, control_hits=0, scale=1.0, planted=20, planted_hits=19),
        closeness=Closeness(patients=20, share=0.5, error=0.1),
        membership=Membership(estimate, estimate, estimate, members=20, others=20),
    )
    checked = outbox.check(home.task(stage="audit"), TaskResult(body=body), {}, study=home.study)
    assert checked.body == body


def test_weights_that_the_study_does_not_train_are_refused(home: Home, outbox: Outbox) -> None:
    wide = {"codec": {"w": np.ones((2, 4), np.float32)}}
    more = {"codec": {"w": W, "extra": W}}
    outbox.demand_weights(home.task(), INPUTS, study=home.study)
    for asked in (wide, more, {"codec": {"w": W.astype(np.float64)}}, {"codec": {}}):
        with pytest.raises(WeightsError, match="outbox refuses codec"):
            outbox.demand_weights(home.task(), asked, study=home.study)
        with pytest.raises(WeightsError, match="outbox refuses codec"):
            outbox.check(home.task(), result(**asked), asked, study=home.study)


def test_layouts_of_a_study_are_asked_for_once(home: Home) -> None:
    asked: list[object] = []

    def layouts(study: Study) -> dict[str, Tensors]:
        asked.append(study)
        return INPUTS

    outbox = make_outbox(home, layouts=layouts)
    for _ in range(3):
        outbox.check(home.task(), result(), INPUTS, study=home.study)
    assert asked == [home.study]


@pytest.mark.parametrize("count", [-1, 1 << 41, 10**400, True, 1.5])
def test_count_that_could_carry_a_message_is_refused(
    home: Home, outbox: Outbox, count: object
) -> None:
    task = home.task(stage="screening")
    body = {"counts": {"candidates": 3}}
    assert outbox.check(task, TaskResult(body=body), {}, study=home.study).body == body
    with pytest.raises(DataError, match="refuses the field counts"):
        outbox.check(task, TaskResult(body={"counts": {"candidates": count}}), {}, study=home.study)
    with pytest.raises(DataError, match="refuses the field curve_images"):
        outbox.check(home.task(), result({"curve_images": [count]}), INPUTS, study=home.study)


def test_bytes_that_left_are_those_of_the_journal_and_of_the_protocol(
    home: Home, outbox: Outbox
) -> None:
    protocol, other = home.study.protocol.digest, Digest(DIGEST)
    assert outbox.bytes_left_for(protocol) == 0
    sizes = [sum(map(len, outbox.send_word(home.task(), status="failed", reason="x").values()))]
    assert outbox.bytes_left_for(protocol) == sizes[0]
    parcel = outbox.send(home.task(), outbox.check(home.task(), result(), INPUTS, study=home.study))
    another = Journal(home.settings.journal, clock=home.clock)  # as another process writes it
    another.append(Entry(event="sent", protocol=other, bytes=7))
    another.append(Entry(event="held", protocol=other, bytes=9))
    assert outbox.bytes_left_for(protocol) == sizes[0] + sum(map(len, parcel.values()))
    assert outbox.bytes_left_for(other) == 7
    assert make_outbox(home).bytes_left_for(protocol) == outbox.bytes_left_for(protocol)


def test_more_bytes_than_the_site_allows_are_refused(home: Home) -> None:
    make_outbox(home, parcel_bytes=24).check(home.task(), result(), INPUTS, study=home.study)
    with pytest.raises(DataError, match="24 bytes are more than the 23"):
        make_outbox(home, parcel_bytes=23).check(home.task(), result(), INPUTS, study=home.study)


@pytest.mark.parametrize("count", [-1, 10**9])
def test_count_out_of_bounds_is_refused(home: Home, outbox: Outbox, count: int) -> None:
    with pytest.raises(DataError, match="count of examples"):
        outbox.check(
            home.task(), TaskResult(tensors=INPUTS, num_examples=count), INPUTS, study=home.study
        )


def test_word_is_one_sentence_and_bounded(home: Home, outbox: Outbox) -> None:
    reply, outputs = home.open(outbox.send_word(home.task(), status="failed", reason="x" * 5000))
    assert (reply.status, len(reply.reason), outputs) == ("failed", 1000, {})
    assert [line.event for line in home.lines()] == ["failed"]
