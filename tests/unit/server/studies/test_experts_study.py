"""A whole study of experts in one process: it ends, goes on after a kill, and mends damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factories.experts_study import (
    EDGE_PX,
    KNOWN,
    VIEWS,
    Ended,
    agree_views,
    copy_closed,
    document,
    go_on,
    learned_at,
    lose,
    lose_document,
    objects,
    outcome,
    panel_digest,
    prepare_views,
    share_done,
    share_ready,
    withdraw,
    write_study,
)
from tests.factories.federation import SITES, Federation, Interruption, federation
from vitrael.core.digest import Digest
from vitrael.core.errors import ConfigError, QuorumError, WeightsError
from vitrael.core.models.panel_folder import load_panel
from vitrael.core.rng import torch_stream
from vitrael.server.federation.layout import site_home
from vitrael.server.studies.canary import try_sites
from vitrael.server.studies.experts import train_experts
from vitrael.server.studies.federated import collect_consents
from vitrael.server.studies.participation import tell_outcome
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.tables import read_comparison

Documents = Callable[[Path], dict[str, Any]]

ALL = ("consent", "canary", "expert", "outlooks", "averaged", "comparison")
"""Stages in which every site is asked; in ``relay`` each has a round of its own."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def done(base: Path) -> Ended:
    """A study that ran undisturbed; no test may change it."""
    return share_done(base)[0]


@pytest.fixture
def done_home(base: Path, tmp_path: Path) -> Path:
    return copy_closed(share_done(base)[1], tmp_path)


def test_outcome_names_experts_panel_and_table(done: Ended) -> None:
    told = outcome(done.home)
    assert (done.code, told["status"], told["sentence"]) == (0, "finished", "finished: 3 of 3")
    assert told["experts"] == list(SITES)
    methods = [row["method"] for row in told["table"]]
    assert {"own expert", "fusion", "federated averaging", "one network in turn"} <= {*methods}
    compared = read_comparison(done.home)
    for row in told["table"]:
        assert set(row["sites"]) == set(SITES)
        assert row["images"] == sum(site["images"] for site in compared["sites"].values())


def test_panel_opens_and_says_who_decided(done: Ended) -> None:
    panel = load_panel(Path(outcome(done.home)["panel"]))
    experts = {entry.site: entry for entry in panel.document.experts}
    assert {site: set(entry.labels) for site, entry in experts.items()} == {
        site: set(views) for site, views in KNOWN.items()
    }
    assert None not in {entry.cohort for entry in experts.values()}
    image_BCHW = torch.rand((5, 1, EDGE_PX, EDGE_PX), generator=torch_stream(1, "images"))
    for said in panel.predict(image_BCHW):
        assert said.label in VIEWS
        assert set(said.weights) == set(SITES)
        assert sum(said.weights.values()) == pytest.approx(1, abs=1e-5)


