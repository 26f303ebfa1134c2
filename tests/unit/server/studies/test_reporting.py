"""The report tells every gate, stage and site, and nothing of a patient."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from tests.factories.federation import PATIENTS, SITES, federation
from tests.fakes.federation import HandlerExchange
from tests.unit.server.studies.conftest import Ended, policy
from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import pearson_interval, pearson_r
from vitrael.privacy.evidence import NAMES
from vitrael.privacy.gates import POLICIES
from vitrael.privacy.suite import VOLUME_SUITE
from vitrael.server.demo import site_home
from vitrael.server.progress import STAGES
from vitrael.server.studies.federated import collect_consents
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.reporting import (
    _ceiling,
    _difference,
    _why_unscreened,
    build_report,
    render_bundle_report,
    sum_up_votes,
)
from vitrael.server.studies.run import StageResult, open_run

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
        *("Training of the codec", "Training of the patient encoder"),
        *("Training of the teacher", "Training of the student"),
    }
    codec = next(c for c in report["curves"] if c["title"] == "Training of the codec")
    assert set(codec["series"]) == set(SITES)
    images = [point[0] for point in codec["series"]["north"]]
    assert images == sorted(images)
    assert images[-1] == 32  # both rounds on one axis
    assert [site["name"] for site in report["sites"]] == list(SITES)
    assert all(site["consented_utc"] for site in report["sites"])


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every scalar of a document with the names that lead to it."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from fields(part, f"{path}/{name}")
    elif isinstance(value, list):
        for part in value:
            yield from fields(part, path)
    else:
        yield path, value


def test_counts_of_patients_are_buckets(report: dict[str, Any], finished: Ended) -> None:
    counts = [(path, value) for path, value in fields(report) if "patient" in path]
    assert {path for path, _ in counts} == {"/sites/training_patients"}
    assert {value for _, value in counts} == {"fewer than 11"}
    # Whatever else is a whole number, the report says what it counts: n, rounds, voxels, samples.
    whole = {path for path, value in fields(report) if type(value) is int}
    by_class = {path for path in whole if path.split("/")[-2] in {"planted", "caught"}}
    assert {path.rpartition("/")[2] for path in by_class} <= VOLUME_SUITE.keys()
    assert {path.rpartition("/")[2] for path in whole - by_class} <= {
        *("n", "least_n", "planted", "caught", "version", "seed", "volumes", "released"),
        *("target", "grid_vox", "round", "rounds", "samples", "references", "overview"),
        "size_bytes",
        *("codec", "reid", "teacher", "asked", "kept"),
    }
    exact = {path.partition("/n")[0] for path in whole if path.endswith("/n")}
    measured = {"/evidence/measurements", "/verdict/findings/measurement", "/reading/power/beside"}
    measured |= {"/screening/subgroups", "/rescreening/subgroups"}  # of images that nobody is
    assert exact <= measured | {
        f"/conditioning/{part}" for part in ("ceiling", "asked_measured", "permuted", "difference")
    }
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


def test_ceiling_has_an_interval_at_the_confidence_of_the_protocol() -> None:
    told = _ceiling(0.98, 40, confidence=0.9)
    assert (told.low, told.high) == pearson_interval(0.98, 40, confidence=0.9)
    assert (told.confidence, told.n) == (0.9, 40)
    assert told.low is not None
    assert told.low < 0.98
    assert _ceiling(None, 0, confidence=0.9).low is None


def test_difference_is_the_mean_of_measured_minus_asked() -> None:
    asked = np.array([10.0, 20.0, 30.0, 40.0])
    measured = asked + np.array([-3.0, -1.0, -3.0, -1.0])
    told = _difference(asked, measured, confidence=0.95)
    assert told.value == pytest.approx(-2)
    assert told.low == pytest.approx(-2 - 1.6449 * np.sqrt(4 / 3) / 2, abs=1e-3)
    assert told.high is not None
    assert told.high < 0
    assert pearson_r(asked, measured) > 0.99  # what r alone would say
    assert _difference(asked[:1], measured[:1], confidence=0.95).value is None
    measured[2] = np.nan
    told = _difference(asked, measured, confidence=0.95)
    assert (told.value, told.n) == (None, 4)
    assert "one without both volumes" in told.reason


def test_screening_tells_what_each_site_kept(report: dict[str, Any]) -> None:
    screening = report["screening"]
    assert screening["kept"] == report["study"]["target"]
    assert screening["share"] == screening["kept"] / screening["asked"]
    assert report["rescreening"]["kept"] == report["volumes"]
    for told in (screening, report["rescreening"]):
        assert told["rounds"] == 2
        assert {(vote["site"], vote["asked"]) for vote in told["votes"]} == {
            (site, told["asked"]) for site in SITES
        }
        names = [m["name"].rpartition(".")[2] for m in told["subgroups"]]
        assert {"female", "male"} >= {*names} - {"under 40", "40 to 59", "60 to 79", "80 or older"}
        assert all(m["n"] >= 11 for m in told["subgroups"] if m["value"] is not None)


def test_votes_are_summed_over_the_rounds_and_few_are_not_told() -> None:
    can, cannot = {"estimable": True}, {"estimable": False}
    kept, sites = {"north": 8, "valley": 3}, {"north": can, "valley": can}
    first = {"count": 10, "keep": [1, 2], "kept": kept, "sites": sites}
    second = {"count": 2, "keep": [0], "kept": {"north": 2}, "sites": {"north": cannot}}
    told = sum_up_votes([first, second])
    assert (told.asked, told.kept, told.share, told.rounds) == (12, 3, 0.25, 2)
    assert [(v.site, v.asked, v.kept, v.judged) for v in told.votes] == [
        ("north", 12, 10, False),
        ("valley", 10, None, False),
    ]


def test_signed_report_gives_no_reason_of_a_failure(
    finished_home: Path, documents: Documents
) -> None:
    found = documents(finished_home)
    asked = {"samples": found["synthesis 1"], "decision": found["gates 1"]}
    for file in finished_home.glob("server.sqlite*"):
        file.unlink()
    with federation(finished_home) as told:
        run = told.run()
        collect_consents(run)
        run.stage("codec", {}, lambda: without("valley"))
        with pytest.raises(DataError):
            run.stage("audit", {}, lambda: fail(DataError("ward seven is dark")))
        signed = render_bundle_report(run, **asked).decode()
        own = build_report(run, **asked).model_dump_json()
    assert "absent from codec, round 1: did not answer" in signed
    assert "report.json" not in signed
    assert ">failed</span>" in signed
    for reason in ("the line is cut", "ward seven"):
        assert reason not in signed
        assert reason in own  # the control


def without(site: str) -> StageResult:
    """Return what a round leaves from which a site was absent, and one other was bounded."""
    details = {
        "absent": {site: "the line is cut"},
        "kinds": {site: "silent"},
        "outliers": {"north": {"action": "bound", "distance": 9.0}},
    }
    return StageResult({}, details, ("north", "harbour"))


def fail(error: Exception) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    ("enabled", "sites", "why"),
    [
        (False, {}, "screening is off in the study"),
        (True, {"north": True, "harbour": True}, "no votes came from valley"),
        (
            *(True, {"north": True, "harbour": False}),
            "no votes came from valley; harbour had no filter to judge with",
        ),
        (True, dict.fromkeys(SITES, True), ""),
    ],
)
def test_why_candidates_are_unscreened_is_what_was_so(
    *, enabled: bool, sites: dict[str, bool], why: str, home: Path
) -> None:
    run = open_run(home, HandlerExchange({}))
    screening = run.study.protocol.screening.model_copy(update={"enabled": enabled})
    protocol = run.study.protocol.model_copy(update={"screening": screening})
    changed = replace(run, study=run.study.model_copy(update={"protocol": protocol}))
    voted = {site: {"estimable": can} for site, can in sites.items()}
    everybody = {"sites": {site: {"estimable": True} for site in SITES}}
    assert _why_unscreened(changed, [everybody, {"sites": voted}]) == why


def test_absent_site_is_an_event_and_a_status(finished_home: Path, documents: Documents) -> None:
    found = documents(finished_home)
    for file in finished_home.glob("server.sqlite*"):
        file.unlink()
    with federation(finished_home) as told:
        collect_consents(told.run())
        told.run().stage("codec", {}, lambda: without("valley"))
        data = build_report(told.run(), samples=found["synthesis 1"], decision=found["gates 1"])
    assert [(e.site, e.event) for e in data.events] == [
        ("valley", "absent from codec, round 1: the line is cut"),
        ("north", "its update to codec, round 1, was far from the others, and bounded"),
    ]
    statuses = {site.name: site.status for site in data.sites}
    assert statuses["valley"] == "absent from codec, round 1: the line is cut"
    assert statuses["north"] == "took part to the end"


def test_homes_do_not_appear_in_the_report(report: dict[str, Any], finished: Ended) -> None:
    assert str(site_home(finished.home, "north")) not in json.dumps(report)
