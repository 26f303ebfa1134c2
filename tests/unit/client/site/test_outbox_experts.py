"""What may leave a site of a study of experts: its own weights, and of single pictures nothing."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.factories import site_study
from tests.factories.own_views import VIEWS, experts_study
from tests.fakes.clock import FakeClock
from vitrael.client.site.outbox import Outbox
from vitrael.client.site.rules import RULES
from vitrael.client.site.settings import Limits
from vitrael.client.site.tasks import TaskResult, study_layouts
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.messages import STAGES, Task
from vitrael.core.study import parse_study
from vitrael.privacy.journal import Journal
from vitrael.privacy.keys import KeyPair, roster_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitrael.client.site.store import Finished
    from vitrael.core.messages import StageName
    from vitrael.core.study import Study
    from vitrael.core.weights import Tensors

STUDY = experts_study()
FEATURES = experts_study({"told": "features"})
SYNTHESIS = parse_study(site_study.STUDY.encode(), label="site-test")
BODY = {"words": {"A2C": "A2C", "apical 4": "A4C"}, "calibrated": True}
WIDTH = 17
OUTLOOKS = {
    "images": np.array([12, 11, 0, 0]),
    "mean": np.zeros((2, 4, WIDTH), np.float32),
    "std": np.ones((2, WIDTH), np.float32),
}
SINGLE = {
    "view": np.repeat([0, 1], [12, 11]),
    "seen": np.zeros((2, 23, WIDTH), np.float32),
}
COUNTS = {
    "images": np.array([12, 11, 0, 0]),
    "right": np.full((9, 4), -1),
    "heaviest": np.zeros(4, np.int64),
    "weight": np.array([0.25, 0.75]),
}


@pytest.fixture(scope="module")
def outbox(tmp_path_factory: pytest.TempPathFactory) -> Outbox:
    return Outbox(
        Journal(tmp_path_factory.mktemp("outbox") / "journal.jsonl", clock=FakeClock()),
        site="north",
        keys=KeyPair.create(),
        coordinator=KeyPair.create().public,
        limits=Limits(),
    )


def task_of(stage: StageName, study: Study = STUDY) -> Task:
    return Task(
        protocol=study.protocol.digest,
        roster=roster_digest({}),
        site="north",
        stage=stage,
        round=0,
        nonce="0" * 32,
        issued_utc="2031-05-01T12:00:00+00:00",
        deadline_s=60.0,
    )


def check(
    outbox: Outbox,
    stage: StageName,
    tensors: Mapping[str, Tensors],
    *,
    body: Mapping[str, Any] | None = None,
    study: Study = STUDY,
    inputs: Mapping[str, Tensors] | None = None,
) -> Finished:
    result = TaskResult(body=body or {}, tensors=tensors, num_examples=23)
    return outbox.check(task_of(stage, study), result, inputs or {}, study=study)


@cache
def layout_of(study_changes: tuple[tuple[str, Any], ...] = ()) -> Tensors:
    return study_layouts(experts_study(dict(study_changes)))["expert"]


def expert(classes: int, **changes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return what an expert of so many views publishes; ``changes`` are of its network."""
    keys = tuple((f"systems.0.{key}", value) for key, value in changes.items())
    return {
        key: np.ones((classes, *a.shape[1:]) if key.startswith("net.head.") else a.shape, a.dtype)
        for key, a in layout_of(keys).items()
    }


def test_every_stage_of_experts_has_a_rule() -> None:
    assert set(STAGES["experts"]) <= set(RULES)
    assert set(STAGES["experts"]) | set(STAGES["synthesis"]) == set(RULES)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_expert_of_some_or_all_views_may_leave(outbox: Outbox, classes: int) -> None:
    sent = {"expert": expert(classes)}
    finished = check(outbox, "expert", sent, body=BODY)
    assert finished.body == BODY
    assert finished.tensors is sent


@pytest.mark.parametrize("classes", [0, 1, 5, 64])
def test_expert_of_another_number_of_views_is_refused(outbox: Outbox, classes: int) -> None:
    assert len(VIEWS) == 4
    with pytest.raises(WeightsError, match="outbox refuses expert"):
        check(outbox, "expert", {"expert": expert(classes)}, body=BODY)