def test_panel_with_a_changed_expert_does_not_open(done_home: Path) -> None:
    folder = done_home / "panels" / Path(outcome(done_home)["panel"]).name
    assert load_panel(folder).experts  # the control
    with (folder / "expert-harbour.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    with pytest.raises(WeightsError, match=r"expert-harbour\.safetensors is not the file"):
        load_panel(folder)


def test_each_site_is_asked_once_for_each_round(done: Ended) -> None:
    seen = [(task.stage, task.round, task.site) for task in done.seen]
    relay = [("relay", place, site) for place, site in enumerate(sorted(SITES))]
    everybody = [(stage, 0, site) for stage in ALL for site in SITES]
    assert seen == [*everybody[:-3], *relay, *everybody[-3:]]


def test_words_of_a_site_are_kept_beside_those_of_the_study(done: Ended) -> None:
    experts = document(done.home, "expert")["experts"]
    assert experts["harbour"]["words"] == {"apical 4": "A4C", "PSAX": "PSAX"}
    assert experts["harbour"]["labels"] == ["A4C", "PSAX"]
    assert all(expert["calibrated"] for expert in experts.values())


def test_second_run_asks_nobody_and_changes_nothing(done_home: Path, documents: Documents) -> None:
    before, kept = documents(done_home), objects(done_home)
    again = go_on(done_home)
    assert (again.code, again.seen) == (0, ())
    assert (documents(done_home), objects(done_home)) == (before, kept)


def test_same_study_in_other_homes_gives_the_same_panel(
    done: Ended, tmp_path: Path, documents: Documents
) -> None:
    other = go_on(prepare_views(tmp_path / "other"))
    assert outcome(other.home)["roster"] != outcome(done.home)["roster"]  # they have other keys
    assert panel_digest(other.home) == panel_digest(done.home)
    first, second = documents(done.home), documents(other.home)
    for stage in ("fusion 1", "averaged 1", "relay 3"):
        assert first[stage] == second[stage]
    assert first["fusion 1"]["fusion"] != first["fusion 1"]["unweighted"]  # the control


KILLS = (
    ("consent", 0, "harbour"),
    ("canary", 0, "valley"),
    ("expert", 0, "harbour"),
    ("outlooks", 0, "valley"),
    ("averaged", 0, "harbour"),
    ("relay", 1, "north"),
    ("comparison", 0, "valley"),
)


def die(*_: object, **__: object) -> None:
    raise Interruption


@pytest.fixture(scope="module")
def resumed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The same homes, killed in every stage, and started again each time."""
    home = copy_closed(share_ready(base), tmp_path_factory.mktemp("resumed"))
    own = ("vitrael.core.training.loop.fit", "vitrael.core.models.panel_folder.save_panel")
    """After the outlooks the coordinator dies at work of its own."""
    for kill in KILLS:
        with federation(home) as told:
            told.interrupt = kill
            with pytest.raises(Interruption):
                run_study(home, told.exchange)
        for work in own if kill[0] == "outlooks" else ():
            die_at(home, work)
    return go_on(home)


def die_at(home: Path, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch, federation(home) as told:
        patch.setattr(name, die)
        with pytest.raises(Interruption):
            run_study(home, told.exchange)


def test_study_that_is_killed_in_every_stage_ends_with_the_same_panel(
    done: Ended, resumed: Ended
) -> None:
    assert resumed.code == 0
    with federation(resumed.home) as told:
        failed = {record.key.stage for record in told.run().history() if record.status == "failed"}
    assert failed == {*(stage for stage, _, _ in KILLS), "fusion", "panel"}  # it was killed indeed
    assert panel_digest(resumed.home) == panel_digest(done.home)
    assert outcome(resumed.home)["table"] == outcome(done.home)["table"]


def test_no_site_computes_again_what_it_gave_before_a_kill(resumed: Ended) -> None:
    assert {task.stage for task in resumed.seen} == {"comparison"}  # it was killed there last
    for site in SITES:
        lines = (site_home(resumed.home, site) / "progress.jsonl").read_text().splitlines()
        shown = [(line["stage"], line["round"]) for line in map(json.loads, lines)]
        begun = [pair for at, pair in enumerate(shown) if at == 0 or shown[at - 1] != pair]
        assert len(begun) == len(set(begun))
        assert {"expert", "averaged", "relay"} <= {stage for stage, _ in begun}


LOST: dict[str, tuple[Callable[[dict[str, Any]], Digest], str, set[str]]] = {
    "expert": (lambda d: d["expert 1"]["experts"]["harbour"]["weights"], "panel", {"expert"}),
    "outlook": (lambda d: d["outlooks 1"]["outlooks"]["harbour"]["valley"], "fusion", {"outlooks"}),
    "fusion": (lambda d: d["fusion 1"]["fusion"], "panel", set()),
    "averaged": (lambda d: d["averaged 1"]["common"], "comparison", {"averaged"}),
    "relay": (lambda d: d["relay 2"]["common"], "relay", {"relay"}),
}
"""What is lost, a stage that needs it and whose own document is lost too, and what is asked for."""


@pytest.mark.parametrize("lost", LOST)
def test_what_is_lost_is_asked_for_once_more_and_computed_by_nobody_twice(
    lost: str, done: Ended, done_home: Path, documents: Documents
) -> None:
    name, needing, stages = LOST[lost]
    before, learned = documents(done_home), learned_at(done_home)
    lose(done_home, name(before))
    lose_document(done_home, needing)
    again = go_on(done_home)
    assert again.code == 0
    assert (
        stages
        <= {task.stage for task in again.seen}
        <= {*stages, "outlooks", "comparison", "relay"}
    )
    assert name(before) in objects(done_home)
    assert documents(done_home) == before
    assert learned_at(done_home) == learned
    assert panel_digest(done_home) == panel_digest(done.home)


def test_panel_that_is_gone_is_written_again(done: Ended, done_home: Path) -> None:
    (done_home / "panels").rename(done_home / "moved")
    with pytest.raises(ConfigError, match="is no panel"):  # the control
        load_panel(done_home / "panels" / Path(outcome(done.home)["panel"]).name)
    assert go_on(done_home).seen == ()
    assert panel_digest(done_home) == panel_digest(done.home)


@pytest.fixture
def first_home(base: Path, tmp_path: Path) -> Path:
    """A study whose experts begin with the weights of the first."""
    home = copy_closed(share_ready(base), tmp_path)
    agree_views(home, write_study(begin="first"))
    with federation(home) as told:
        collect_consents(told.run())
        try_sites(told.run())
    return home


def starts(told: Federation) -> dict[str, Digest | None]:
    tasks = (task for task in told.seen if task.stage == "expert")
    return {task.site: task.inputs.get("start") for task in tasks}


def test_experts_begin_with_the_weights_of_the_first(first_home: Path, done: Ended) -> None:
    with federation(first_home) as told:
        experts = {record.site: record.weights for record in train_experts(told.run())}
        first = experts["north"]
        assert starts(told) == {"north": None, "harbour": first, "valley": first}
        assert [task.site for task in told.seen] == list(SITES)
    fresh = document(done.home, "expert")["experts"]  # the control
    assert [site for site in SITES if fresh[site]["weights"] == experts[site]] == ["north"]
    assert {task.inputs.get("start") for task in done.seen if task.stage == "expert"} == {None}


def test_without_the_first_nobody_else_is_asked_until_it_is_there(first_home: Path) -> None:
    with federation(first_home) as told:
        told.spoil["north"] = lambda *_: "its disk is full"
        with pytest.raises(QuorumError, match=r"0 of 1 .* 1 are needed: north: its disk is full"):
            train_experts(told.run())
        assert [task.site for task in told.seen] == ["north"]
        del told.spoil["north"]
        assert [record.site for record in train_experts(told.run())] == list(SITES)
        assert starts(told)["harbour"] is not None


def test_first_that_withdrew_before_it_gave_its_expert_is_followed_by_the_next(
    first_home: Path,
) -> None:
    withdraw(first_home, "north")
    with federation(first_home) as told:
        assert [record.site for record in train_experts(told.run())] == ["harbour", "valley"]
        assert [site for site, start in starts(told).items() if start is None] == ["harbour"]
        assert tell_outcome(told.run()).status == "partial"


def test_lost_expert_of_the_first_is_asked_for_before_the_others(first_home: Path) -> None:
    with federation(first_home) as told:
        run = told.run()
        before = train_experts(run)
        first = before[0].weights
        lose(first_home, first)
        assert run.discard(first)
        assert train_experts(run) == before
        assert starts(told) == {"north": None, "harbour": first, "valley": first}
