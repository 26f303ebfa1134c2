"""Generate, screen, retrain: what happens between the teacher and the synthetic set.

The teacher never leaves the federation. Its candidates are judged at every site; the student
learns from those that all sites kept, and only those of the student's samples that all sites kept
in their turn can be released.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike

from vitrael.core.configs import DiffusionConfig
from vitrael.core.data.conditions import scale_covariates, unscale_conditions
from vitrael.core.data.measure import measure_volumes
from vitrael.core.digest import Digest, digest_json
from vitrael.core.geometry import centered_affine
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import (
    LatentGenerator,
    build_codec,
    build_denoiser,
    draw_latents,
)
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.protocols import COVARIATES, Data
from vitrael.core.records import SampleRequest
from vitrael.core.rng import stream, stream_seed, torch_stream
from vitrael.core.training.checkpoints import FileCheckpoints
from vitrael.core.training.compute import Compute, prepare_compute
from vitrael.core.training.loop import fit
from vitrael.core.version import lock_digest
from vitrael.core.weights import load_weights, module_tensors
from vitrael.privacy.distill import (
    Distilled,
    Draw,
    Phase,
    Plan,
    Round,
    Steps,
    demand_images,
    distill,
    refuse_same_weights,
    weight_digests,
)
from vitrael.server.studies.run import StageResult, StudyRun
from vitrael.server.studies.screening import (
    JUDGED_IN,
    keep_of,
    screen_candidates,
    screen_samples,
    votes_before,
)

StudentStage = Literal["student", "random student"]
_SEX = COVARIATES.index("sex")
_REDRAWS = 20
_TRAINING: Final[Mapping[StudentStage, str]] = {
    "student": "training",
    "random student": "training-random",
}
"""Folders of the checkpoints."""
_CONDITIONS: Final[Mapping[Phase, tuple[str, ...]]] = {
    "candidates": ("candidate conditions",),
    "samples": ("release conditions",),
}
_SEEDS: Final[Mapping[Phase, tuple[str, ...]]] = {
    "candidates": ("candidates",),
    "samples": ("release",),
}

Rounds = tuple[Round[dict[str, Any]], ...]
"""What was drawn, as documents of its stages, and what was kept of it."""


def draw_conditions(
    pooled: Mapping[str, Any] | None, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Return ``[count, K]`` float32 conditions in [0, 1] for samples that nobody is behind.

    They follow a normal with the pooled mean and covariance; a row that leaves the range is drawn
    again, a few times, and then clipped. Sex is 0 or 1. When no site could tell its moments they
    are uniform.
    """
    if pooled is None:
        condition_BK = rng.uniform(0, 1, (count, len(COVARIATES)))
    else:
        mean, covariance = np.array(pooled["mean"]), np.array(pooled["covariance"])
        condition_BK = rng.multivariate_normal(mean, covariance, size=count)
        for _ in range(_REDRAWS):
            ranged = np.delete(condition_BK, _SEX, axis=1)
            beyond = ((ranged < 0) | (ranged > 1)).any(axis=1)
            condition_BK[beyond] = rng.multivariate_normal(mean, covariance, size=beyond.sum())
    condition_BK[:, _SEX] = np.round(condition_BK[:, _SEX])
    return np.clip(condition_BK, 0, 1).astype(np.float32)


def measured_conditions(
    image_BCDHW: np.ndarray, condition_BK: np.ndarray, data: Data
) -> np.ndarray:
    """Return conditions ``[B, K]`` in which both volumes are what the images show.

    A teacher draws only nearly what it is asked for. A student that learned from the request would
    learn its error too; learning from the measurement, it learns what a volume looks like.
    """
    affine = centered_affine(data.grid_vox, spacing=data.spacing_mm)
    ventricle_ml, brain_ml = measure_volumes(image_BCDHW, affine)
    covariate_BK = unscale_conditions(condition_BK, data)
    covariate_BK[:, COVARIATES.index("ventricle_ml")] = ventricle_ml
    covariate_BK[:, COVARIATES.index("brain_ml")] = brain_ml
    return scale_covariates(covariate_BK, data)


@dataclass(frozen=True, slots=True)
class Share:
    """One round of all that are drawn."""

    number: int
    first: int
    count: int


