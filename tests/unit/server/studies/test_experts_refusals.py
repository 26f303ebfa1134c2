"""What cannot be learned from or meant is refused with its reason; others go on as they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.experts_study import (
    Sent,
    agree_views,
    copy_closed,
    send_instead,
    share_ready,
    take_in,
    write_study,
)
from tests.factories.federation import SITES, Federation, copy_homes, federation
from vitrael.core.errors import QuorumError
from vitrael.server.studies.canary import try_sites
from vitrael.server.studies.experts import ExpertRecord, collect_outlooks, train_experts
from vitrael.server.studies.federated import collect_consents
from vitrael.server.studies.fusing import compare, train_fusions
from vitrael.server.studies.ledger import StageRecord
from vitrael.server.studies.participation import tell_outcome

pytestmark = [
    pytest.mark.federation,
]

OTHERS = ["north", "valley"]
Change = Callable[[Sent], object]


@dataclass(frozen=True)
class Staged:
    """Homes of one study at different times; nobody may open them.

    Sites have computed already what comes next, and give it at once: their line was cut before.
    """

    ready: Path
    tried: Path
    """Everybody has consented and told its speed."""
    trained: Path
    """Each has its expert."""
    fused: Path
    """And the fusion is trained."""
    experts: Sequence[ExpertRecord]
    fusion: Mapping[str, Any]
    told: Mapping[str, Any]
    """What the stage ``outlooks`` left."""


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    folder = tmp_path_factory.mktemp("staged")
    ready = share_ready(tmp_path_factory.getbasetemp())
    home = copy_closed(ready, folder)
    begin(home)
    compute_alone(home, lambda told: train_experts(told.run()))
    tried = copy_homes(home, folder / "tried")
    with federation(home) as told:
        experts = train_experts(told.run())
    compute_alone(home, learn)
    trained = copy_homes(home, folder / "trained")
    with federation(home) as told:
        fusion = learn(told)
        outlooks = told.run().document("outlooks")
    compute_alone(home, hold_for_nothing)
    fused = copy_homes(home, folder / "fused")
    return Staged(ready, tried, trained, fused, experts, fusion, outlooks or {})


def compute_alone(home: Path, work: Callable[[Federation], object]) -> None:
    with federation(home) as told:
        told.spoil.update({site: lambda *_: "its line is cut" for site in SITES})
        with pytest.raises(QuorumError, match="its line is cut"):
            work(told)


def hold_for_nothing(told: Federation) -> None:
    """Let the sites count, and take away that nobody answered: it would be done with."""
    run = told.run()
    hold(told)
    (record,) = (r for r in run.finished() if r.key.stage == "comparison")
    absent = record.details["absent"]
    run.ledger.discard(record, "nobody answered")
    raise QuorumError("nobody could compare", why="; ".join(absent.values()))


def begin(home: Path) -> None:
    with federation(home) as told:
        collect_consents(told.run())
        try_sites(told.run())


def learn(told: Federation) -> dict[str, Any]:
    """Return the fusion that comes of what sites tell."""
    run = told.run()
    experts = train_experts(run)
    return train_fusions(run, experts, collect_outlooks(run, experts))


def hold(told: Federation) -> dict[str, Any]:
    run = told.run()
    experts = train_experts(run)
    return compare(run, experts, learn(told), {})


def record_of(told: Federation, stage: str) -> StageRecord:
    return next(record for record in told.run().finished() if record.key.stage == stage)


def demand_refused(told: Federation, stage: str, why: str) -> None:
    record = record_of(told, stage)
    assert list(record.participants) == OTHERS
    assert record.details["kinds"] == {"harbour": "unusable"}
    assert why in record.details["absent"]["harbour"]
    outcome = tell_outcome(told.run())
    assert outcome.status == "partial"
    assert "harbour" in outcome.sentence


def put(name: str, value: Any, *, at: Any = ...) -> Change:
    """Return a change of some numbers of an array."""

    def change(sent: Sent) -> None:
        sent.tensors[name][at] = value

    return change


def cast(name: str, shape: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Return a change of a whole array."""

    def change(sent: Sent) -> None:
        sent.tensors[name] = np.ascontiguousarray(shape(sent.tensors[name]))

    return change


