"""What a demo says at its end, and how long it is waited for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from vitrael.core.errors import EXIT_PARTIAL
from vitrael.core.study import Study, load_study
from vitrael.server import demo_run
from vitrael.server.demo_run import longest_run_s, run_demo
from vitrael.server.federation.layout import RehearsalLayout

REFUSED = {
    "outcome": "refuse",
    "release": "brain-demo@1",
    "policy": "rehearsal",
    "publishable": False,
    "unscreened": 0,
    "findings": [["refused", "too near"], ["passed", "all took part"]],
    "report": "report.html",
}


class FakeRegistry:
    """Has one experiment."""

    @classmethod
    def open(cls, _: Path) -> FakeRegistry:
        return cls()

    def experiment(self, *_: object) -> str:
        return "7"


class FakeRecorder:
    """Has nothing to record."""

    def __init__(self, _: Path) -> None:
        pass

    def catch_up(self) -> None:
        pass


def layout_of(home: Path, study: Study) -> RehearsalLayout:
    return RehearsalLayout(home=home, sites=study.roster.sites)


@pytest.fixture
def study(root: Path) -> Study:
    return load_study(root / "deploy" / "studies" / "brain-demo.toml")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "outcome.json").write_text(json.dumps(REFUSED))
    (tmp_path / "prepared.json").write_text('{"scans": {"north": {"unreadable": 0}}}')
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the rehearsal, which does not take place, was asked for."""
    seen: dict[str, Any] = {}

    def rehearse(*_: object, **keywords: object) -> int:
        seen.update(keywords)
        return 0

    monkeypatch.setattr(demo_run, "rehearse", rehearse)
    monkeypatch.setattr(demo_run, "Recorder", FakeRecorder)
    monkeypatch.setattr(demo_run, "Registry", FakeRegistry)
    return seen


@pytest.mark.usefixtures("asked")
def test_seconds_are_counted_from_the_start_of_the_command(home: Path, study: Study) -> None:
    outcome, _ = run_demo(layout_of(home, study), study, began=time.monotonic() - 1_000)
    assert 1_000 <= outcome.document["seconds"] < 1_100


def test_demo_waits_no_longer_than_its_study(
    home: Path, study: Study, asked: dict[str, Any]
) -> None:
    run_demo(layout_of(home, study), study, began=time.monotonic())
    assert asked["timeout_s"] == longest_run_s(study)


@pytest.mark.usefixtures("asked")
def test_end_names_report_findings_and_the_page_of_the_runs(home: Path, study: Study) -> None:
    outcome, _ = run_demo(layout_of(home, study), study, began=time.monotonic())
    for told in ("report.html", "refused: too near", "mlflow server", "/#/experiments/7/runs"):
        assert told in outcome.text
    assert "all took part" not in outcome.text


@pytest.mark.usefixtures("asked")
def test_scans_that_were_left_out_make_it_partial(home: Path, study: Study) -> None:
    assert run_demo(layout_of(home, study), study, began=time.monotonic())[1] == 0
    (home / "prepared.json").write_text('{"scans": {"north": {"unreadable": 2}}}')
    assert run_demo(layout_of(home, study), study, began=time.monotonic())[1] == EXIT_PARTIAL


def test_patience_is_longer_than_all_that_a_study_may_wait_for_and_not_endless(
    study: Study,
) -> None:
    federation = study.protocol.federation
    exchanges = 6 + 4 + 4 + 2 + 2  # of the demo: two screenings, codec and teacher in rounds
    assert exchanges * federation.deadline_s < longest_run_s(study) < 12 * 3600
    slower = federation.model_copy(update={"deadline_s": 2 * federation.deadline_s})
    protocol = study.protocol.model_copy(update={"federation": slower})
    patient = longest_run_s(study.model_copy(update={"protocol": protocol}))
    assert patient >= longest_run_s(study) + exchanges * federation.deadline_s
    wanted = study.protocol.distillation.model_copy(update={"compare": True})
    protocol = study.protocol.model_copy(update={"distillation": wanted})
    compared = longest_run_s(study.model_copy(update={"protocol": protocol}))
    assert compared >= longest_run_s(study) + federation.deadline_s


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("recalled", [False, True])
def test_demo_that_is_finished_tells_of_a_recall(
    home: Path, study: Study, *, recalled: bool
) -> None:
    passed = {**REFUSED, "outcome": "pass", "reason": "", "findings": []}
    (home / "outcome.json").write_text(json.dumps(passed))
    folder = home / "catalogue" / "brain-demo" / "1"
    folder.mkdir(parents=True)
    if recalled:
        (folder / "RECALLED.json").write_text("{}")
    outcome, _ = run_demo(layout_of(home, study), study, began=time.monotonic())
    assert outcome.document["recalled"] is recalled
    assert ("It was recalled since" in outcome.text) is recalled
    assert Path(outcome.document["pull"].split()[0]).is_absolute()
    pulled = home / "pulled-brain-demo-1"  # what the line before fetches, the one after loads
    assert f"--to {pulled}\n" in outcome.text
    assert f"load('{pulled}')" in outcome.text