def distill_study(
    run: StudyRun,
    *,
    codec: Digest,
    teacher: Digest,
    condition: Mapping[str, Any] | None,
    calibration: Mapping[str, Any],
) -> Distilled[dict[str, Any], Digest]:
    """Draw, screen, retrain and screen again; each round of each step is a stage of its own.

    Raises RefusedError when not as many are kept as the protocol wants: no smaller student is
    trained and no smaller set is made.
    """
    wanted = run.study.synthesis.distillation
    plan = Plan(wanted.target, wanted.released, given_before=votes_before(run))
    student = ""

    def draw(number: int, first: int, count: int) -> dict[str, Any]:
        share = Share(number, first, count)
        return sample_candidates(
            run, codec=codec, teacher=teacher, condition=condition, share=share
        )

    def screen(number: int, drawn: dict[str, Any]) -> np.ndarray:
        return keep_of(
            screen_candidates(run, candidates=drawn, calibration=calibration, number=number)
        )

    def train(rounds: Rounds) -> Digest:
        return train_student(run, codec=codec, teacher=teacher, rounds=rounds)

    def sample(weights: Digest) -> Draw[dict[str, Any]]:
        nonlocal student
        student = weights
        return lambda number, first, count: draw_samples(
            run,
            codec=codec,
            student=weights,
            condition=condition,
            share=Share(number, first, count),
        )

    def rescreen(number: int, drawn: dict[str, Any]) -> np.ndarray:
        return keep_of(
            screen_samples(
                run,
                samples=drawn,
                student=Digest(student),
                calibration=calibration,
                number=number,
            )
        )

    return distill(Steps(draw, screen, train, sample, rescreen), plan)


def sample_candidates(
    run: StudyRun,
    *,
    codec: Digest,
    teacher: Digest,
    condition: Mapping[str, Any] | None,
    share: Share,
) -> dict[str, Any]:
    """Stage ``candidates``: a round of the teacher's samples, float16, with what was asked for."""
    part = run.study.synthesis.generator.teacher
    inputs = {"codec": codec, "teacher": teacher, "condition": condition, "share": asdict(share)}

    def work() -> StageResult:
        generator = open_generator(run, part, codec=codec, weights=teacher)
        return _draw(run, generator, "candidates", condition, share=share, dtype=np.float16)

    return run.stage("candidates", inputs, work, round_index=share.number)


def draw_samples(
    run: StudyRun,
    *,
    codec: Digest,
    student: Digest,
    condition: Mapping[str, Any] | None,
    share: Share,
) -> dict[str, Any]:
    """Stage ``samples``: a round of the student's samples, as they are drawn."""
    part = run.study.synthesis.generator.student
    inputs = {"codec": codec, "student": student, "condition": condition, "share": asdict(share)}

    def work() -> StageResult:
        generator = open_generator(run, part, codec=codec, weights=student)
        return _draw(run, generator, "samples", condition, share=share, dtype=np.float32)

    return run.stage("samples", inputs, work, round_index=share.number)


def _draw(
    run: StudyRun,
    generator: LatentGenerator,
    phase: Phase,
    condition: Mapping[str, Any] | None,
    *,
    share: Share,
    dtype: DTypeLike,
) -> StageResult:
    """Return a round of samples: row i of all depends on i alone, whatever the rounds.

    The conditions of all that may ever be drawn are drawn at once, and the round takes its own.
    """
    protocol = run.study.synthesis
    most = protocol.distillation.most_votes[JUDGED_IN[phase]]
    rng = stream(protocol.seed, *_CONDITIONS[phase])
    condition_BK = draw_conditions(condition, most, rng)[share.first : share.first + share.count]
    seed = stream_seed(protocol.seed, *_SEEDS[phase])
    request = SampleRequest(condition_BK, seed=seed, first=share.first)
    image_BCDHW = generator.sample(request).image_BCDHW.astype(dtype)
    demand_images(image_BCDHW, share.count)
    document = {
        "images": run.objects.put_tensors({"image": image_BCDHW}),
        "conditions": run.objects.put_tensors({"condition": condition_BK}),
        "seed": seed,
        "first": share.first,
        "count": share.count,
    }
    return StageResult(document, {"count": share.count})


