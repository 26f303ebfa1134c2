"""A whole study in one process: every stage is kept, a killed one goes on to the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.factories.federation import (
    SITES,
    Interruption,
    copy_homes,
    federation,
)
from tests.unit.server.studies.conftest import Ended, lenient, policy
from vitrael.core.messages import Task
from vitrael.core.study import load_study
from vitrael.privacy.journal import verify_journal
from vitrael.privacy.journal_cross import compare_journals, read_account
from vitrael.server.demo import site_home
from vitrael.server.progress import STAGES
from vitrael.server.studies.pipeline import run_study

Documents = Callable[[Path], dict[str, Any]]

ALONE = {"candidates", "student", "samples", "synthesis", "gates", "bundle", "publication"}
"""Stages that ask no site."""
IN_ROUNDS = ("codec", "reid", "teacher", "screening", "rescreening")
FEDERATED = [
    (stage, number)
    for stage in STAGES
    if stage not in ALONE
    for number in range(2 if stage in IN_ROUNDS else 1)
]
KILLED = (("teacher", 1), ("screening", 1), ("rescreening", 1))
"""The rounds in whose midst a study is killed, before its second site is asked."""
WEIGHTS = {"codec 1": "codec", "codec 2": "codec", "latents 1": "codec"} | {
    "reid 1": "encoder",
    "reid 2": "encoder",
    "teacher 1": "denoiser",
    "teacher 2": "denoiser",
    "student 1": "denoiser",
    "candidates 1": "images",
    "candidates 2": "images",
    "samples 1": "images",
    "samples 2": "images",
    "synthesis 1": "samples",
}
"""Stage and round to the name of the tensors in its document."""


def weights(documents: dict[str, Any]) -> dict[str, str]:
    return {stage: documents[stage][name] for stage, name in WEIGHTS.items() if stage in documents}


@pytest.fixture(scope="module")
def resumed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The same homes, killed in the middle of rounds, gone on with, under the real policy.

    Seen is what reached the stewards after the first kill.
    """
    home = copy_homes(prepared, tmp_path_factory.mktemp("resumed"))
    seen: list[Task] = []
    for stage, number in KILLED:
        with federation(home) as told:  # everybody starts again
            told.interrupt = (stage, number, "harbour")
            with pytest.raises(Interruption):
                run_study(home, told.exchange)
            assert told.seen[-1].site == "north"
            seen += told.seen if (stage, number) != KILLED[0] else ()
    with federation(home) as told:
        code = run_study(home, told.exchange)
        return Ended(home, code, (*seen, *told.seen))


def test_every_stage_is_finished_in_the_ledger(finished: Ended, documents: Documents) -> None:
    assert finished.code == 0
    stages = {name.split(" ")[0] for name in documents(finished.home)}
    assert stages == set(STAGES)


def test_each_site_is_asked_once_for_each_round(finished: Ended) -> None:
    asked = [(task.stage, task.round, task.site) for task in finished.seen]
    assert asked == [(stage, number, site) for stage, number in FEDERATED for site in SITES]


def test_second_run_asks_nobody_and_changes_nothing(
    finished_home: Path, documents: Documents
) -> None:
    before = documents(finished_home)
    with lenient(), federation(finished_home) as told:
        assert run_study(finished_home, told.exchange) == 0
        assert told.seen == []
        attempts = told.run().ledger.history(told.run().study.protocol.digest)
    assert documents(finished_home) == before
    assert len(attempts) == len(before)


def test_killed_study_goes_on_to_the_same_weights(
    finished: Ended, resumed: Ended, documents: Documents
) -> None:
    undisturbed, disturbed = weights(documents(finished.home)), weights(documents(resumed.home))
    assert undisturbed == disturbed
    # Control: the digests do tell weights apart.
    assert len(set(undisturbed.values())) == len(undisturbed)


def test_what_was_finished_before_the_kill_is_not_asked_for_again(resumed: Ended) -> None:
    asked = [(task.stage, task.round) for task in resumed.seen]
    left = FEDERATED[FEDERATED.index(("teacher", 1)) : FEDERATED.index(("signing", 0))]
    twice = set(KILLED[1:])  # north was asked, and then again
    times = {pair: len(SITES) + (pair in twice) for pair in left}
    assert asked == [pair for pair in left for _ in range(times[pair])]


