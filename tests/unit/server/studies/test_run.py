"""A stage is done once: its name is protocol, roster, round and inputs, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.federation import HandlerExchange
from vitrael.core.errors import DataError, StudyError
from vitrael.privacy.keys import KeyPair
from vitrael.server.studies.run import StageResult, StudyRun, open_run, without_paths


@pytest.fixture
def run(home: Path) -> StudyRun:
    return open_run(home, HandlerExchange({}))


def counting(calls: list[int]) -> Callable[[], StageResult]:
    def work() -> StageResult:
        calls.append(1)
        return StageResult({"made": len(calls)}, {"note": "seen"}, ("north",))

    return work


def test_finished_stage_is_read_and_not_done_again(run: StudyRun) -> None:
    calls: list[int] = []
    work = counting(calls)
    assert run.stage("audit", {"a": 1}, work) == {"made": 1}
    again = open_run(run.home, run.exchange)  # another process
    assert again.stage("audit", {"a": 1}, work) == {"made": 1}
    assert len(calls) == 1
    (record,) = run.ledger.history(run.study.protocol.digest)
    assert record.participants == ("north",)
    assert record.details == {"note": "seen", "roster": run.roster}


def test_other_input_round_name_or_roster_is_another_stage(run: StudyRun) -> None:
    calls: list[int] = []
    work = counting(calls)
    run.stage("audit", {"a": 1}, work)
    run.stage("audit", {"a": 2}, work)
    run.stage("audit", {"a": 1}, work, round_index=1)
    run.stage("gates", {"a": 1}, work)
    joined = {**run.members, "north": KeyPair.create().public}
    replace(run, members=joined).stage("audit", {"a": 1}, work)
    assert len(calls) == 5


def test_error_fails_the_attempt_and_a_later_one_may_finish_it(run: StudyRun) -> None:
    def break_down() -> StageResult:
        raise DataError("no")

    with pytest.raises(DataError):
        run.stage("audit", {}, break_down)
    assert run.stage("audit", {}, counting([])) == {"made": 1}
    history = run.ledger.history(run.study.protocol.digest)
    assert [record.status for record in history] == ["failed", "finished"]
    assert history[0].reason == "no."


def test_reason_in_the_ledger_names_no_path(run: StudyRun) -> None:
    stored = run.home / "objects" / "ab" / "cd.safetensors"

    def break_down() -> StageResult:
        raise DataError(f"object {stored} is damaged", why="see '/var/log/x y', 1/2 of a/b read")

    def fail_elsewhere() -> StageResult:
        raise OSError(2, "no such file", str(stored))

    for work in (break_down, fail_elsewhere):
        with pytest.raises((DataError, OSError)):
            run.stage("audit", {}, work)
    reasons = [record.reason for record in run.ledger.history(run.study.protocol.digest)]
    assert reasons == ["object … is damaged: see '… y', 1/2 of a/b read.", "FileNotFoundError"]


def test_home_with_a_space_in_its_path_is_no_exception() -> None:
    home = Path("/data/my studies/1")
    told = without_paths(f"{home}/server.sqlite: locked; {home} is full", home=home)
    assert told == "…: locked; … is full"
    told = without_paths("/data/10/server.sqlite: locked", home=Path("/data/1"))
    assert told == "…: locked"


def test_members_stand_in_the_order_of_the_study(run: StudyRun) -> None:
    roster = run.home / "roster.json"
    turned = dict(reversed(json.loads(roster.read_text()).items()))
    roster.write_text(json.dumps(turned))
    again = open_run(run.home, run.exchange)
    assert tuple(turned) != run.study.roster.sites  # the control
    assert tuple(again.members) == run.study.roster.sites
    assert again.roster == run.roster


def test_progress_lines_hold_counts_and_no_more(run: StudyRun) -> None:
    run.stage("audit", {}, counting([]))
    run.stage("audit", {}, counting([]))
    run.tell("codec", 1, "answer", done=2, total=3)
    lines = [json.loads(line) for line in (run.home / "progress.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["begun", "finished", "kept", "answer"]
    assert {*lines[-1]} == {"utc", "stage", "round", "event", "done", "total"}


def test_keys_and_names_stay_out_of_the_repr(run: StudyRun) -> None:
    assert "KeyPair" not in repr(run)
    assert str(run.home) not in repr(run)


def test_home_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        open_run(tmp_path, HandlerExchange({}))
