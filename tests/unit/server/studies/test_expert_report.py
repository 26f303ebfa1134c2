"""From the documents of a study's stages to the page: in the order of the roster, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.factories.enrollment import enroll_everywhere
from tests.factories.experts_study import write_study
from tests.factories.federation import SITES
from tests.fakes.federation import HandlerExchange
from vitrael.core.digest import digest_bytes
from vitrael.server.report.experts import RISKS
from vitrael.server.studies.expert_report import write_report_of_experts
from vitrael.server.studies.expert_risks import check_risk
from vitrael.server.studies.experts import ExpertRecord
from vitrael.server.studies.run import StageResult, StudyRun, open_run

AUC = "experts.members_by_nearness"
COMPARISON = {
    "table": [
        {
            "method": "fusion",
            "accuracy": 0.75,
            "interval": [0.5, 0.875],
            "images": 32,
            "sites": {"valley": 0.5, "harbour": 0.75, "north": 1.0},
            "by_view": {"A4C": 0.75},
        }
    ],
    "sites": {
        site: {
            "images": 16,
            "heaviest": 0.5,
            "weights": {"valley": 0.25, "north": 0.5, "harbour": 0.25},
        }
        for site in ("valley", "north", "harbour")
    },
}
EMPTY: Mapping[str, Any] = {"table": [], "sites": {}}
PANEL = {"panel": digest_bytes(b"panel"), "folder": "0123456789abcdef"}


def told_of(site: str) -> dict[str, Any]:
    return {
        "weights": digest_bytes(f"weights of {site}".encode()),
        "labels": ["A2C", "A4C"],
        "words": {"apical 4": "A4C"} if site == "harbour" else {},
        "calibrated": site != "valley",
        "cohort": digest_bytes(f"scans of {site}".encode()),
    }


@pytest.fixture
def run(tmp_path: Path) -> StudyRun:
    """A study whose sites gave their experts and measured what these tell of them."""
    home = tmp_path / "home"
    enroll_everywhere(home, SITES, study=write_study().encode())
    (home / "study.toml").write_text(write_study())
    run = open_run(home, HandlerExchange({}))
    curve = {"images": [0, 64], "loss": [1.5, 0.5]}
    experts = {site: told_of(site) for site in reversed(SITES)}
    run.stage(
        "expert",
        {},
        lambda: StageResult({"experts": experts}, {"curves": {"north": curve}}, SITES),
    )
    risks = {
        "valley": [{"reason": "fewer than 11 patients"}],
        "harbour": [{}],
        "coast": [{"reason": "it is on the roster no more"}],
        "north": [
            {
                "experts": ["north", "valley"],
                "metrics": {AUC: 0.5625, f"{AUC}.low": 0.4375, f"{AUC}.high": 0.6875},
                "counts": {f"{AUC}.n": 23},
            }
        ],
    }
    run.stage("outlooks", {}, lambda: StageResult({"risks": risks}, {}, SITES))
    return run


def report(
    run: StudyRun, *sites: str, comparison: Mapping[str, Any] = COMPARISON
) -> dict[str, Any]:
    """Return what is reported of a panel of some sites' experts."""
    records = tuple(ExpertRecord.of(site, told_of(site)) for site in sites or SITES)
    page = write_report_of_experts(run, records, comparison=comparison, panel=PANEL)
    assert page == run.home / "report" / "report.html"
    document: dict[str, Any] = json.loads((page.parent / "report.json").read_text())
    return document


def test_sites_stand_in_the_order_of_the_roster(run: StudyRun) -> None:
    told = report(run)
    assert [expert["site"] for expert in told["experts"]] == list(SITES)
    assert [site["site"] for site in told["sites"]] == list(SITES)
    assert [list(site["weights"]) for site in told["sites"]] == [list(SITES)] * len(SITES)
    stored = run.document("expert")
    assert stored is not None
    assert list(stored["experts"]) != list(SITES)  # the control


def test_report_names_study_panel_and_what_was_learned(run: StudyRun) -> None:
    told = report(run)
    assert told["study"] == run.study.digest
    assert told["protocol"] == run.study.protocol.digest
    assert told["panel"] == "panels/0123456789abcdef"
    assert told["views"] == ["A2C", "A4C", "PLAX", "PSAX"]
    assert told["curves"][0]["series"] == {"north": [[0, 1.5], [64, 0.5]]}
    assert [stage["stage"] for stage in told["stages"]] == ["expert", "outlooks"]
    words = {expert["site"]: expert["words"] for expert in told["experts"]}
    assert words == {"north": {}, "harbour": {"apical 4": "A4C"}, "valley": {}}


def test_accuracies_keep_their_bounds(run: StudyRun) -> None:
    (row,) = report(run)["table"]
    assert (row["low"], row["accuracy"], row["high"], row["images"]) == (0.5, 0.75, 0.875, 32)
    assert row["sites"] == COMPARISON["table"][0]["sites"]  # type: ignore[index]


def test_risks_are_those_that_are_known_with_bounds_and_patients(run: StudyRun) -> None:
    assert report(run)["risks"] == [
        {
            "site": "north",
            "experts": ["north", "valley"],
            "name": AUC,
            "what": RISKS[AUC],
            "value": 0.5625,
            "low": 0.4375,
            "high": 0.6875,
            "n": 23,
        }
    ]


def test_site_where_nothing_could_be_measured_is_named_with_its_reason(run: StudyRun) -> None:
    assert report(run)["not_estimable"] == {
        "harbour": "nothing was told of it",
        "valley": "fewer than 11 patients",
    }


def test_expert_that_is_not_in_the_panel_is_told_as_such(run: StudyRun) -> None:
    told = report(run, "north", "valley", comparison=EMPTY)
    there = {expert["site"]: expert["in_panel"] for expert in told["experts"]}
    assert there == {"north": True, "harbour": False, "valley": True}
    assert told["table"] == told["sites"] == []
    page = (run.home / "report" / "report.html").read_text()
    assert "Not in the panel any more: harbour." in page
    assert all(expert["in_panel"] for expert in report(run)["experts"])  # the control


@pytest.mark.parametrize(
    "body",
    [
        {"metrics": {AUC: "high"}},
        {"metrics": {AUC: float("nan")}},
        {"metrics": {AUC: True}},
        {"metrics": {"else": 0.5}},
        {"metrics": 3},
        {"counts": {f"{AUC}.n": "x"}},
        {"counts": {f"{AUC}.n": -1}},
        {"reason": 3},
    ],
)
def test_risk_that_no_report_could_show_is_refused(body: dict[str, Any]) -> None:
    check_risk({"metrics": {AUC: 0.5}, "counts": {f"{AUC}.n": 23}, "reason": ""})  # the control
    with pytest.raises(ValueError, match="no measurement"):
        check_risk(body)