def test_task_says_how_often_its_round_was_begun_before(resumed: Ended) -> None:
    again = {(task.stage, task.round) for task in resumed.seen if task.attempt}
    assert again == set(KILLED)
    assert {task.attempt for task in resumed.seen} == {0, 1}


def test_round_that_was_cut_short_is_returned_and_not_computed_again(resumed: Ended) -> None:
    lines = (site_home(resumed.home, "north") / "progress.jsonl").read_text().splitlines()
    shown = [(line["stage"], line["round"]) for line in map(json.loads, lines)]
    begun = [pair for at, pair in enumerate(shown) if at == 0 or shown[at - 1] != pair]
    for stage, number in KILLED:
        assert begun.count((stage, number)) == 1


def test_killed_attempt_stays_in_the_history(resumed: Ended) -> None:
    with federation(resumed.home) as told:
        history = told.run().ledger.history(told.run().study.protocol.digest)
    failed = [(r.key.stage, r.key.round, r.reason) for r in history if r.status != "finished"]
    assert [(stage, number) for stage, number, _ in failed] == list(KILLED)
    assert all("Interruption" in reason for _, _, reason in failed)


def test_refused_verdict_signs_nothing_and_publishes_nothing(
    resumed: Ended, documents: Documents
) -> None:
    assert resumed.code == 6
    assert {"signing 1", "publication 1"} & documents(resumed.home).keys() == set()
    assert "signing" not in {task.stage for task in resumed.seen}
    assert not (resumed.home / "catalogue").exists()
    assert not (resumed.home / "bundles").exists()
    outcome = json.loads((resumed.home / "outcome.json").read_text())
    assert (outcome["outcome"], outcome["publishable"]) == ("refuse", False)
    assert any(kind == "refused" for kind, _ in outcome["findings"])


@pytest.mark.parametrize(
    ("measurement", "publishable", "code"),
    [
        ("membership.auc", False, 6),  # not estimable, although the candidates were screened
        ("membership.auc", True, 6),
        ("conditioning.ventricle_r", False, 6),  # measured, and bad
    ],
)
def test_refused_study_ends_with_exit_code_6(
    measurement: str, publishable: object, code: int, finished_home: Path
) -> None:
    with policy(measurement, publishable=bool(publishable)), federation(finished_home) as told:
        assert run_study(finished_home, told.exchange) == code
        assert told.seen == []
    outcome = json.loads((finished_home / "outcome.json").read_text())
    assert outcome["outcome"] == "refuse"


def test_journals_of_the_sites_are_whole(finished: Ended) -> None:
    for site in SITES:
        assert verify_journal(site_home(finished.home, site) / "journal.jsonl") == []


def test_journals_of_both_sides_tell_the_same_of_a_whole_study(finished: Ended) -> None:
    coordinator = read_account(finished.home / "journal.jsonl", in_home=True)
    assert coordinator.faults == ()
    for site in SITES:
        path = site_home(finished.home, site) / "journal.jsonl"
        compared = compare_journals(coordinator, read_account(path, in_home=True))
        answered = [task for task in finished.seen if task.site == site]
        assert (compared.site, compared.replies, compared.faults) == (site, len(answered), ())
        assert compared.heads == 2 * len(answered)


def test_progress_tells_every_stage_from_beginning_to_end(finished: Ended) -> None:
    text = (finished.home / "progress.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    turns = [(line["stage"], line["event"]) for line in lines]
    for stage in STAGES:
        assert turns.count((stage, "begun")) == turns.count((stage, "finished")) > 0
    assert ("codec", "kept") not in turns


def test_study_that_lost_a_site_is_no_study_of_too_few_patients(
    prepared: Path, tmp_path: Path
) -> None:
    home = copy_homes(prepared, tmp_path)
    assert load_study(home / "study.toml").protocol.federation.quorum < len(SITES)
    with federation(home) as told:
        told.spoil["valley"] = lambda task, reply: (
            "the line is cut" if task.stage == "screening" else reply
        )
        assert run_study(home, told.exchange) == 6
    outcome = json.loads((home / "outcome.json").read_text())
    assert outcome["unscreened"] == 18  # 16 candidates, of whom two sites dropped one each, and 2
