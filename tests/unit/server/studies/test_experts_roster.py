"""Sites join a study of experts, leave it or stay away: nobody else's expert is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.factories.experts_study import (
    KNOWN,
    VIEWS,
    Ended,
    agree_views,
    copy_closed,
    cut,
    document,
    go_on,
    lose,
    lose_document,
    outcome,
    panel_digest,
    share_done,
    share_ready,
    withdraw,
    write_study,
)
from tests.factories.federation import SITES, Interruption, copy_homes, federation
from vitrael.core.digest import Digest
from vitrael.core.errors import QuorumError
from vitrael.core.models.panel_folder import load_panel
from vitrael.server.studies.pipeline import run_study

pytestmark = [
    pytest.mark.federation,
]

TWO = ("north", "harbour")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def done(base: Path) -> Ended:
    """A study that ran undisturbed; no test may change it."""
    return share_done(base)[0]


@pytest.fixture
def home(base: Path, tmp_path: Path) -> Path:
    return copy_closed(share_ready(base), tmp_path)


@pytest.fixture
def done_home(base: Path, tmp_path: Path) -> Path:
    return copy_closed(share_done(base)[1], tmp_path)


@dataclass(frozen=True)
class Amended:
    """A study that ended, and what came of it with another roster."""

    before: Mapping[str, Any]
    """The experts of the first roster."""
    told: Mapping[str, Any]
    fusion: Digest
    after: Ended


def amend(home: Path, sites: Sequence[str], **terms: Any) -> Amended:
    """Run a home's study to its end, then with other sites."""
    first = go_on(home)
    before = {stage: document(home, stage) for stage in ("expert", "outlooks", "fusion")}
    agree_views(home, write_study(sites, predecessor=outcome(first.home)["roster"], **terms))
    return Amended(
        before["expert"]["experts"],
        before["outlooks"]["outlooks"],
        before["fusion"]["fusion"],
        go_on(home),
    )