def both(*changes: Change) -> Change:
    def change(sent: Sent) -> None:
        for each in changes:
            each(sent)

    return change


def rename(**words: str) -> Change:
    return lambda sent: sent.body.update(words={k.replace("_", " "): v for k, v in words.items()})


def leave_as_it_is(_: Sent) -> None:
    """Change nothing: the control."""


BAD_EXPERTS: dict[str, tuple[Change, str]] = {
    "features of another size": (
        cast("net.head.weight", lambda a: a[:, :-1]),
        "tensor head.weight is",
    ),
    "maps of another network": (cast("activity.mean", lambda a: a[:-1]), "activity profile"),
    "no spread": (put("score.largest", 0), "score profile"),
    "NaN": (put("activity.std", np.nan, at=0), "not finite"),
    "infinite weights": (put("net.head.bias", np.inf), "not finite"),
    "view that the study does not know": (
        rename(apical_4="A4C", XRAY="XRAY"),
        "knows a view that the study does not: it is XRAY",
    ),
    "other map of words": (rename(apical_4="A2C", PSAX="PSAX"), "means other views by its words"),
    "word that is not mapped": (rename(four="A4C", PSAX="PSAX"), "means other views by its words"),
    "one view": (rename(PSAX="PSAX"), "two views"),
    "more views than it tells apart": (
        rename(apical_4="A4C", PSAX="PSAX", PLAX="PLAX"),
        "tensor head.bias is float32[2]: float32[3] is expected",
    ),
    "no words": (lambda sent: sent.body.pop("words"), "malformed"),
    "words that are none": (lambda sent: sent.body.update(words=["A4C", "PSAX"]), "malformed"),
}


@pytest.mark.parametrize("bad", BAD_EXPERTS)
def test_expert_that_cannot_be_used_is_an_absence_with_its_reason(
    bad: str, staged: Staged, tmp_path: Path
) -> None:
    change, why = BAD_EXPERTS[bad]
    before = {record.site: record for record in staged.experts}
    with federation(copy_closed(staged.tried, tmp_path)) as told:
        send_instead(told, "harbour", "expert", change)
        experts = train_experts(told.run())
        demand_refused(told, "expert", why)
    assert experts == tuple(before[site] for site in OTHERS)


BAD_OUTLOOKS: dict[str, tuple[Change, str]] = {
    "NaN": (put("mean", np.nan, at=(0, 0, 0)), "not finite"),
    "infinite spread": (put("std", np.inf, at=(1, 0)), "not finite"),
    "spread below 0": (put("std", -1.0, at=(1, 0)), "malformed"),
    "numbers of another network": (
        both(cast("mean", lambda a: a[..., :-1]), cast("std", lambda a: a[..., :-1])),
        "malformed",
    ),
    "other experts": (cast("mean", lambda a: a[:-1]), "malformed"),
    "other views": (
        both(cast("mean", lambda a: a[:, :-1]), cast("images", lambda a: a[:-1])),
        "malformed",
    ),
    "no picture": (put("images", 0), "malformed"),
    "pictures below 0": (put("images", [-5, 30, 0, 0]), "malformed"),
    "more pictures than it consented to": (put("images", 1 << 40), "malformed"),
    "nothing of its pictures": (lambda sent: sent.tensors.pop("images"), "malformed"),
    "single pictures where means were asked for": (
        lambda sent: sent.tensors.update(view=np.zeros(2, np.int64), seen=np.zeros((3, 2, 9))),
        "malformed",
    ),
}


