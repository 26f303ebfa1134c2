"""A whole study that compares three arms: killed in their midst, gone on with, and told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.federation import (
    SITES,
    STUDY,
    Interruption,
    federation,
    prepare_homes,
)
from tests.unit.server.studies.conftest import ARM_STAGES, Ended, lenient
from vitrael.client.site.tasks import TASKS, SiteContext, TaskResult
from vitrael.core.messages import Task
from vitrael.core.weights import Tensors
from vitrael.privacy.audit.arm_counts import NAMES, ArmCounts, write_counts
from vitrael.privacy.audit.arms import ARMS
from vitrael.privacy.distill import Round
from vitrael.server.studies.arms import keep_at_random
from vitrael.server.studies.lineage import COMES_OF, trace_site
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.run import StageRecord, open_run

Documents = Callable[[Path], dict[str, Any]]

SAMPLES = 12
"""The fewest of which anything is told."""


def count_as_told(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Do the site's task for real, which has too few patients, and tell of a filter that works."""
    result = TASKS["arms"](task, inputs, context)
    assert result.body["estimable"] is False
    assert {len(inputs["arms"][arm]) for arm in ARMS} == {SAMPLES}
    hits = {"teacher": SAMPLES, "random": SAMPLES, "student": 0}
    both = {"random": SAMPLES, "student": 0}
    return TaskResult(body=write_counts(ArmCounts(SAMPLES, hits, both, 200, 2)))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A study that was killed while attackers counted, and went on; seen is what came after."""
    document = STUDY.replace("released = 8", f"released = {SAMPLES}\ncompare = true")
    home = prepare_homes(tmp_path_factory.mktemp("arms"), document)
    tasks: Any = {site: {"arms": count_as_told} for site in SITES}
    with lenient(), federation(home, tasks=tasks) as told:
        told.interrupt = ("arms", 0, "harbour")
        with pytest.raises(Interruption):
            run_study(home, told.exchange)
    with lenient(), federation(home, tasks=tasks) as told:
        code = run_study(home, told.exchange)
        return Ended(home, code, tuple(told.seen))


@pytest.fixture(scope="module")
def history(compared: Ended) -> tuple[StageRecord, ...]:
    from tests.fakes.federation import HandlerExchange

    return open_run(compared.home, HandlerExchange({})).history()


def test_what_was_finished_before_the_kill_is_not_done_again(
    compared: Ended, history: tuple[StageRecord, ...]
) -> None:
    assert compared.code == 0
    assert [(task.stage, task.site) for task in compared.seen] == [
        (stage, site) for stage in ("arms", "signing") for site in SITES
    ]
    begun = [(record.key.stage, record.key.round) for record in history]
    assert begun.count(("student", 0)) == begun.count(("random student", 0)) == 1
    assert [begun.count(("arm samples", number)) for number in range(3)] == [1, 1, 1]
    assert begun.count(("arms", 0)) == 2  # the control
    assert not list(compared.home.glob("training*"))


def test_random_student_learned_from_as_many_and_others(
    compared: Ended, history: tuple[StageRecord, ...], documents: Documents
) -> None:
    learned = {
        record.key.stage: record.details["learned_from"]
        for record in history
        if "learned_from" in record.details
    }
    assert learned == {"student": 16, "random student": 16}
    found = documents(compared.home)
    assert found["student 1"]["denoiser"] != found["random student 1"]["denoiser"]


def test_arms_are_drawn_anew_and_differ(compared: Ended, documents: Documents) -> None:
    from tests.fakes.federation import HandlerExchange

    run, found = open_run(compared.home, HandlerExchange({})), documents(compared.home)
    arms = [
        run.objects.get_tensors(found[f"arm samples {n}"]["images"])["image"] for n in (1, 2, 3)
    ]
    earlier = [
        run.objects.get_tensors(one["images"])["image"].astype(np.float16)
        for name, one in found.items()
        if name.startswith(("candidates", "samples"))
    ]
    rows = [row.tobytes() for images in (*arms, *earlier) for row in images]
    assert len(set(rows)) == len(rows)


def test_report_tells_the_comparison(compared: Ended) -> None:
    report = json.loads((compared.home / "report" / "report.json").read_bytes())
    arms = report["arms"]
    assert (arms["verdict"], arms["random_filter"]["verdict"]) == ("falls", "does not fall")
    assert arms["student"]["p"] < 0.05
    evidence = {one["name"]: one for one in report["evidence"]["measurements"]}
    assert set(NAMES) <= set(evidence)
    assert evidence["arms.teacher.reidentified"]["value"] == 1
    assert not {f["gate"]["measurement"] for f in report["verdict"]["findings"]} & set(NAMES)
    titles = {curve["title"] for curve in report["curves"]}
    assert "Training of the random student" in titles
    bundle = compared.home / "catalogue" / "tiny" / "1"
    signed = json.loads((bundle / "evidence.json").read_bytes())
    assert set(NAMES) <= {one["name"] for one in signed["measurements"]}
    for page in (compared.home / "report" / "report.html", bundle / "report.html"):
        text = page.read_text()
        assert "Student of as many candidates drawn at random" in text
        assert "The arms were not compared" not in text


def test_report_of_a_study_that_compares_none_says_how_to_ask(finished: Ended) -> None:
    page = (finished.home / "report" / "report.html").read_text()
    assert "The arms were not compared" in page
    assert "protocol.distillation.compare = true" in page
    report = json.loads((finished.home / "report" / "report.json").read_bytes())
    assert report["arms"] is None
    assert {task.stage for task in finished.seen}.isdisjoint(ARM_STAGES)


def test_stages_of_the_arms_are_traced(compared: Ended) -> None:
    assert set(ARM_STAGES) <= COMES_OF.keys()
    made = {one.stage for one in trace_site(compared.home, "north").made}
    assert {"random student", "arm samples"} <= made


def test_random_filter_keeps_as_many_of_all_that_were_drawn() -> None:
    kept = np.arange(20) % 4 != 0
    rounds = (Round(0, {}, kept), Round(20, {}, np.array([True, False, True])))
    blind = keep_at_random(rounds, seed=4)
    assert sum(int(one.keep_B.sum()) for one in blind) == 17
    assert [(one.first, len(one.keep_B)) for one in blind] == [(0, 20), (20, 3)]
    rows, own = (np.concatenate([one.keep_B for one in part]) for part in (blind, rounds))
    assert (rows & ~own).any()  # what the filter dropped is among them
    again = keep_at_random(rounds, seed=4)
    assert all((a.keep_B == b.keep_B).all() for a, b in zip(blind, again, strict=True))
    other = keep_at_random(rounds, seed=5)
    assert any((a.keep_B != b.keep_B).any() for a, b in zip(blind, other, strict=True))
