"""What is screened: in rounds, by every site, as often as the cap allows and no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.factories.federation import (
    SITES,
    STUDY,
    Federation,
    federation,
    prepare_homes,
)
from tests.unit.server.studies.conftest import Ended
from tests.unit.server.studies.test_federated import answer_with
from vitrael.client.site.tasks import TaskResult, TaskRunner
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import DataError, QuorumError, RefusedError
from vitrael.core.messages import Task
from vitrael.core.study import parse_study
from vitrael.core.weights import Tensors, module_tensors
from vitrael.privacy.distill import Distilled, Round
from vitrael.privacy.release.bundle import image_files
from vitrael.server.studies.distillation import (
    Rounds,
    Share,
    distill_study,
    sample_candidates,
)
from vitrael.server.studies.ledger import StageKey
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.releasing import read_samples
from vitrael.server.studies.run import StudyRun
from vitrael.server.studies.screening import (
    keep_of,
    sample_files,
    screen_candidates,
    subgroups,
    votes_before,
)

Documents = Callable[[Path], dict[str, Any]]
CANDIDATES = 16
PROMISE = digest_bytes(b"frozen before")
CALIBRATION = {"sites": {site: {"commitment": PROMISE} for site in SITES}}


def votes(keep: np.ndarray, *, estimable: bool = True) -> TaskRunner:
    def run(_task: Task, _inputs: Mapping[str, Tensors], _context: object) -> TaskResult:
        return voted(keep, estimable=estimable)

    return run


def voted(keep: np.ndarray, *, estimable: bool = True) -> TaskResult:
    body = {"estimable": estimable, "reason": "", "metrics": {}, "commitment": PROMISE}
    return TaskResult(
        body={**body, "counts": {"candidates": len(keep)}},
        tensors={"votes": {"keep": keep.astype(np.uint8)}},
        num_examples=len(keep),
    )


def put_candidates(run: StudyRun, *, seed: int = 1, count: int = CANDIDATES) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = rng.random((count, 1, 16, 16, 16)).astype(np.float16)
    condition = rng.random((count, 4), dtype=np.float32)
    return {
        "images": run.objects.put_tensors({"image": images}),
        "conditions": run.objects.put_tensors({"condition": condition}),
        "seed": seed,
        "first": 0,
        "count": count,
    }


def screen(home: Path, tasks: Mapping[str, TaskRunner]) -> dict[str, Any]:
    with federation(home, tasks={s: {"screening": task} for s, task in tasks.items()}) as told:
        run = told.run()
        return screen_candidates(run, candidates=put_candidates(run), calibration=CALIBRATION)


# Screening


def test_kept_is_what_every_site_kept(home: Path) -> None:
    keep = {site: np.ones(CANDIDATES, bool) for site in SITES}
    keep["north"][3] = keep["harbour"][5] = keep["valley"][5] = False
    document = screen(home, {site: votes(keep[site]) for site in SITES})
    assert document["keep"] == [i for i in range(CANDIDATES) if i not in (3, 5)]
    assert document["unscreened"] == 0
    assert document["kept"] == dict.fromkeys(SITES, CANDIDATES - 1)


def test_candidates_are_unscreened_when_one_site_could_not_judge(home: Path) -> None:
    everything = np.ones(CANDIDATES, bool)
    tasks = {site: votes(everything, estimable=site != "harbour") for site in SITES}
    assert screen(home, tasks)["unscreened"] == CANDIDATES


def test_candidates_are_unscreened_when_one_site_did_not_vote(home: Path) -> None:
    everything = np.ones(CANDIDATES, bool)
    with federation(home, tasks={s: {"screening": votes(everything)} for s in SITES}) as told:
        told.spoil["valley"] = lambda *_: "the line is cut"
        run = told.run()
        document = screen_candidates(run, candidates=put_candidates(run), calibration=CALIBRATION)
    assert document["unscreened"] == CANDIDATES
    assert set(document["sites"]) == {"north", "harbour"}


FULL = {"candidates": CANDIDATES}
BAD_VOTES: dict[str, tuple[int, dict[str, Any]]] = {
    "too few": (1, {"estimable": True, "counts": FULL, "metrics": {}, "commitment": PROMISE}),
    "another point": (
        CANDIDATES,
        {"estimable": True, "counts": FULL, "commitment": digest_bytes(b"other")},
    ),
    "no point": (CANDIDATES, {"estimable": True, "counts": FULL, "commitment": ""}),
    "no counts": (CANDIDATES, {"estimable": True, "commitment": PROMISE}),
    "nothing": (CANDIDATES, {}),
    "another count": (
        CANDIDATES,
        {"estimable": True, "counts": {"candidates": 1}, "metrics": {}, "commitment": PROMISE},
    ),
}


@pytest.mark.parametrize("bad", BAD_VOTES)
def test_votes_that_cannot_count_leave_the_site_out_by_name(bad: str, home: Path) -> None:
    everything = np.ones(CANDIDATES, bool)
    count, body = BAD_VOTES[bad]
    with federation(home, tasks={s: {"screening": votes(everything)} for s in SITES}) as told:
        answer_with(told, "valley", {"votes": {"keep": np.ones(count, np.uint8)}}, body=body)
        run = told.run()
        document = screen_candidates(run, candidates=put_candidates(run), calibration=CALIBRATION)
        record = run.ledger.history(run.study.protocol.digest)[-1]
    assert list(record.details["absent"]) == ["valley"]
    assert document["unscreened"] == CANDIDATES


@pytest.mark.parametrize("promise", ["", None])
def test_site_that_froze_no_point_cannot_vote_as_calibrated(
    promise: str | None, home: Path
) -> None:
    calibration = {"sites": {**CALIBRATION["sites"], "valley": {"commitment": promise}}}
    body = {"estimable": True, "counts": FULL, "commitment": promise or ""}
    everything = np.ones(CANDIDATES, bool)
    with federation(home, tasks={s: {"screening": votes(everything)} for s in SITES}) as told:
        answer_with(told, "valley", {"votes": {"keep": np.ones(CANDIDATES, np.uint8)}}, body=body)
        run = told.run()
        document = screen_candidates(run, candidates=put_candidates(run), calibration=calibration)
    assert set(document["sites"]) == {"north", "harbour"}


# Rounds


def rounds_of(found: dict[str, Any], *, drawn: str, judged: str) -> Rounds:
    """Return what a finished study drew and kept."""
    rounds = []
    while f"{drawn} {len(rounds) + 1}" in found:
        one = found[f"{drawn} {len(rounds) + 1}"]
        keep = keep_of(found[f"{judged} {len(rounds) + 1}"])
        rounds.append(Round(one["first"], one, keep))
    return tuple(rounds)


def untrained(run: StudyRun, part: str) -> Digest:
    """Return the weights of a network that has learned nothing."""
    from vitrael.core.models.brain_ldm import build_codec, build_denoiser

    system = run.study.synthesis.generator
    if part == "codec":
        return run.objects.put_tensors(module_tensors(build_codec(system, seed=1)))
    net = build_denoiser(system, system.teacher, seed=1)
    with torch.no_grad():  # the last layer of a fresh one is zero, and draws nothing but noise
        for parameter in net.parameters():
            parameter.add_(0.01)
    return run.objects.put_tensors(module_tensors(net))


def distilled(run: StudyRun, **changes: Digest) -> Distilled[dict[str, Any], Digest]:
    parts = {"codec": untrained(run, "codec"), "teacher": untrained(run, "teacher"), **changes}
    return distill_study(run, **parts, condition=None, calibration=CALIBRATION)


def drop(first: int) -> TaskRunner:
    """Return a screening that drops the first of each round of more images than these."""

    def run(_task: Task, inputs: Mapping[str, Tensors], _context: object) -> TaskResult:
        shown = inputs.get("samples") or inputs["candidates"]["image"]
        keep = np.ones(len(shown), bool)
        if len(shown) > first:
            keep[:first] = False
        return voted(keep)

    return run


def screening_by(tasks: Mapping[str, TaskRunner]) -> dict[str, dict[Any, TaskRunner]]:
    return {site: {"screening": task, "rescreening": task} for site, task in tasks.items()}


KEEPS_ALL = {"north": drop(0), "harbour": drop(2), "valley": drop(5)}


@pytest.fixture
def drawn_in_rounds(home: Path) -> Iterator[tuple[Federation, StudyRun]]:
    """A study that goes through several rounds, in which one site keeps everything."""
    with federation(home, tasks=screening_by(KEEPS_ALL)) as told:
        run = told.run()
        distilled(run)
        yield told, run


def test_rounds_draw_what_is_missing_until_the_target_is_kept(
    drawn_in_rounds: tuple[Federation, StudyRun],
) -> None:
    told, run = drawn_in_rounds
    for drawn, judged, wanted in (("candidates", "screening", 16), ("samples", "rescreening", 8)):
        missing, first = wanted, 0
        for one, votes in zip(run.documents(drawn), run.documents(judged), strict=True):
            assert (one["first"], one["count"], votes["count"]) == (first, missing, missing)
            first += missing
            missing -= len(votes["keep"])
        assert missing == 0
        rounds = [number for stage, number in told.stages() if stage == judged]
        assert rounds == list(range(len(run.documents(drawn))))
        assert len(rounds) > 1
    assert [r.details["learned_from"] for r in run.history() if r.key.stage == "student"] == [16]


def test_candidate_depends_on_its_index_and_on_no_round(
    drawn_in_rounds: tuple[Federation, StudyRun],
) -> None:
    _, run = drawn_in_rounds
    rounds = run.documents("candidates")
    total = sum(one["count"] for one in rounds)
    again = sample_candidates(
        run,
        codec=untrained(run, "codec"),
        teacher=untrained(run, "teacher"),
        condition=None,
        share=Share(9, 0, total),
    )
    for key, name in (("conditions", "condition"), ("images", "image")):
        apart = [run.objects.get_tensors(Digest(one[key]))[name] for one in rounds]
        whole = run.objects.get_tensors(Digest(again[key]))[name]
        np.testing.assert_allclose(np.concatenate(apart), whole, atol=2e-3)
        assert len(np.unique(whole.reshape(total, -1), axis=0)) == total  # the control


def test_only_samples_that_every_site_kept_are_released(
    finished: Ended, documents: Documents
) -> None:
    found = documents(finished.home)
    rounds = rounds_of(found, drawn="samples", judged="rescreening")
    assert [list(np.flatnonzero(one.keep_B)) for one in rounds] == [[3, 4, 5, 6, 7], [0, 1, 2]]
    with federation(finished.home) as told:
        run = told.run()
        student = Digest(found["student 1"]["denoiser"])
        released = read_samples(run, student=student, samples=found["synthesis 1"])
        shown = [list(sample_files(run, one.drawn, student=student).values()) for one in rounds]
        audited = list(image_files(released).values())
    assert [one.index for one in released.provenance] == list(range(3, 11))
    kept = [
        data
        for files, one in zip(shown, rounds, strict=True)
        for data, keep in zip(files, one.keep_B, strict=True)
        if keep
    ]
    assert audited == kept  # to the byte, what was shown to the sites
    assert set(audited) & set(shown[0][:3]) == set()  # the control


@pytest.mark.parametrize("stage", ["screening", "rescreening"])
def test_study_whose_votes_are_spent_is_refused(stage: str, home: Path) -> None:
    tasks = screening_by(KEEPS_ALL)
    tasks["valley"][stage] = votes_none
    wanted, phase = (16, "candidates") if stage == "screening" else (8, "samples")
    with federation(home, tasks=tasks) as told:
        run = told.run()
        with pytest.raises(RefusedError, match=f"0 of the {wanted} {phase} that it needs"):
            distilled(run)
        shown = sum(one["count"] for one in run.documents(stage))
        stages = {record.key.stage for record in run.history()}
    assert shown == 4 * wanted
    assert ("student" in stages) == (stage == "rescreening")
    assert "synthesis" not in stages


def votes_none(_task: Task, inputs: Mapping[str, Tensors], _context: object) -> TaskResult:
    shown = inputs.get("samples") or inputs["candidates"]["image"]
    return voted(np.zeros(len(shown), bool))


def test_votes_over_the_cap_are_given_by_no_site(home: Path) -> None:
    everything = votes(np.ones(CANDIDATES, bool))
    with federation(home, tasks={s: {"screening": everything} for s in SITES}) as told:
        run = told.run()

        def ask(number: int) -> dict[str, Any]:
            candidates = put_candidates(run, seed=number)
            return screen_candidates(
                run, candidates=candidates, calibration=CALIBRATION, number=number
            )

        for number in range(4):
            assert len(ask(number)["sites"]) == len(SITES)
        with pytest.raises(QuorumError, match="16 after 64, of at most 64") as caught:
            ask(4)
    assert caught.value.absences is not None
    assert set(caught.value.absences["absent"]) == set(SITES)


def test_votes_that_an_earlier_roster_cost_are_counted_before_anything_is_asked(
    home: Path,
) -> None:
    with federation(home, tasks=screening_by(KEEPS_ALL)) as told:
        run = told.run()
        earlier = {"roster": digest_bytes(b"earlier"), "count": 49}
        key = StageKey(run.study.protocol.digest, "candidates", 0, digest_bytes(b"inputs"))
        record = run.ledger.begin(key, details=earlier)
        run.ledger.finish(record, run.objects.put_json({}))
        assert votes_before(run) == {"candidates": 49, "samples": 0}
        with pytest.raises(DataError, match="gave 49 on candidates before"):
            distilled(run)
        assert told.seen == []


@pytest.mark.parametrize("bad", ["codec", "teacher"])
def test_candidates_that_are_no_numbers_or_constant_are_refused(bad: str, home: Path) -> None:
    with federation(home, tasks=screening_by(KEEPS_ALL)) as told:
        run = told.run()
        tensors = run.objects.get_tensors(untrained(run, bad))
        spoiled = {
            name: array * (1e30 if bad == "teacher" else 0)
            if np.issubdtype(array.dtype, np.floating)
            else array
            for name, array in tensors.items()
        }
        with pytest.raises(DataError, match="constant or holds NaN"):
            distilled(run, **{bad: run.objects.put_tensors(spoiled)})
        assert told.seen == []


def test_subgroups_are_those_that_were_asked_for() -> None:
    data = parse_study(STUDY.encode(), label="tiny").synthesis.data
    asked = np.array([[0.0, 0, 0.5, 0.5], [1.0, 1, 0.5, 0.5], [0.5, 1, 0.5, 0.5]], np.float32)
    assert subgroups(asked, data).tolist() == [
        ["female", "under 40"],
        ["male", "80 or older"],
        ["male", "40 to 59"],
    ]


# A study that asks for a rate which no site has the patients for


@pytest.fixture(scope="module")
def unscreened(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    asked = STUDY.replace("false_match_rate = 0.4", "false_match_rate = 0.01")
    home = prepare_homes(tmp_path_factory.mktemp("unscreened"), asked)
    with federation(home) as told:
        code = run_study(home, told.exchange)
        return Ended(home, code, tuple(told.seen))


def test_filter_that_cannot_be_calibrated_leaves_everything_unscreened(
    unscreened: Ended, documents: Documents
) -> None:
    found = documents(unscreened.home)
    for body in found["calibration 1"]["sites"].values():
        assert not body["estimable"]
        assert "too few for a rate of 0.01" in body["reason"]
    assert found["screening 1"]["keep"] == list(range(CANDIDATES))
    assert found["screening 1"]["unscreened"] == CANDIDATES
    assert found["rescreening 1"]["unscreened"] == 8
    assert "screening 2" not in found  # who drops nothing is asked once


def test_unscreened_study_is_refused_and_says_so(unscreened: Ended) -> None:
    assert unscreened.code == 0  # the rehearsal went to its end
    assert "signing" not in {task.stage for task in unscreened.seen}
    outcome = json.loads((unscreened.home / "outcome.json").read_text())
    assert outcome["outcome"] == "refuse"
    assert outcome["unscreened"] == CANDIDATES + 8
    kinds = {sentence.split(":")[0]: kind for kind, sentence in outcome["findings"]}
    assert kinds["screening.done at least"] == "refused"
    assert kinds["filter.power.exact at least"] == "not estimable"
    assert json.loads((unscreened.home / "report" / "report.json").read_text())["unscreened"]