@pytest.mark.parametrize("bad", BAD_OUTLOOKS)
def test_what_cannot_be_seen_is_an_absence_with_its_reason(
    bad: str, staged: Staged, tmp_path: Path
) -> None:
    change, why = BAD_OUTLOOKS[bad]
    with federation(copy_closed(staged.trained, tmp_path)) as told:
        send_instead(told, "harbour", "outlooks", change)
        run = told.run()
        outlooks = collect_outlooks(run, train_experts(run))
        demand_refused(told, "outlooks", why)
    assert list(outlooks) == OTHERS
    for site in OTHERS:
        assert outlooks[site] == staged.told["outlooks"][site]


def many(name: str) -> Change:
    return both(put("images", 1 << 40), put("right", 0), put(name, 1 << 39))


BAD_COUNTS: dict[str, tuple[Change, str]] = {
    "NaN": (put("weight", np.nan, at=0), "not finite"),
    "more right than there are": (put("right", 90, at=(0, 1)), "counted what cannot be counted"),
    "heaviest in more than there are": (put("heaviest", 90, at=1), "counted what cannot be"),
    "below 0": (put("images", -1, at=1), "counted what cannot be counted"),
    "nothing": (both(put("images", 0), put("right", 0), put("heaviest", 0)), "cannot be counted"),
    "other methods": (cast("right", lambda a: a[:-1]), "counted what cannot be counted"),
    "other views": (
        both(
            cast("images", lambda a: a[:-1]),
            cast("right", lambda a: a[:, :-1]),
            cast("heaviest", lambda a: a[:-1]),
        ),
        "malformed",
    ),
    "more pictures than it consented to": (many("right"), "malformed"),
    "weights that do not add up to one": (put("weight", 0.5), "malformed"),
    "weights below 0": (put("weight", [-1.0, 1.0, 1.0]), "malformed"),
    "other experts": (cast("weight", lambda a: a[:-1]), "malformed"),
    "no weights": (lambda sent: sent.tensors.pop("weight"), "malformed"),
}


@pytest.mark.parametrize("bad", BAD_COUNTS)
def test_what_cannot_be_counted_is_an_absence_with_its_reason(
    bad: str, staged: Staged, tmp_path: Path
) -> None:
    change, why = BAD_COUNTS[bad]
    with federation(copy_closed(staged.fused, tmp_path)) as told:
        send_instead(told, "harbour", "comparison", change)
        document = hold(told)
        demand_refused(told, "comparison", why)
    assert set(document["sites"]) == {*OTHERS}
    assert all(set(row["sites"]) == {*OTHERS} for row in document["table"])


def test_replies_that_are_as_they_should_be_all_count(staged: Staged, tmp_path: Path) -> None:
    with federation(copy_closed(staged.tried, tmp_path)) as told:
        send_instead(told, "harbour", "expert", leave_as_it_is)  # the control of all of the above
        train_experts(told.run())
        send_instead(told, "harbour", "outlooks", leave_as_it_is)
        assert learn(told) == staged.fusion
        send_instead(told, "harbour", "comparison", leave_as_it_is)
        assert set(hold(told)["sites"]) == {*SITES}
        assert tell_outcome(told.run()).sentence == "finished: 3 of 3"


def test_views_of_a_site_whose_expert_is_missing_are_not_learned_from(
    staged: Staged, tmp_path: Path
) -> None:
    """Nobody else's expert can name them, and the study goes on without."""
    with federation(copy_closed(staged.tried, tmp_path)) as told:
        told.spoil["north"] = lambda task, reply: "cut" if task.stage == "expert" else reply
        told.spoil["harbour"] = lambda task, reply: "cut" if task.stage == "outlooks" else reply
        fusion = learn(told)
        assert set(fusion["classes"]) == {"A4C", "PLAX", "PSAX"}
        told_of = (told.run().document("outlooks") or {})["outlooks"]
        a2c = told.run().objects.get_tensors(told_of["north"]["valley"])["images"][0]
        rows = record_of(told, "fusion").details["rows"]
        whole = [
            told.run().objects.get_tensors(next(iter(each.values())))["images"].sum()
            for each in told_of.values()
        ]
    assert set(told_of) == {"north", "valley"}
    assert a2c > 0
    assert rows % (sum(whole) - a2c) == 0  # each is drawn as often as the others