def without(name: str) -> dict[str, np.ndarray]:
    return {key: array for key, array in expert(2).items() if key != name}


WRONG: dict[str, dict[str, np.ndarray]] = {
    "a wider network": expert(2, channels=(4, 4, 8, 16)),
    "a deeper network": expert(2, blocks=(1, 1, 1, 2)),
    "another array": {**expert(2), "patient-17": np.ones(3, np.float32)},
    "another array of the head": {**expert(2), "net.head.extra": np.ones((2, 8), np.float32)},
    "no head": without("net.head.weight"),
    "no scores": without("score.largest"),
    "nothing": {},
    "rows that differ": {**expert(2), "net.head.bias": np.ones(3, np.float32)},
    "doubles": {**expert(2), "activity.mean": expert(2)["activity.mean"].astype(np.float64)},
    "not a number": {**expert(2), "score.mean": expert(2)["score.mean"] * np.nan},
    "infinite": {**expert(2), "net.head.bias": np.full(2, np.inf, np.float32)},
    "more than a mean": {**expert(2), "activity.mean": np.ones((2, 36), np.float32)},
}


@pytest.mark.parametrize("fault", list(WRONG))
def test_weights_of_another_network_are_refused(outbox: Outbox, fault: str) -> None:
    with pytest.raises(WeightsError, match="outbox refuses") as caught:
        check(outbox, "expert", {"expert": WRONG[fault]}, body=BODY)
    assert "patient-17" not in str(caught.value)


def test_expert_that_is_missing_is_refused(outbox: Outbox) -> None:
    with pytest.raises(WeightsError, match="expert is missing"):
        check(outbox, "expert", {}, body=BODY)


def test_expert_is_held_against_the_study_and_not_against_the_task(outbox: Outbox) -> None:
    """A coordinator could bring a start with room for more."""
    wide = WRONG["a wider network"]
    with pytest.raises(WeightsError, match="outbox refuses expert"):
        check(outbox, "expert", {"expert": wide}, body=BODY, inputs={"expert": wide})


@pytest.mark.parametrize(
    "body",
    [
        {**BODY, "words": {"A2C": "A2C"}},
        {**BODY, "words": {f"w{n}": "A2C" for n in range(65)}},
        {**BODY, "words": {"A2C": "A2C", "x" * 65: "A4C"}},
        {**BODY, "words": {"A2C": "A2C", "": "A4C"}},
        {**BODY, "words": {"A2C": "A2C", "A4C": 11}},
        {**BODY, "calibrated": 11},
        {"calibrated": True},
        {"words": BODY["words"]},
        {**BODY, "patients": 11},
    ],
)
def test_word_or_field_out_of_bounds_is_refused(outbox: Outbox, body: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="outbox refuses"):
        check(outbox, "expert", {"expert": expert(2)}, body=body)
    check(outbox, "expert", {"expert": expert(2)}, body=BODY)  # the control


def test_means_of_views_may_leave(outbox: Outbox) -> None:
    for study in (STUDY, FEATURES):
        finished = check(outbox, "outlooks", {"outlooks": OUTLOOKS}, study=study)
        assert finished.tensors == {"outlooks": OUTLOOKS}


@pytest.mark.parametrize("names", [("view",), ("seen",), ("view", "seen")])
def test_single_pictures_are_told_of_only_where_the_study_says_so(
    outbox: Outbox, names: tuple[str, ...]
) -> None:
    sent = {"outlooks": {**OUTLOOKS, **{name: SINGLE[name] for name in names}}}
    check(outbox, "outlooks", sent, body={"pictures": 23}, study=FEATURES)
    for study in (STUDY, SYNTHESIS):
        with pytest.raises(WeightsError, match="tells of single pictures") as caught:
            check(outbox, "outlooks", sent, study=study)
        assert "asks for none" in caught.value.why


