"""What a study of experts keeps when a site goes or comes back, and asks no site anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories.experts_study import (
    Ended,
    agree_views,
    copy_closed,
    cut,
    document,
    go_on,
    lose_document,
    outcome,
    panel_digest,
    share_done,
    share_ready,
    take_in,
    withdraw,
    write_study,
)
from tests.factories.federation import SITES, Interruption, federation
from vitrael.core.digest import Digest
from vitrael.core.models.panel_folder import load_panel
from vitrael.server.studies.canary import try_sites
from vitrael.server.studies.experts import train_experts
from vitrael.server.studies.federated import collect_consents
from vitrael.server.studies.lineage import trace_site
from vitrael.server.studies.pipeline import run_study

pytestmark = [
    pytest.mark.federation,
]

TWO = ("north", "harbour")
LEFT = ["north", "valley"]
EVERY = {"expert-0", "expert-1", "expert-2", "known"}


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


def stop_at(home: Path, stage: str, site: str) -> None:
    with federation(home) as told:
        told.interrupt = (stage, 0, site)
        with pytest.raises(Interruption):
            run_study(home, told.exchange)


def test_who_withdraws_while_sites_tell_leaves_the_others_asked_for_the_same(home: Path) -> None:
    stop_at(home, "outlooks", "valley")
    withdraw(home, "harbour")
    after = go_on(home)
    assert after.brought("outlooks") == {"north": EVERY, "valley": EVERY}
    assert (after.code, outcome(home)["experts"]) == (7, LEFT)
    told = document(home, "outlooks")["outlooks"]
    assert {site: set(each) for site, each in told.items()} == {site: {*LEFT} for site in LEFT}
    assert {e.site for e in load_panel(Path(outcome(home)["panel"])).document.experts} == {*LEFT}
    assert set(outcome(home)["table"][0]["sites"]) == {*LEFT}  # not begun: asked without it
    assert after.brought("comparison")["north"].isdisjoint({"expert-0"})


def test_who_withdraws_while_sites_compare_leaves_no_table_and_a_panel(home: Path) -> None:
    stop_at(home, "comparison", "valley")
    withdraw(home, "harbour")
    after = go_on(home)
    assert (after.code, outcome(home)["experts"], outcome(home)["table"]) == (7, LEFT, [])
    assert "1 of 3 sites could compare, 2 are needed" in document(home, "comparison")["why"]
    assert go_on(home).seen == ()


def test_roster_that_comes_back_in_another_order_asks_nobody(done: Ended, done_home: Path) -> None:
    first = outcome(done.home)
    agree_views(done_home, write_study(TWO, predecessor=first["roster"]))
    between = go_on(done_home)
    assert between.seen  # the control
    back = write_study(tuple(reversed(SITES)), predecessor=outcome(done_home)["roster"])
    agree_views(done_home, back)
    after = go_on(done_home)
    assert (after.code, after.seen) == (0, ())
    assert outcome(done_home)["roster"] == first["roster"]
    assert outcome(done_home)["table"] == first["table"]
    assert panel_digest(done_home) == panel_digest(done.home)


def test_order_of_the_roster_changes_no_task_and_no_count(done: Ended, home: Path) -> None:
    agree_views(home, write_study(tuple(reversed(SITES))))
    other = go_on(home)
    assert panel_digest(home) == panel_digest(done.home)
    assert outcome(home)["roster"] == outcome(done.home)["roster"]
    own, others = (
        {(t.stage, t.round, t.site): t.inputs for t in ended.seen if t.stage != "averaged"}
        for ended in (done, other)
    )
    compared = {place for place in own if place[0] != "comparison"}
    assert {place: own[place] for place in compared} == {place: others[place] for place in compared}
    lose_document(home, "comparison")
    assert go_on(home).code == 0


def test_risks_stay_when_a_site_withdraws(done: Ended, done_home: Path) -> None:
    before = document(done.home, "outlooks")["risks"]
    assert {site: [one["experts"] for one in told] for site, told in before.items()} == {
        site: [sorted(SITES)] for site in SITES
    }
    withdraw(done_home, "harbour")
    go_on(done_home)
    assert document(done_home, "outlooks")["risks"] == before


def test_risk_of_who_joined_stands_beside_that_of_those_before(home: Path) -> None:
    agree_views(home, write_study(TWO))
    first = go_on(home)
    before = document(home, "outlooks")["risks"]
    agree_views(home, write_study(predecessor=outcome(first.home)["roster"]))
    go_on(home)
    after = document(home, "outlooks")["risks"]
    for site in TWO:
        assert after[site][:1] == before[site]
        assert [one["experts"] for one in after[site]] == [sorted(TWO), ["valley"]]
    assert [one["experts"] for one in after["valley"]] == [sorted(SITES)]


def test_site_with_another_version_of_its_scans_tells_anew(done: Ended, done_home: Path) -> None:
    take_in(done_home, "harbour", ("apical 4", "PSAX"), patients=96)
    agree_views(done_home, write_study(TWO, predecessor=outcome(done.home)["roster"]))
    after = go_on(done_home)
    assert after.brought("outlooks") == {"harbour": {"expert-0", "expert-1", "known"}}
    consents = document(done_home, "consent")["consents"]
    assert document(done_home, "outlooks")["cohorts"] == {
        site: dict.fromkeys(TWO, consents[site]["cohort"]["digest"]) for site in TWO
    }


def test_too_few_that_compare_leave_a_panel_and_a_table_that_says_so(home: Path) -> None:
    ended = go_on(home, spoil={site: cut("comparison", "averaged") for site in LEFT})
    told = outcome(home)
    assert (ended.code, told["status"], told["table"]) == (7, "partial", [])
    assert "1 of 3" in document(home, "comparison")["why"]
    assert document(home, "comparison")["rivals"] == ["relay"]
    assert len(load_panel(Path(told["panel"])).experts) == len(SITES)
    assert go_on(home).seen == ()


def test_rival_that_too_few_trained_has_no_row_and_its_absences_stay(home: Path) -> None:
    ended = go_on(home, spoil={site: cut("averaged") for site in LEFT})
    methods = {row["method"] for row in outcome(home)["table"]}
    assert "one network in turn" in methods
    assert "federated averaging" not in methods
    assert ended.code == 7
    assert "north: its line is cut" in outcome(home)["sentence"]


def test_experts_that_began_with_one_that_is_gone_are_affected_by_it(home: Path) -> None:
    agree_views(home, write_study(begin="first"))
    rosters: list[Digest] = []
    for sites in (TWO, ("harbour",), ("harbour", "valley")):
        earlier = rosters[-1] if rosters else None
        agree_views(home, write_study(sites, begin="first", quorum=1, predecessor=earlier))
        with federation(home) as told:
            run = told.run()
            collect_consents(run)
            try_sites(run)
            experts = train_experts(run)
            rosters.append(run.roster)
            left = run.document("expert") or {}
    assert (left["first"], left["start"]) == ("north", {"harbour": "north", "valley": "harbour"})
    made = [one for one in trace_site(home, "north").made if one.roster == rosters[-1]]
    assert {one.digest for one in made} == {record.weights for record in experts}
    assert not any(one.directly for one in made)
    own = [one.digest for one in trace_site(home, "valley").made]  # the control
    assert own == [record.weights for record in experts if record.site == "valley"]
    assert trace_site(home, "north", cohort_version=Digest("sha256:" + "0" * 64)).made == ()
