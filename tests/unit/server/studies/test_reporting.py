"""The report tells every gate, stage and site, and nothing of a patient."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.factories.federation import PATIENTS, SITES, federation
from tests.unit.server.studies.conftest import Ended, policy
from vitrael.privacy.evidence import NAMES
from vitrael.privacy.gates import POLICIES
from vitrael.server.demo import site_home
from vitrael.server.progress import STAGES
from vitrael.server.studies.federated import collect_consents
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.reporting import build_report

pytestmark = pytest.mark.xdist_group("tiny study")

Documents = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def report(finished: Ended) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((finished.home / "report" / "report.json").read_bytes())
    return document


def test_report_lists_every_gate_of_the_policy(finished_home: Path) -> None:
    with federation(finished_home) as told:  # the real policy, on what was measured
        assert run_study(finished_home, told.exchange) == 6
    document = json.loads((finished_home / "report" / "report.json").read_bytes())
    page = (finished_home / "report" / "report.html").read_text()
    told_gates = [finding["gate"]["name"] for finding in document["verdict"]["findings"]]
    assert told_gates == [gate.name for gate in POLICIES["rehearsal"].gates]
    assert all(gate.measurement in page for gate in POLICIES["rehearsal"].gates)
    # Control: another policy, another list.
    with policy("membership.auc"), federation(finished_home) as told:
        run_study(finished_home, told.exchange)
    document = json.loads((finished_home / "report" / "report.json").read_bytes())
    assert [f["gate"]["name"] for f in document["verdict"]["findings"]] == ["membership.auc"]


def test_every_measurement_that_is_named_was_made(report: dict[str, Any]) -> None:
    assert {m["name"] for m in report["evidence"]["measurements"]} == set(NAMES)


def test_stages_curves_and_sites_are_told(report: dict[str, Any]) -> None:
    assert {stage["stage"] for stage in report["stages"]} == set(STAGES)
    assert all(stage["status"] == "finished" for stage in report["stages"])
    assert {curve["title"] for curve in report["curves"]} == {
        *("Training of the codec", "Training of the teacher", "Training of the student")
    }
    codec = next(c for c in report["curves"] if c["title"] == "Training of the codec")
    assert set(codec["series"]) == set(SITES)
    images = [point[0] for point in codec["series"]["north"]]
    assert images == sorted(images)
    assert images[-1] == 32  # both rounds on one axis
    assert [site["name"] for site in report["sites"]] == list(SITES)
    assert all(site["consented_utc"] for site in report["sites"])


def test_counts_of_patients_are_buckets(report: dict[str, Any], finished: Ended) -> None:
    assert {site["training_patients"] for site in report["sites"]} == {"fewer than 11"}
    text = json.dumps(report) + (finished.home / "report" / "report.html").read_text()
    for patient in range(PATIENTS):
        assert f"ph-{patient:04d}" not in text


def test_bundle_holds_the_report_as_it_was_signed(finished: Ended) -> None:
    page = (finished.home / "catalogue" / "tiny" / "1" / "report.html").read_text()
    assert "tiny" in page
    assert "<script" not in page.casefold()


def test_ceiling_that_nobody_could_tell_is_not_estimable(report: dict[str, Any]) -> None:
    ceiling = report["conditioning"]["ceiling"]
    assert ceiling["value"] is None
    assert "enough patients" in ceiling["reason"]


def test_absent_site_is_an_event_and_a_status(finished_home: Path, documents: Documents) -> None:
    found = documents(finished_home)
    for file in finished_home.glob("server.sqlite*"):
        file.unlink()
    with federation(finished_home) as told:
        told.spoil["valley"] = lambda *_: "the line is cut"
        collect_consents(told.run())
        data = build_report(told.run(), samples=found["synthesis 0"], decision=found["gates 0"])
    assert [(e.site, e.event) for e in data.events] == [
        ("valley", "absent from consent, round 0: the line is cut")
    ]
    statuses = {site.name: site.status for site in data.sites}
    assert statuses["valley"] == "consent: the line is cut"
    assert statuses["north"] == "took part to the end"
    assert data.sites[2].consented_utc is None


def test_homes_do_not_appear_in_the_report(report: dict[str, Any], finished: Ended) -> None:
    assert str(site_home(finished.home, "north")) not in json.dumps(report)
