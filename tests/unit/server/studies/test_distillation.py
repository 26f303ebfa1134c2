"""Between teacher and synthetic set: who voted, what the student saw, what was never screened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.federation import (
    STUDY,
    Interruption,
    federation,
)
from tests.unit.server.studies.conftest import Ended
from tests.unit.server.studies.test_screening import (
    CANDIDATES,
    put_candidates,
    rounds_of,
    untrained,
)
from vitrael.core.data.conditions import unscale_conditions
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.digest import Digest
from vitrael.core.errors import RefusedError
from vitrael.core.geometry import centered_affine
from vitrael.core.rng import stream
from vitrael.core.study import parse_study
from vitrael.core.training.checkpoints import FileCheckpoints
from vitrael.privacy.distill import Round
from vitrael.server.studies.distillation import (
    Rounds,
    draw_conditions,
    measured_conditions,
    train_student,
)
from vitrael.server.studies.run import StudyRun

Documents = Callable[[Path], dict[str, Any]]
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


# The student


def candidates_of(found: dict[str, Any]) -> Rounds:
    return rounds_of(found, drawn="candidates", judged="screening")


def first_kept(candidates: dict[str, Any], count: int) -> Rounds:
    return (Round(0, candidates, np.arange(CANDIDATES) < count),)


def student_of(
    run: StudyRun, found: dict[str, Any], image: np.ndarray, *, teacher: str = "teacher 2"
) -> str:
    first, *others = candidates_of(found)
    drawn = {**first.drawn, "images": run.objects.put_tensors({"image": image})}
    return train_student(
        run,
        codec=Digest(found["latents 1"]["codec"]),
        teacher=Digest(found[teacher]["denoiser"]),
        rounds=(Round(0, drawn, first.keep_B), *others),
    )


def test_student_learns_from_kept_candidates_alone(
    finished_home: Path, documents: Documents
) -> None:
    found = documents(finished_home)
    first, second = candidates_of(found)
    assert list(np.flatnonzero(first.keep_B)) == list(range(3, CANDIDATES))  # each dropped one
    assert list(second.keep_B) == [True] * 3  # as many as were missing
    with federation(finished_home) as told:
        run = told.run()
        image = run.objects.get_tensors(found["candidates 1"]["images"])["image"]
        dropped = image.copy()
        dropped[:3] = 1 - dropped[:3]
        assert student_of(run, found, dropped) == found["student 1"]["denoiser"]
        kept = image.copy()
        kept[3] = 1 - kept[3]
        assert student_of(run, found, kept) != found["student 1"]["denoiser"]
        assert told.seen == []
        records = run.ledger.history(run.study.protocol.digest)
    learned = [r.details["learned_from"] for r in records if r.key.stage == "student"]
    assert learned == [CANDIDATES] * 3


def test_student_with_weights_of_the_teachers_is_refused(
    finished_home: Path, documents: Documents
) -> None:
    """The student is trained again, to the same weights, and now these are called the teacher's."""
    found = documents(finished_home)
    with federation(finished_home) as told:
        run = told.run()
        image = run.objects.get_tensors(found["candidates 1"]["images"])["image"]
        with pytest.raises(RefusedError, match="the student's weights are the teacher's"):
            student_of(run, found, image, teacher="student 1")
        last = run.ledger.history(run.study.protocol.digest)[-1]
    assert (last.key.stage, last.status, last.output) == ("student", "failed", None)


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
            teacher=Digest(found["teacher 2"]["denoiser"]),
            rounds=first_kept(found["candidates 1"], 9),
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
        teacher = untrained(run, "teacher")

        def train(keep: int) -> str:
            kept = first_kept(candidates, keep)
            return train_student(run, codec=weights, teacher=teacher, rounds=kept)

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
        assert killed == undisturbed(run, weights, teacher, candidates)


def undisturbed(run: StudyRun, codec: Digest, teacher: Digest, candidates: dict[str, Any]) -> str:
    """Train the same student again, in one go."""
    for record in run.ledger.history(run.study.protocol.digest):
        if record.status == "finished":
            run.ledger.discard(record, "again")
    return train_student(run, codec=codec, teacher=teacher, rounds=first_kept(candidates, 9))


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