def train_student(
    run: StudyRun,
    *,
    codec: Digest,
    teacher: Digest,
    rounds: Rounds,
    stage: StudentStage = "student",
) -> Digest:
    """Stage ``student``: a denoiser with fresh weights, trained on the kept candidates alone.

    Another ``stage`` has rounds that keep others, and the same fresh weights and random numbers.
    Each is learned with age and sex as they were asked, and the volumes that it shows. A training
    that was stopped or killed goes on from its last checkpoint, a minute old at most, or a fiftieth
    of its time. Raises RefusedError for a student with weights of the teacher's.
    """
    protocol = run.study.synthesis
    learned = [[dict(one.drawn), np.flatnonzero(one.keep_B).tolist()] for one in rounds]
    inputs = {"codec": codec, "teacher": teacher, "learned": learned}

    def work() -> StageResult:
        compute = _compute(run)
        images = _gather(run, rounds, "images", "image").astype(np.float32)
        asked = _gather(run, rounds, "conditions", "condition")
        condition = measured_conditions(images, asked, protocol.data)
        net = _codec(run, codec, compute)
        with torch.no_grad():
            parts = torch.from_numpy(images).split(32)
            latents = torch.cat([net.encode(part.to(compute.device)) for part in parts])
        system = protocol.generator
        part = system.student
        student = build_denoiser(system, part, seed=stream_seed(protocol.seed, "student")).to(
            compute.device
        )
        curve = fit(
            student,
            SYSTEMS[system.kind].objective(system, "student"),
            draw_latents(latents, torch.from_numpy(condition).to(compute.device)),
            part.training,
            length_images=part.training.length_images,
            rng=torch_stream(protocol.seed, "student training"),
            progress=lambda done, total: run.tell(stage, 0, "progress", done=done, total=total),
            checkpoints=_open_checkpoints(run, inputs, compute, stage=stage),
            bf16=compute.bf16,
        )
        weights = module_tensors(student)
        known = run.objects.get_tensors(teacher)
        refuse_same_weights(weight_digests(weights), weight_digests(known))
        document = {"denoiser": run.objects.put_tensors(weights)}
        curves = {"coordinator": {"images": curve.images, "loss": curve.losses["total"]}}
        return StageResult(document, {"curves": curves, "learned_from": len(images)})

    weights = Digest(run.stage(stage, inputs, work)["denoiser"])
    shutil.rmtree(run.home / _TRAINING[stage], ignore_errors=True)
    return weights


def synthesize(run: StudyRun, *, student: Digest, rounds: Rounds) -> dict[str, Any]:
    """Stage ``synthesis``: the samples that all sites kept, and what was measured on them."""
    data = run.study.synthesis.data

    def work() -> StageResult:
        image_BCDHW = _gather(run, rounds, "images", "image")
        condition_BK = _gather(run, rounds, "conditions", "condition")
        affine = centered_affine(data.grid_vox, spacing=data.spacing_mm)
        ventricle_ml, brain_ml = measure_volumes(image_BCDHW, affine)
        index = np.concatenate([one.first + np.flatnonzero(one.keep_B) for one in rounds])
        tensors = {
            "image": image_BCDHW,
            "condition": condition_BK,
            "covariate": unscale_conditions(condition_BK, data),
            "ventricle_ml": ventricle_ml,
            "brain_ml": brain_ml,
            "index": index.astype(np.int64),
        }
        count, seed = len(index), rounds[0].drawn["seed"]
        document = {"samples": run.objects.put_tensors(tensors), "count": count, "seed": seed}
        return StageResult(document, {"count": count})

    kept = [[dict(one.drawn), np.flatnonzero(one.keep_B).tolist()] for one in rounds]
    return run.stage("synthesis", {"student": student, "kept": kept}, work)


def _gather(run: StudyRun, rounds: Rounds, key: str, name: str) -> np.ndarray:
    """Return the kept rows of an array that each round has under a key of its document."""
    return np.concatenate(
        [run.objects.get_tensors(Digest(one.drawn[key]))[name][one.keep_B] for one in rounds]
    )


def _open_checkpoints(
    run: StudyRun, inputs: Mapping[str, Any], compute: Compute, *, stage: StudentStage
) -> FileCheckpoints:
    """Return what an attempt has left of this very training, with this machine and software."""
    threads = run.study.performance.coordinator_threads
    machine = [lock_digest(), compute.device, compute.bf16, threads]
    key = digest_json([run.study.protocol.digest, dict(inputs), *machine])
    return FileCheckpoints(run.home / _TRAINING[stage], key=key)


def _compute(run: StudyRun) -> Compute:
    performance = run.study.performance
    return prepare_compute(
        device=performance.device,
        threads=performance.coordinator_threads,
        bf16=performance.bf16,
        vram_frac=performance.vram_frac,
    )


def _codec(run: StudyRun, weights: Digest, compute: Compute) -> KLCodec:
    codec = build_codec(run.study.synthesis.generator, seed=run.study.protocol.seed)
    load_weights(codec, run.objects.get_tensors(weights))
    return codec.to(compute.device)


def open_generator(
    run: StudyRun, part: DiffusionConfig, *, codec: Digest, weights: Digest
) -> LatentGenerator:
    """Return a denoiser of the study behind its codec, ready to draw."""
    protocol, compute = run.study.synthesis, _compute(run)
    denoiser = build_denoiser(protocol.generator, part, seed=protocol.seed)
    load_weights(denoiser, run.objects.get_tensors(weights))
    return LatentGenerator(
        _codec(run, codec, compute),
        denoiser.to(compute.device),
        part,
        grid_vox=protocol.data.grid_vox,
        affine=centered_affine(protocol.data.grid_vox, spacing=protocol.data.spacing_mm),
        bf16=compute.bf16,
    )