@pytest.mark.parametrize(
    ("stage", "attachment", "arrays"),
    [
        ("outlooks", "outlooks", {**OUTLOOKS, "image": np.zeros((2, 16, 16), np.float32)}),
        ("outlooks", "outlooks", {**OUTLOOKS, "mean": OUTLOOKS["mean"].astype(np.float64)}),
        ("outlooks", "outlooks", {**OUTLOOKS, "std": OUTLOOKS["std"] * np.nan}),
        ("outlooks", "outlooks", {**OUTLOOKS, "images": np.ones(257, np.int64)}),
        ("outlooks", "scans", OUTLOOKS),
        ("comparison", "counts", {**COUNTS, "answer": np.zeros(34, np.int64)}),
        ("comparison", "counts", {**COUNTS, "right": np.zeros((9, 4))}),
        ("comparison", "counts", {**COUNTS, "weight": COUNTS["weight"] * np.inf}),
        ("comparison", "counts", {**COUNTS, "heaviest": np.zeros(257, np.int64)}),
        ("comparison", "outlooks", OUTLOOKS),
        ("expert", "outlooks", OUTLOOKS),
    ],
)
def test_array_off_the_list_or_out_of_bounds_is_refused(
    outbox: Outbox, stage: StageName, attachment: str, arrays: Tensors
) -> None:
    body = BODY if stage == "expert" else {}
    with pytest.raises(WeightsError, match="outbox refuses"):
        check(outbox, stage, {attachment: arrays}, body=body, study=FEATURES)


def test_counts_may_leave_and_nothing_beside_them(outbox: Outbox) -> None:
    check(outbox, "comparison", {"counts": COUNTS})
    with pytest.raises(DataError, match="not on its list"):
        check(outbox, "comparison", {"counts": COUNTS}, body={"curve_loss": [0.5]})


@pytest.mark.parametrize("pictures", [-1, 1 << 41, 1.5, True, "23"])
def test_number_of_pictures_is_a_count(outbox: Outbox, pictures: object) -> None:
    with pytest.raises(DataError, match="refuses the field pictures"):
        check(outbox, "outlooks", {"outlooks": OUTLOOKS}, body={"pictures": pictures})
    check(outbox, "outlooks", {"outlooks": OUTLOOKS}, body={"pictures": 0})  # the control


@pytest.mark.parametrize("part", ["metrics", "counts"])
def test_number_that_is_no_listed_risk_is_refused(outbox: Outbox, part: str) -> None:
    body = {part: {"patient.17.age": 44}}
    with pytest.raises(DataError, match="not on its list"):
        check(outbox, "outlooks", {"outlooks": OUTLOOKS}, body=body)


@pytest.mark.parametrize("stage", ["averaged", "relay"])
def test_common_network_is_like_that_of_the_task_and_of_the_study(
    outbox: Outbox, stage: StageName
) -> None:
    layout = study_layouts(STUDY)["common"]
    common = {"common": {key: np.ones(a.shape, a.dtype) for key, a in layout.items()}}
    check(outbox, stage, common, inputs=common)
    head = {**common["common"], "head.bias": np.ones(3, np.float32)}
    for sent, asked in (
        (common, {}),
        ({"common": head}, common),
        ({"common": head}, {"common": head}),
    ):
        with pytest.raises(WeightsError, match="outbox refuses common"):
            check(outbox, stage, sent, inputs=asked)
    task = task_of(stage)
    outbox.demand_weights(task, common, study=STUDY)
    with pytest.raises(WeightsError, match="outbox refuses common"):  # before anything is trained
        outbox.demand_weights(task, {"common": head}, study=STUDY)


def test_expert_is_no_part_of_a_study_of_a_synthetic_set(outbox: Outbox) -> None:
    with pytest.raises(DataError, match="words that the study does not map"):
        check(outbox, "expert", {"expert": expert(2)}, body=BODY, study=SYNTHESIS)


def test_canary_of_an_expert_is_seconds_and_images(outbox: Outbox) -> None:
    body = {"expert_images": 32, "expert_s": 0.5}
    assert check(outbox, "canary", {}, body=body).body == body
    for wrong in ({"expert_images": 0}, {"expert_s": -1.0}, {"expert_s": float("nan")}):
        with pytest.raises(DataError, match="outbox refuses the field"):
            check(outbox, "canary", {}, body={**body, **wrong})
