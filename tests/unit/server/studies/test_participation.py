"""A run never reports success on a silent subset: who was missing is told, and who must not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.factories.federation import SITES, copy_homes, federation
from tests.unit.server.studies.conftest import Ended, lenient
from vitrael.core.errors import EXIT_PARTIAL, QuorumError
from vitrael.core.messages import Parcel, Task
from vitrael.server.studies.absences import find_contributors
from vitrael.server.studies.participation import (
    find_judges,
    record_participation,
    tell_outcome,
)
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.run import StageResult, StudyRun

pytestmark = [
    pytest.mark.federation,  # whole studies
]

ABSENT = "site valley: the disk of patient scans in ward seven is full"


@pytest.fixture(scope="module")
def partial(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A study that was released, although a site was absent from one round of the codec."""
    home = copy_homes(prepared, tmp_path_factory.mktemp("partial"))
    with lenient(), federation(home) as told:

        def miss(task: Task, parcel: Parcel) -> Parcel | str:
            return ABSENT if (task.stage, task.round) == ("codec", 1) else parcel

        told.spoil["valley"] = miss
        code = run_study(home, told.exchange)
        return Ended(home, code, tuple(told.seen))


@pytest.fixture
def run(home: Path) -> StudyRun:
    from tests.fakes.federation import HandlerExchange
    from vitrael.server.studies.run import open_run

    return open_run(home, HandlerExchange({}))


def bundled(home: Path, name: str) -> str:
    (path,) = (home / "catalogue").rglob(name)
    return path.read_text(encoding="utf-8")


def test_study_that_lost_a_site_for_a_round_is_partial(partial: Ended) -> None:
    assert partial.code == EXIT_PARTIAL
    outcome = json.loads((partial.home / "outcome.json").read_text())
    assert (outcome["status"], outcome["outcome"]) == ("partial", "pass")
    assert outcome["sentence"] == f"partial: 2 of 3 (valley: {ABSENT})"


def test_study_in_which_everybody_answered_is_finished(finished: Ended) -> None:
    assert finished.code == 0  # the control
    outcome = json.loads((finished.home / "outcome.json").read_text())
    assert (outcome["status"], outcome["sentence"]) == ("finished", "finished: 3 of 3")


def test_missing_round_is_shown_and_does_not_alone_refuse(partial: Ended) -> None:
    with federation(partial.home) as told:
        record = record_participation(told.run())
        rounds = [r for r in told.run().finished() if r.key.stage == "codec"]
    assert record["absent"] == {"codec 2": {"valley": "did not answer"}}
    assert record["rounds"]["codec 2"]["invited"] == list(SITES)
    assert set(record["rounds"]["codec 2"]["seconds"]) == {"north", "harbour"}
    assert rounds[1].participants == ("north", "harbour")
    assert set(rounds[1].details["weights"]) == {"north", "harbour"}
    assert sum(rounds[1].details["weights"].values()) == pytest.approx(1, abs=1e-3)


def test_record_is_part_of_the_release_and_of_its_card_and_report(partial: Ended) -> None:
    told = json.loads(bundled(partial.home, "participation.json"))
    assert told["absent"]["codec 2"] == {"valley": "did not answer"}
    assert "absent from codec 2: valley (did not answer)" in bundled(partial.home, "card.md")
    assert "absent from codec, round 2: did not answer" in bundled(partial.home, "report.html")
    assert ABSENT in (partial.home / "report" / "report.json").read_text()  # the coordinator's own


def test_release_says_nothing_that_a_site_wrote_and_no_exact_count(partial: Ended) -> None:
    for name in ("participation.json", "card.md", "report.html"):
        assert "ward seven" not in bundled(partial.home, name)
    told = json.loads(bundled(partial.home, "participation.json"))
    examples: dict[str, Any] = told["rounds"]["codec 1"]["examples"]
    assert set(examples) == set(SITES)
    assert set(examples.values()) <= {"fewer than 11", "11 to 49"}
    weights = told["rounds"]["codec 1"]["weights"].values()
    assert all(round(share, 1) == share for share in weights)


def test_who_was_absent_before_a_study_went_on_is_in_its_release(home: Path) -> None:
    with lenient(), federation(home) as told:
        for site in SITES:
            told.spoil[site] = lambda task, parcel: ABSENT if task.stage == "teacher" else parcel
        with pytest.raises(QuorumError) as caught:
            run_study(home, told.exchange)
    assert caught.value.sentence().count("To do: ") == 1
    with lenient(), federation(home) as told:
        assert run_study(home, told.exchange) == 0  # everybody answered in the end
    record = json.loads(bundled(home, "participation.json"))
    assert record["absent"] == {}
    assert record["absent_before"] == {"teacher 1": [dict.fromkeys(SITES, "did not answer")]}
    page = bundled(home, "report.html")
    assert "teacher, round 1, in an attempt that does not count: did not answer" in page
    assert "ward seven" not in page
    assert "ward seven" not in json.dumps(record)
    own = (home / "report" / "report.json").read_text()
    assert "in an attempt that does not count: site valley: the disk" in own


def test_study_that_was_not_interrupted_had_nobody_absent_before(finished: Ended) -> None:
    assert json.loads(bundled(finished.home, "participation.json"))["absent_before"] == {}


def test_remedies_of_the_sites_do_not_end_what_the_coordinator_says(home: Path) -> None:
    paused = "site valley is paused: its operator did so. To do: ask again once it goes on."
    with lenient(), federation(home) as told:
        told.spoil["valley"] = lambda *_: paused
        with pytest.raises(QuorumError) as caught:
            run_study(home, told.exchange)
    text = caught.value.sentence()
    assert text.count("To do: ") == 1
    assert "its operator did so; ask again once it goes on. To do: mend" in text


def take_part(run: StudyRun, stage: str, *sites: str) -> None:
    run.stage(stage, {}, lambda: StageResult({"by": list(sites)}, {}, sites))


def test_site_that_contributed_and_did_not_judge_is_seen(run: StudyRun) -> None:
    take_part(run, "codec", *SITES)
    for stage in ("calibration", "screening", "rescreening"):
        take_part(run, stage, *SITES)
    assert find_judges(run) == set()
    take_part(run, "audit", "north", "harbour")
    assert find_contributors(run) - find_judges(run) == {"valley"}


def test_site_that_missed_one_round_of_a_screening_did_not_judge(run: StudyRun) -> None:
    for stage in ("calibration", "screening", "rescreening", "audit"):
        take_part(run, stage, *SITES)
    assert find_judges(run) == set(SITES)
    missed = StageResult({"by": ["north"]}, {}, ("north", "harbour"))
    run.stage("screening", {}, lambda: missed, round_index=1)
    assert find_judges(run) == {"north", "harbour"}


def test_site_that_never_contributed_is_not_among_the_contributors(run: StudyRun) -> None:
    take_part(run, "consent", *SITES)
    take_part(run, "canary", *SITES)
    take_part(run, "latents", "north")
    take_part(run, "teacher", "north", "harbour")
    assert find_contributors(run) == {"north", "harbour"}


def test_long_reason_is_cut_and_two_sites_are_named(run: StudyRun) -> None:
    details = {"absent": {"valley": "b" * 900, "harbour": "its line is cut."}}
    run.stage("teacher", {}, lambda: StageResult({}, details, ("north",)))
    sentence = tell_outcome(run).sentence
    assert sentence.startswith("partial: 1 of 3 (harbour: its line is cut, valley: bbb")
    assert len(sentence) < 300
