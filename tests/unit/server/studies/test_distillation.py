"""Between teacher and synthetic set: who voted, what the student saw, what was never screened."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
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
from tests.unit.server.studies.conftest import Ended
from tests.unit.server.studies.test_federated import answer_with
from vitrael.client.site.tasks import TaskResult, TaskRunner
from vitrael.core.data.conditions import unscale_conditions
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import DataError
from vitrael.core.geometry import centered_affine
from vitrael.core.messages import Task
from vitrael.core.rng import stream
from vitrael.core.study import parse_study
from vitrael.core.training.checkpoints import FileCheckpoints
from vitrael.core.weights import Tensors
from vitrael.server.studies.distillation import (
    draw_conditions,
    measured_conditions,
    screen_candidates,
    train_student,
)
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.run import StudyRun

pytestmark = pytest.mark.xdist_group("tiny study")

Documents = Callable[[Path], dict[str, Any]]
CANDIDATES = 16
PROMISE = digest_bytes(b"frozen before")
CALIBRATION = {"sites": {site: {"commitment": PROMISE} for site in SITES}}


def votes(keep: np.ndarray, *, estimable: bool = True) -> TaskRunner:
    def run(_task: Task, _inputs: Mapping[str, Tensors], _context: object) -> TaskResult:
        counts = {"candidates": len(keep), "kept": int(keep.sum())}
        body = {"estimable": estimable, "reason": "", "metrics": {}, "counts": counts}
        body["commitment"] = PROMISE
        return TaskResult(body=body, tensors={"votes": {"keep": keep.astype(np.uint8)}})

    return run


def put_candidates(run: StudyRun, *, seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = rng.random((CANDIDATES, 1, 16, 16, 16)).astype(np.float16)
    condition = rng.random((CANDIDATES, 4), dtype=np.float32)
    return {
        "images": run.objects.put_tensors({"image": images}),
        "conditions": run.objects.put_tensors({"condition": condition}),
        "count": CANDIDATES,
    }


def screen(home: Path, tasks: Mapping[str, TaskRunner]) -> dict[str, Any]:
    with federation(home, tasks={s: {"screening": task} for s, task in tasks.items()}) as told:
        run = told.run()
        return screen_candidates(run, candidates=put_candidates(run), calibration=CALIBRATION)


# Conditions


def test_conditions_follow_the_pooled_moments() -> None:
    pooled = {"mean": [0.5, 0.3, 0.4, 0.6], "covariance": np.diag([0.01, 0.2, 0.01, 0.01]).tolist()}
    drawn = draw_conditions(pooled, 4_000, stream(1, "test"))
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert set(np.unique(drawn[:, 1])) == {0, 1}
    np.testing.assert_allclose(drawn.mean(0)[[0, 2, 3]], [0.5, 0.4, 0.6], atol=0.01)
    np.testing.assert_allclose(drawn.std(0)[[0, 2, 3]], 0.1, atol=0.01)


def test_conditions_are_uniform_when_no_site_told_its_moments() -> None:
    drawn = draw_conditions(None, 4_000, stream(1, "test"))
    np.testing.assert_allclose(drawn[:, 2].mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(drawn[:, 2].std(), 12**-0.5, atol=0.02)
    assert set(np.unique(drawn[:, 1])) == {0, 1}


def test_student_learns_volumes_as_they_are_measured() -> None:
    study = parse_study(STUDY.encode(), label="tiny")
    data = study.protocol.data
    grid = {"grid_vox": data.grid_vox, "spacing_mm": data.spacing_mm}
    drawn = [draw_scan(3, "nowhere", person, 0, **grid)[0] for person in range(6)]
    image = np.clip(np.stack([scan.image_CDHW for scan in drawn]), 0, 1)
    asked = np.full((6, 4), 0.5, np.float32)
    learned = measured_conditions(image, asked, data)
    np.testing.assert_allclose(learned[:, :2], asked[:, :2], atol=1e-6)
    volumes = np.stack(measure_volumes(image, drawn[0].affine), axis=1)
    told = unscale_conditions(learned, data)[:, 2:]
    np.testing.assert_allclose(told, volumes, rtol=1e-4)
    assert np.ptp(told[:, 0]) > 1  # the control: they differ from person to person


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


FULL = {"candidates": CANDIDATES, "kept": CANDIDATES}
BAD_VOTES: dict[str, tuple[int, dict[str, Any]]] = {
    "too few": (1, {"estimable": True, "counts": FULL, "metrics": {}, "commitment": PROMISE}),
    "another point": (
        CANDIDATES,
        {"estimable": True, "counts": FULL, "commitment": digest_bytes(b"other")},
    ),
    "no point": (CANDIDATES, {"estimable": True, "counts": FULL, "commitment": ""}),
    "no counts": (CANDIDATES, {"estimable": True, "commitment": PROMISE}),
    "nothing": (CANDIDATES, {}),
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


# The student


def student_of(run: StudyRun, finished: dict[str, Any], image: np.ndarray, keep: list[int]) -> str:
    candidates = dict(finished["candidates 1"])
    candidates["images"] = run.objects.put_tensors({"image": image})
    return train_student(
        run,
        codec=Digest(finished["latents 1"]["codec"]),
        candidates=candidates,
        screening={"keep": keep},
    )


def test_student_learns_from_kept_candidates_alone(
    finished_home: Path, documents: Documents
) -> None:
    found = documents(finished_home)
    keep = found["screening 1"]["keep"]
    assert keep == list(range(3, CANDIDATES))  # each site dropped one
    with federation(finished_home) as told:
        run = told.run()
        image = run.objects.get_tensors(found["candidates 1"]["images"])["image"]
        dropped = image.copy()
        dropped[:3] = 1 - dropped[:3]
        assert student_of(run, found, dropped, keep) == found["student 1"]["denoiser"]
        kept = image.copy()
        kept[3] = 1 - kept[3]
        assert student_of(run, found, kept, keep) != found["student 1"]["denoiser"]
        assert told.seen == []
        records = run.ledger.history(run.study.protocol.digest)
    learned = [r.details["learned_from"] for r in records if r.key.stage == "student"]
    assert learned == [CANDIDATES - 3] * 3


def test_student_starts_from_fresh_weights(
    finished_home: Path, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrael.core.models.brain_ldm import build_denoiser
    from vitrael.core.rng import stream_seed
    from vitrael.core.weights import module_tensors
    from vitrael.server.studies import distillation

    start: dict[str, np.ndarray] = {}

    def keep_start(model: Any, *_: object, **__: object) -> None:
        start.update(module_tensors(model))
        raise Interruption

    monkeypatch.setattr(distillation, "fit", keep_start)
    found = documents(finished_home)
    with federation(finished_home) as told, pytest.raises(Interruption):
        train_student(
            told.run(),
            codec=Digest(found["latents 1"]["codec"]),
            candidates=found["candidates 1"],
            screening={"keep": list(range(9))},
        )
    with federation(finished_home) as told:
        run = told.run()
        protocol = run.study.protocol
        teacher = run.objects.get_tensors(Digest(found["teacher 2"]["denoiser"]))
    fresh = build_denoiser(
        protocol.generator, protocol.generator.student, seed=stream_seed(protocol.seed, "student")
    )
    expected = module_tensors(fresh)
    assert all((start[name] == array).all() for name, array in expected.items())
    assert any((start[name] != array).any() for name, array in teacher.items())


def test_student_s_training_goes_on_where_it_was_killed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrael.core.models.brain_ldm import build_codec
    from vitrael.core.weights import module_tensors
    from vitrael.server.studies import distillation

    kept = partial(FileCheckpoints, every_s=0.0, clock=lambda: 0.0)  # after each step
    monkeypatch.setattr(distillation, "FileCheckpoints", kept)
    steps: list[int] = []
    tell = StudyRun.tell

    def interrupt(run: StudyRun, stage: str, number: int, event: str, **said: Any) -> None:
        tell(run, stage, number, event, **said)
        if event == "progress":
            steps.append(said["done"])
            if steps == [8, 16]:
                raise Interruption

    with federation(home) as told:
        run = told.run()
        codec = module_tensors(build_codec(run.study.protocol.generator, seed=1))
        weights, candidates = run.objects.put_tensors(codec), put_candidates(run)

        def train(keep: int) -> str:
            screening = {"keep": list(range(keep))}
            return train_student(run, codec=weights, candidates=candidates, screening=screening)

        with monkeypatch.context() as patch:
            patch.setattr(StudyRun, "tell", interrupt)
            with pytest.raises(Interruption):
                train(9)
            train(10)  # the control: another training goes on from nothing
            assert steps == [8, 16, 8, 16, 24, 32]
            assert list((home / "training").glob("*")) == []
            steps.clear()
            with pytest.raises(Interruption):
                train(9)
            killed = train(9)
        assert steps == [8, 16, 16, 24, 32]
        assert not (home / "training").exists()
        assert killed == undisturbed(run, weights, candidates)


def undisturbed(run: StudyRun, codec: Digest, candidates: dict[str, Any]) -> str:
    """Train the same student again, in one go."""
    for record in run.ledger.history(run.study.protocol.digest):
        if record.status == "finished":
            run.ledger.discard(record, "again")
    keep = {"keep": list(range(9))}
    return train_student(run, codec=codec, candidates=candidates, screening=keep)


def test_too_few_kept_candidates_end_the_study(finished_home: Path, documents: Documents) -> None:
    found = documents(finished_home)
    with (
        federation(finished_home) as told,
        pytest.raises(DataError, match="only 7 candidates were kept"),
    ):
        train_student(
            told.run(),
            codec=Digest(found["latents 1"]["codec"]),
            candidates=found["candidates 1"],
            screening={"keep": list(range(7))},
        )


# Candidates and samples


def test_candidates_and_samples_are_images_on_the_study_s_grid(
    finished: Ended, documents: Documents
) -> None:
    found = documents(finished.home)
    with federation(finished.home) as told:
        objects = told.run().objects
    candidates = objects.get_tensors(found["candidates 1"]["images"])["image"]
    samples = objects.get_tensors(found["synthesis 1"]["samples"])
    assert (candidates.shape, candidates.dtype) == ((16, 1, 16, 16, 16), np.float16)
    assert (samples["image"].shape, samples["image"].dtype) == ((8, 1, 16, 16, 16), np.float32)
    for image in (candidates, samples["image"]):
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1


def test_volumes_are_measured_on_the_samples_and_not_copied_from_what_was_asked(
    finished: Ended, documents: Documents
) -> None:
    found = documents(finished.home)["synthesis 1"]
    with federation(finished.home) as told:
        tensors = told.run().objects.get_tensors(found["samples"])
    affine = centered_affine((16, 16, 16), spacing=12.0)
    ventricle_ml, brain_ml = measure_volumes(tensors["image"], affine)
    assert np.array_equal(tensors["ventricle_ml"], ventricle_ml)
    assert np.array_equal(tensors["brain_ml"], brain_ml)
    assert not np.allclose(tensors["covariate"][:, 2], ventricle_ml)
    np.testing.assert_allclose(tensors["covariate"][:, 2], 110 * tensors["condition"][:, 2])


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


def test_unscreened_study_is_refused_and_says_so(unscreened: Ended) -> None:
    assert unscreened.code == 0  # the rehearsal went to its end
    assert "signing" not in {task.stage for task in unscreened.seen}
    outcome = json.loads((unscreened.home / "outcome.json").read_text())
    assert outcome["outcome"] == "refuse"
    assert outcome["unscreened"] == CANDIDATES
    kinds = {sentence.split(":")[0]: kind for kind, sentence in outcome["findings"]}
    assert kinds["screening.done at least"] == "refused"
    assert kinds["filter.power.exact at least"] == "not estimable"
    assert json.loads((unscreened.home / "report" / "report.json").read_text())["unscreened"]
