"""Generate, screen, retrain: what happens between the teacher and the synthetic set.

The teacher never leaves the federation. Its candidates are judged at every site; the student
learns from those that all sites kept, and only the student's samples can be released.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from vitrael.core.configs import DiffusionConfig
from vitrael.core.data.conditions import scale_covariates, unscale_conditions
from vitrael.core.data.measure import measure_volumes
from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import DataError, WeightsError
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
from vitrael.privacy.audit.tallies import check_vote
from vitrael.server.studies.correspondence import Answer, ask_sites, usable_tally
from vitrael.server.studies.run import StageResult, StudyRun

_SEX = COVARIATES.index("sex")
_FEWEST_KEPT = 8
_REDRAWS = 20
_TRAINING: Final = "training"
"""Folder of the checkpoints."""


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


def sample_candidates(
    run: StudyRun, *, codec: Digest, teacher: Digest, condition: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Stage ``candidates``: the teacher's samples, float16, with what was asked for."""
    protocol = run.study.synthesis

    def work() -> StageResult:
        count = protocol.distillation.candidates
        rng = stream(protocol.seed, "candidate conditions")
        condition_BK = draw_conditions(condition, count, rng)
        generator = _generator(run, protocol.generator.teacher, codec=codec, weights=teacher)
        seed = stream_seed(protocol.seed, "candidates")
        samples = generator.sample(SampleRequest(condition_BK, seed=seed))
        images = {"image": samples.image_BCDHW.astype(np.float16)}
        document = {
            "images": run.objects.put_tensors(images),
            "conditions": run.objects.put_tensors({"condition": condition_BK}),
            "count": count,
        }
        return StageResult(document, {"count": count})

    inputs = {"codec": codec, "teacher": teacher, "condition": condition}
    return run.stage("candidates", inputs, work)


def screen_candidates(
    run: StudyRun, *, candidates: Mapping[str, Any], calibration: Mapping[str, Any]
) -> dict[str, Any]:
    """Stage ``screening``: every site votes; kept is what every site that voted kept.

    A candidate that not every site could judge is ``unscreened``: it stays in the rehearsal, and
    the gate on ``screening.done`` refuses.
    """

    def work() -> StageResult:
        images = run.objects.get_tensors(Digest(candidates["images"]))
        frozen = calibration["sites"]

        def check(answer: Answer) -> None:
            usable_tally(answer)
            _votes(answer, count)
            site = answer.reply.site
            check_vote(site, answer.reply.body, frozen.get(site, {}))

        count = int(candidates["count"])
        answers = ask_sites(run, "screening", {"candidates": images}, check=check)
        keep = np.ones(count, dtype=bool)
        kept: dict[str, int] = {}
        for site, answer in answers.by_site.items():
            votes = _votes(answer, count)
            keep &= votes
            kept[site] = int(votes.sum())
        sites = answers.bodies
        judged = len(sites) == len(run.members) and all(s.get("estimable") for s in sites.values())
        document = {
            "keep": [int(i) for i in np.flatnonzero(keep)],
            "kept": kept,
            "sites": sites,
            "envelopes": answers.envelopes,
            "unscreened": 0 if judged else count,
            "count": count,
        }
        details = {**answers.details, "kept": int(keep.sum()), "of": count}
        return StageResult(document, details, tuple(sites))

    inputs = {"candidates": candidates, "calibration": calibration}
    return run.stage("screening", inputs, work)


def _votes(answer: Answer, count: int) -> np.ndarray:
    votes = answer.get_tensors("votes").get("keep")
    if votes is None or votes.shape != (count,):
        raise WeightsError(
            f"the votes of {answer.reply.site} are refused",
            why=f"there must be one for each of the {count} candidates",
        )
    return votes.astype(bool)


def train_student(
    run: StudyRun, *, codec: Digest, candidates: Mapping[str, Any], screening: Mapping[str, Any]
) -> Digest:
    """Stage ``student``: a denoiser with fresh weights, trained on the kept candidates alone.

    Each is learned with age and sex as they were asked, and the volumes that it shows. A training
    that was stopped or killed goes on from its last checkpoint, a minute old at most, or a fiftieth
    of its time.
    """
    protocol = run.study.synthesis
    inputs = {"codec": codec, "candidates": candidates, "keep": screening["keep"]}

    def work() -> StageResult:
        keep = np.array(screening["keep"], dtype=int)
        if len(keep) < _FEWEST_KEPT:
            raise DataError(
                f"only {len(keep)} candidates were kept",
                why="the sites dropped the others as too close to a patient",
                fix="generate more candidates or train the teacher for less long",
            )
        compute = _compute(run)
        images = run.objects.get_tensors(Digest(candidates["images"]))["image"][keep]
        images = images.astype(np.float32)
        asked = run.objects.get_tensors(Digest(candidates["conditions"]))["condition"][keep]
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
            progress=lambda done, total: run.tell("student", 0, "progress", done=done, total=total),
            checkpoints=_open_checkpoints(run, inputs, compute),
            bf16=compute.bf16,
        )
        document = {"denoiser": run.objects.put_tensors(module_tensors(student))}
        curves = {"coordinator": {"images": curve.images, "loss": curve.losses["total"]}}
        return StageResult(document, {"curves": curves, "learned_from": len(keep)})

    weights = Digest(run.stage("student", inputs, work)["denoiser"])
    shutil.rmtree(run.home / _TRAINING, ignore_errors=True)
    return weights


def synthesize(
    run: StudyRun, *, codec: Digest, student: Digest, condition: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Stage ``synthesis``: the student's samples, what was asked, and what was measured on them."""
    protocol = run.study.synthesis

    def work() -> StageResult:
        count = protocol.distillation.released
        rng = stream(protocol.seed, "release conditions")
        condition_BK = draw_conditions(condition, count, rng)
        generator = _generator(run, protocol.generator.student, codec=codec, weights=student)
        seed = stream_seed(protocol.seed, "release")
        samples = generator.sample(SampleRequest(condition_BK, seed=seed))
        ventricle_ml, brain_ml = measure_volumes(samples.image_BCDHW, samples.affine)
        tensors = {
            "image": samples.image_BCDHW,
            "condition": condition_BK,
            "covariate": unscale_conditions(condition_BK, protocol.data),
            "ventricle_ml": ventricle_ml,
            "brain_ml": brain_ml,
        }
        document = {"samples": run.objects.put_tensors(tensors), "count": count, "seed": seed}
        return StageResult(document, {"count": count})

    inputs = {"codec": codec, "student": student, "condition": condition}
    return run.stage("synthesis", inputs, work)


def _open_checkpoints(
    run: StudyRun, inputs: Mapping[str, Any], compute: Compute
) -> FileCheckpoints:
    """Return what an attempt has left of this very training, with this machine and software."""
    threads = run.study.performance.coordinator_threads
    machine = [lock_digest(), compute.device, compute.bf16, threads]
    key = digest_json([run.study.protocol.digest, dict(inputs), *machine])
    return FileCheckpoints(run.home / _TRAINING, key=key)


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


def _generator(
    run: StudyRun, part: DiffusionConfig, *, codec: Digest, weights: Digest
) -> LatentGenerator:
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