@pytest.fixture(scope="module")
def joined(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Amended:
    home = copy_closed(share_ready(base), tmp_path_factory.mktemp("joined"))
    agree_views(home, write_study(TWO))
    return amend(home, SITES)


def test_expert_of_who_was_there_before_is_not_trained_again(joined: Amended) -> None:
    assert joined.after.asked("expert") == [("expert", "valley")]
    experts = document(joined.after.home, "expert")["experts"]
    assert {site: experts[site] for site in TWO} == joined.before
    assert outcome(joined.after.home)["experts"] == list(SITES)


def test_who_was_there_before_is_asked_once_for_the_new_expert_alone(joined: Amended) -> None:
    whole = {f"expert-{place}" for place in range(3)}
    assert joined.after.brought("outlooks") == {
        "north": {"expert-2", "known"},
        "harbour": {"expert-2", "known"},
        "valley": {*whole, "known"},
    }
    assert len(joined.after.asked("outlooks")) == len(SITES)
    told = document(joined.after.home, "outlooks")["outlooks"]
    for site in TWO:
        assert {expert: told[site][expert] for expert in TWO} == joined.told[site]
    assert {site: set(each) for site, each in told.items()} == {site: {*SITES} for site in SITES}


def test_fusion_and_comparison_are_made_anew_with_who_joined(joined: Amended) -> None:
    home = joined.after.home
    assert document(home, "fusion")["fusion"] != joined.fusion
    assert joined.after.asked("comparison") == [("comparison", site) for site in SITES]
    assert set(outcome(home)["table"][0]["sites"]) == set(SITES)
    assert len(load_panel(Path(outcome(home)["panel"])).experts) == len(SITES)


def test_everybody_consents_again_when_a_site_joins(joined: Amended) -> None:
    assert joined.after.asked("consent") == [("consent", site) for site in SITES]


def test_relay_goes_on_where_the_earlier_roster_ended(joined: Amended) -> None:
    assert joined.after.asked("relay") == [("relay", "valley")]


def test_site_that_joins_in_the_end_gives_the_panel_of_those_who_were_there_from_the_start(
    joined: Amended, done: Ended
) -> None:
    assert panel_digest(joined.after.home) == panel_digest(done.home)


def test_site_that_means_other_views_now_learns_and_tells_anew(
    done: Ended, done_home: Path
) -> None:
    remapped = write_study(
        predecessor=outcome(done.home)["roster"], labels={"harbour": {"apical 4": "A2C"}}
    )
    agree_views(done_home, remapped)
    after = go_on(done_home)
    assert after.asked("expert") == [("expert", "harbour")]
    assert after.asked("relay") == [("relay", site) for site in sorted(SITES)]
    experts = document(done_home, "expert")["experts"]
    assert experts["harbour"]["labels"] == ["A2C", "PSAX"]
    told = document(done_home, "outlooks")["outlooks"]["harbour"]
    with federation(done_home) as opened:
        objects = opened.run().objects
        for expert in SITES:
            images_V = objects.get_tensors(told[expert])["images"]
            assert [view for view, n in zip(VIEWS, images_V, strict=True) if n] == ["A2C", "PSAX"]


def test_without_a_predecessor_every_expert_is_asked_for_again(done_home: Path) -> None:
    agree_views(done_home, write_study(TWO))
    again = go_on(done_home)
    assert again.asked("expert") == [("expert", site) for site in TWO]


@pytest.mark.parametrize("leaver", ["harbour", "valley"])
def test_expert_of_a_site_that_is_off_the_roster_is_dropped(
    leaver: str, done: Ended, done_home: Path
) -> None:
    left = [site for site in SITES if site != leaver]
    earlier = outcome(done.home)["roster"]
    agree_views(done_home, write_study(left, predecessor=earlier))
    after = go_on(done_home)
    assert after.asked("expert", "outlooks") == []
    assert after.asked("comparison") == [("comparison", site) for site in left]
    assert outcome(done_home)["experts"] == left
    assert set(outcome(done_home)["table"][0]["sites"]) == set(left)
    panel, before = (load_panel(Path(outcome(h)["panel"])).document for h in (done_home, done.home))
    assert panel.fusion != before.fusion
    assert set(panel.experts) == {entry for entry in before.experts if entry.site != leaver}


@pytest.mark.parametrize("leaver", SITES)
def test_withdrawn_site_is_gone_from_fusion_and_panel_and_nobody_is_asked(
    leaver: str, done: Ended, done_home: Path
) -> None:
    left = [site for site in SITES if site != leaver]
    withdraw(done_home, leaver)
    after = go_on(done_home)
    told = outcome(done_home)
    assert after.seen == ()
    assert (told["experts"], told["table"]) == (left, [])
    assert (after.code, told["status"]) == (7, "partial")
    assert f"{leaver}: it withdrew its consent" in told["sentence"]
    panel, before = (load_panel(Path(outcome(h)["panel"])).document for h in (done_home, done.home))
    assert set(panel.experts) == {entry for entry in before.experts if entry.site != leaver}
    assert panel.fusion != before.fusion
    known = {view for site in left for view in KNOWN[site]}
    assert set(document(done_home, "fusion")["classes"]) == known


def test_site_that_withdraws_before_the_comparison_takes_no_part_in_it(home: Path) -> None:
    with federation(home) as told:
        told.interrupt = ("comparison", 0, "north")
        with pytest.raises(Interruption):
            run_study(home, told.exchange)
    withdraw(home, "harbour")
    after = go_on(home)
    left = ["north", "valley"]
    assert [(task.stage, task.site) for task in after.seen] == [("comparison", s) for s in left]
    assert set(outcome(home)["table"][0]["sites"]) == set(left)
    assert outcome(home)["experts"] == left


def test_fusion_without_who_withdrew_is_that_of_a_study_without_it(
    base: Path, done: Ended, done_home: Path, tmp_path: Path
) -> None:
    """Nothing of what a site told is left in the fusion of the others."""
    off = copy_closed(share_done(base)[1], tmp_path / "off")
    withdraw(done_home, "valley")
    go_on(done_home)
    agree_views(off, write_study(TWO, predecessor=outcome(done.home)["roster"]))
    go_on(off)
    ends = [load_panel(Path(outcome(home)["panel"])).document for home in (done_home, off)]
    assert ends[0].fusion == ends[1].fusion


def test_study_that_too_few_are_left_of_ends_with_its_reasons(done_home: Path) -> None:
    for site in ("harbour", "valley"):
        withdraw(done_home, site)
    with pytest.raises(QuorumError, match=r"1 of 3 sites are left .*2 are needed.*valley: it"):
        go_on(done_home)
    assert outcome(done_home)["status"] == "failed"


def test_absent_site_is_named_and_has_no_expert(home: Path) -> None:
    everything = ("expert", "outlooks", "averaged", "relay", "comparison")
    ended = go_on(home, spoil={"harbour": cut(*everything)})
    told = outcome(home)
    assert (ended.code, told["status"]) == (7, "partial")
    assert told["sentence"] == "partial: 2 of 3 (harbour: its line is cut)"
    assert told["experts"] == ["north", "valley"]
    assert set(told["table"][0]["sites"]) == {"north", "valley"}


def test_study_below_its_quorum_fails_with_reasons_and_goes_on_to_the_same(
    home: Path, done: Ended
) -> None:
    for stage in ("expert", "outlooks"):
        away = {site: cut(stage) for site in ("north", "valley")}
        reasons = f"stage {stage}: 1 of 3 .*2 are needed: north: its line is cut; valley: its line"
        with pytest.raises(QuorumError, match=reasons):
            go_on(home, spoil=away)
        assert outcome(home)["status"] == "failed"
    assert go_on(home).code == 0
    assert panel_digest(home) == panel_digest(done.home)
    assert outcome(home)["table"] == outcome(done.home)["table"]


def test_expert_that_is_lost_after_a_site_joined_is_asked_for_once_more(
    joined: Amended, tmp_path: Path
) -> None:
    home = copy_homes(joined.after.home, tmp_path)
    experts, outlooks = (document(home, stage) for stage in ("expert", "outlooks"))
    lose(home, experts["experts"]["valley"]["weights"])
    lose_document(home, "fusion")  # or nobody needs it
    again = go_on(home)
    assert again.code == 0
    assert again.asked("expert") == [("expert", "valley")]
    assert [document(home, stage) for stage in ("expert", "outlooks")] == [experts, outlooks]
    assert panel_digest(home) == panel_digest(joined.after.home)


def test_what_is_told_of_who_joined_and_lost_is_asked_for_once_more(
    joined: Amended, tmp_path: Path
) -> None:
    home = copy_homes(joined.after.home, tmp_path)
    outlooks = document(home, "outlooks")
    lose(home, outlooks["outlooks"]["harbour"]["valley"])
    lose_document(home, "fusion")
    again = go_on(home)
    assert again.code == 0
    assert {task.stage for task in again.seen} == {"outlooks"}
    assert document(home, "outlooks") == outlooks
    assert panel_digest(home) == panel_digest(joined.after.home)