def test_map_of_words_that_nobody_consented_to_gets_no_answer(
    staged: Staged, tmp_path: Path
) -> None:
    home = copy_closed(staged.tried, tmp_path)
    (home / "study.toml").write_text(write_study(labels={"harbour": {"apical 4": "A2C"}}))
    with (
        federation(home) as told,
        pytest.raises(QuorumError, match="harbour has consented to this protocol with another"),
    ):
        train_experts(told.run())


BAD_COHORTS: dict[str, tuple[Sequence[str], int, str]] = {
    "one view": (("PLAX",), 60, "at least two views need 11 patients each"),
    "too few of each": (("PLAX", "PSAX"), 24, "at least two views need 11 patients each"),
    "a word that is not mapped": (("XRAY",), 60, "XRAY is none of A2C, A4C, PLAX"),
}


@pytest.mark.parametrize("bad", BAD_COHORTS)
def test_site_whose_pictures_make_no_expert_is_named_and_the_others_go_on(
    bad: str, staged: Staged, tmp_path: Path
) -> None:
    words, patients, why = BAD_COHORTS[bad]
    home = copy_closed(staged.ready, tmp_path)
    take_in(home, "valley", words, patients=patients)
    strict = copy_closed(home, tmp_path / "strict")
    agree_views(strict, write_study(quorum=3))
    with pytest.raises(QuorumError, match=f"stage canary: 2 of 3 .*: valley: failed: .*{why}"):
        begin(strict)
    agree_views(home, write_study())
    begin(home)
    with federation(home) as told:
        run = told.run()
        assert {record.site for record in train_experts(run)} == {"north", "harbour"}
        said = {r.key.stage: r.details.get("absent", {}) for r in run.finished()}
    assert all(why in said[stage]["valley"] for stage in ("canary", "expert"))


@pytest.fixture(scope="module")
def single(staged: Staged, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study in which the numbers of every single picture are told; experts are trained."""
    home = copy_closed(staged.ready, tmp_path_factory.mktemp("single"))
    agree_views(home, write_study(told="features"))
    begin(home)
    with federation(home) as told:
        train_experts(told.run())
    return copy_homes(home, tmp_path_factory.mktemp("closed"))


def test_fusion_learns_from_single_pictures_where_they_are_told(
    single: Path, staged: Staged, tmp_path: Path
) -> None:
    ends = {}
    changes = {
        "as it is": leave_as_it_is,
        "other means": cast("mean", lambda a: a + 1),
        "other pictures": cast("seen", lambda a: a + 1),
    }
    for name, change in changes.items():
        with federation(copy_closed(single, tmp_path / name)) as told:
            send_instead(told, "harbour", "outlooks", change)
            ends[name] = learn(told)["fusion"]
            (body,) = (told.run().document("outlooks") or {})["risks"]["harbour"]
            assert body["pictures"] > 0
    assert ends["as it is"] == ends["other means"]
    assert ends["as it is"] != ends["other pictures"]
    assert all("pictures" not in body for body in staged.told["risks"]["harbour"])


BAD_PICTURES: dict[str, tuple[Change, str]] = {
    "NaN": (put("seen", np.nan, at=(0, 0, 0)), "not finite"),
    "fewer pictures than it counts": (cast("seen", lambda a: a[:, :-1]), "malformed"),
    "other views than it counts": (put("view", 0), "malformed"),
    "views that nobody knows": (put("view", 9, at=0), "malformed"),
    "means alone": (lambda sent: sent.tensors.pop("seen"), "malformed"),
}


@pytest.mark.parametrize("bad", BAD_PICTURES)
def test_single_pictures_that_cannot_be_meant_are_refused(
    bad: str, single: Path, tmp_path: Path
) -> None:
    change, why = BAD_PICTURES[bad]
    with federation(copy_closed(single, tmp_path)) as told:
        send_instead(told, "harbour", "outlooks", change)
        learn(told)
        demand_refused(told, "outlooks", why)
