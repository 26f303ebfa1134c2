"""What a site sends is refused or bounded, recorded and shown; its round goes on without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.federation import SITES, Federation, federation
from tests.factories.updates import adding, agree, answer_as
from vitrael.core.errors import QuorumError
from vitrael.core.messages import Parcel, Task
from vitrael.core.weights import Tensors
from vitrael.privacy.envelope import open_reply_parcel
from vitrael.server.studies import correspondence
from vitrael.server.studies.absences import find_contributors
from vitrael.server.studies.canary import try_sites
from vitrael.server.studies.federated import collect_consents, train_codec
from vitrael.server.studies.ledger import StageRecord
from vitrael.server.studies.participation import (
    record_participation,
    tell_outcome,
)

Change = Callable[[dict[str, np.ndarray]], Mapping[str, Tensors]]
AMOUNTS = {"north": 1.0, "harbour": 2.0, "valley": 3.0}


@pytest.fixture
def told(home: Path) -> Iterator[Federation]:
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as opened:
        yield opened


def train(told: Federation) -> list[StageRecord]:
    run = told.run()
    collect_consents(run)
    train_codec(run)
    return [record for record in run.finished() if record.key.stage == "codec"]


def send_instead(told: Federation, site: str, change: Change, **fields: Any) -> None:
    """Let a site sign something else in every round of the codec."""

    def spoil(task: Task, parcel: Parcel) -> Parcel:
        if task.stage != "codec":
            return parcel
        run = told.run()
        opened = open_reply_parcel(parcel, task, coordinator=run.keys, site=run.members[site])
        return answer_as(told, task, change(dict(opened.tensors["codec"])), **fields)

    told.spoil[site] = spoil


def first(value: np.ndarray | None, *, name: str | None = None) -> Change:
    """Return a change of the first floating-point tensor, to another name if one is given."""

    def change(weights: dict[str, np.ndarray]) -> Mapping[str, Tensors]:
        own = min(n for n, a in weights.items() if a.dtype == np.float32 and a.size > 1)
        if value is None:
            weights.pop(own)
        else:
            weights[name or own] = value.astype(value.dtype)
        return {"codec": weights}

    return change


BAD: dict[str, tuple[Change, str]] = {
    "other name": (first(np.ones(3, np.float32), name="a.backdoor"), "is not expected"),
    "missing": (first(None), "is missing"),
    "other shape": (first(np.ones(7, np.float32)), "is expected"),
    "other dtype": (
        lambda w: {"codec": {n: a.astype(np.float64) for n, a in w.items()}},
        "float64",
    ),
    "not asked for": (
        lambda w: {"codec": w, "votes": {"x": np.ones(1)}},
        "votes was not asked for",
    ),
    "nothing": (lambda _: {}, "it brings no codec"),
}


@pytest.mark.parametrize("bad", BAD)
def test_update_of_a_wrong_form_is_an_absence_with_its_reason(bad: str, told: Federation) -> None:
    change, why = BAD[bad]
    send_instead(told, "harbour", change)
    records = train(told)
    assert [record.participants for record in records] == [("north", "valley")] * 3
    assert why in records[0].details["absent"]["harbour"]
    assert records[0].details["kinds"] == {"harbour": "unusable"}
    shown = [
        line
        for line in map(json.loads, (told.home / "progress.jsonl").read_text().splitlines())
        if line["event"] == "absent"
    ]
    assert [(line["site"], line["round"]) for line in shown] == [("harbour", n) for n in range(3)]
    assert all(why in line["reason"] for line in shown)


def test_good_updates_are_all_counted(told: Federation) -> None:
    send_instead(told, "harbour", lambda weights: {"codec": weights})  # the control of the above
    assert [record.participants for record in train(told)] == [SITES] * 3
    assert tell_outcome(told.run()).sentence == "finished: 3 of 3"


def test_answer_that_is_too_large_is_not_even_opened(
    told: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correspondence, "_SMALL_BYTES", 1 << 16)
    send_instead(
        told,
        "harbour",
        lambda weights: {"codec": {**weights, "a.load": np.zeros(1 << 20, np.float32)}},
    )
    records = train(told)
    assert "bytes, and no more than" in records[0].details["absent"]["harbour"]
    assert records[0].participants == ("north", "valley")  # whose updates are as large as asked


def test_update_of_an_earlier_round_signed_again_is_refused(told: Federation) -> None:
    given: list[Mapping[str, Tensors]] = []

    def repeat(weights: dict[str, np.ndarray]) -> Mapping[str, Tensors]:
        given.append({"codec": weights})
        return given[0]

    send_instead(told, "harbour", repeat)
    records = train(told)
    assert [record.participants for record in records] == [SITES, *[("north", "valley")] * 2]
    for record in records[1:]:
        assert "it is that of round 1 again" in record.details["absent"]["harbour"]


def test_reply_to_an_earlier_round_or_attempt_is_refused(told: Federation) -> None:
    replies: list[Parcel] = []

    def replay(task: Task, parcel: Parcel) -> Parcel:
        if task.stage == "codec":
            replies.append(parcel)
            return replies[0]
        return parcel

    told.spoil["harbour"] = replay
    records = train(told)
    assert [record.participants for record in records] == [SITES, *[("north", "valley")] * 2]
    assert "another key or task" in records[1].details["absent"]["harbour"]


FAR = {"north": 1.0, "harbour": 2.0, "valley": 400.0}


def test_update_far_from_the_others_is_bounded_recorded_and_shown(home: Path) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(FAR)) as told:
        run = told.run()
        start, record = run.objects, train(told)[0]
        weights = start.get_tensors(start.get_json(record.output)["codec"])
        assert set(record.details["outliers"]) == {"valley"}
        assert record.details["outliers"]["valley"]["action"] == "bound"
        assert record_participation(run)["outliers"]["codec 1"] == {
            "valley": "far from the others, and bounded"
        }
        again = train_codec(run)
    assert record.participants == SITES
    assert again
    # Bounded to ten times the median, which is 2: the mean step is (1 + 2 + 20) / 3.
    moved = _steps(told, weights)
    assert moved == pytest.approx(23 / 3, rel=1e-3)


def test_bound_holds_where_only_two_answer(home: Path) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(FAR)) as told:
        told.spoil["harbour"] = lambda task, parcel: "cut" if task.stage == "codec" else parcel
        record = train(told)[0]
        run = told.run()
        weights = run.objects.get_tensors(run.objects.get_json(record.output)["codec"])
    assert record.participants == ("north", "valley")
    assert set(record.details["outliers"]) == {"valley"}
    assert _steps(told, weights) == pytest.approx((1 + 10) / 2, rel=1e-3)


def _steps(told: Federation, weights: Mapping[str, np.ndarray]) -> float:
    """Return how far the mean of a round lies from where the codec began, weight by weight."""
    from vitrael.core.models.brain_ldm import build_codec
    from vitrael.core.weights import module_tensors

    protocol = told.run().study.protocol
    start = module_tensors(build_codec(protocol.generator, seed=protocol.seed))
    name = max(weights, key=lambda one: weights[one].size)
    return float((weights[name] - start[name]).mean())


def test_update_far_from_the_others_is_refused_where_the_study_says_so(home: Path) -> None:
    agree(home, SITES, federation='outliers = "refuse"')
    with federation(home, tasks=adding(FAR)) as told:
        records = train(told)
        outcome = tell_outcome(told.run())
        assert find_contributors(told.run()) == {"north", "harbour"}
    assert records[0].participants == ("north", "harbour")
    assert "more than" in records[0].details["absent"]["valley"]
    assert records[0].details["kinds"] == {"valley": "outlier"}
    assert outcome.status == "partial"
    assert outcome.sentence.startswith("partial: 2 of 3 (valley: its update goes ")


def test_one_hostile_site_of_three_does_not_move_the_median(home: Path) -> None:
    hostile = {"north": 1.0, "harbour": 1.2, "valley": -9.0}
    steps = {}
    for rule in ("median", "weighted_mean"):
        agree(home, SITES, federation=f'aggregation = "{rule}"', quorum=3)
        with federation(home, tasks=adding(hostile)) as told:
            record = train(told)[0]
            run = told.run()
            weights = run.objects.get_tensors(run.objects.get_json(record.output)["codec"])
            steps[rule] = _steps(told, weights)
    assert steps["median"] == pytest.approx(1.0, abs=0.01)
    assert steps["weighted_mean"] < -2  # the control


def test_examples_count_no_more_than_the_consent_bears_out(told: Federation) -> None:
    send_instead(told, "harbour", lambda weights: {"codec": weights}, examples=9_999_999)
    weights = train(told)[0].details["weights"]
    consents = told.run().document("consent")
    assert consents is not None
    scans = consents["consents"]["harbour"]["cohort"]["scans"]
    assert 11 <= scans < 100
    assert weights["harbour"] == pytest.approx(scans / (scans + 8), abs=1e-3)
    assert sum(weights.values()) == pytest.approx(1, abs=1e-3)


def test_no_site_weighs_more_than_the_share_of_the_study(home: Path) -> None:
    agree(home, SITES, federation="most_weight = 0.4")
    with federation(home, tasks=adding(AMOUNTS)) as told:
        send_instead(told, "harbour", lambda weights: {"codec": weights}, examples=28)
        weights = train(told)[0].details["weights"]
    assert weights == {"north": 0.3, "harbour": 0.4, "valley": 0.3}


def test_canary_of_no_images_is_refused_with_its_reason(told: Federation) -> None:
    body = {"codec_images": 0, "codec_s": 1.0, "teacher_images": 1, "teacher_s": 1.0}
    body |= {"reid_images": 1, "reid_s": 1.0}
    told.spoil["valley"] = lambda task, parcel: (
        answer_as(told, task, {}, body=body) if task.stage == "canary" else parcel
    )
    run = told.run()
    collect_consents(run)
    with pytest.raises(QuorumError, match="valley: the answer is malformed"):
        try_sites(run)
