"""A trained model says which slices are foreign to it, and which are easier than its own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from tests.factories.trained import Trained, show_planes
from vitrael.core.data.phantoms.muscle import draw_leg, draw_session, render_sweep
from vitrael.core.metrics.ood import detect, judge_maps
from vitrael.core.models.brain_ldm import latent_denoiser, trained_sigmas
from vitrael.core.rng import stream, torch_stream
from vitrael.core.sampling.denoisers import NULL_CONDITION
from vitrael.core.scoring.reconstruction import Reconstructor, StartPlan, spread_starts
from vitrael.core.scoring.scorer import ReconstructionScorer, calibrate
from vitrael.core.scoring.shifts import (
    add_lesion,
    add_noise,
    remove_chunk,
    rotate_right_angle,
    smooth,
    squeeze_contrast,
)

pytestmark = pytest.mark.slow

SEED = 70_311
IMAGES = 200
VALIDATION = 100


def draw_muscles(count: int) -> torch.Tensor:
    """Return another anatomy under another modality: legs in ultrasound."""
    images = []
    for patient in range(count):
        rng = stream(SEED, "leg", patient)
        clip, _ = render_sweep(
            draw_leg(rng),
            draw_session(rng, first=True),
            position_T=np.array([0.5]),
            edge_px=32,
            rng=rng,
        )
        images.append(clip.frames_THW[0] / np.float32(255))
    return torch.from_numpy(np.stack(images)[:, None])


@pytest.fixture(scope="module")
def scorer(plane_model: Trained) -> ReconstructionScorer:
    part = plane_model.config.teacher
    reconstructor = Reconstructor(
        codec=plane_model.codec,
        denoiser=latent_denoiser(plane_model.denoiser, part),
        plan=StartPlan(
            levels=spread_starts(trained_sigmas(part), 7),
            steps=10,
            seed=SEED,
            condition_K=(NULL_CONDITION,) * 4,
        ),
        identity={"model": "cpu-2d"},
    )
    validation = torch.from_numpy(show_planes(SEED, VALIDATION).image)
    return ReconstructionScorer(reconstructor, calibrate(reconstructor, validation.split(50)))


@pytest.fixture(scope="module")
def own() -> torch.Tensor:
    return torch.from_numpy(show_planes(SEED + 1, IMAGES).image)


def noise(images: torch.Tensor) -> torch.Tensor:
    return add_noise(images, torch_stream(SEED, "noise"))


def chunk(images: torch.Tensor) -> torch.Tensor:
    return remove_chunk(images, torch_stream(SEED, "chunk"))


SHIFTS = {
    "other anatomy": (lambda _: draw_muscles(IMAGES), 0.99),
    "other modality": (
        lambda _: torch.from_numpy(show_planes(SEED + 1, IMAGES, contrast="T2w").image),
        0.99,
    ),
    "rotated": (rotate_right_angle, 0.95),
    "chunk missing": (chunk, 0.95),
    "noise": (noise, 0.95),
    "contrast squeezed": (squeeze_contrast, 0.75),
    "smoothed": (partial(smooth), 0.75),
}
"""What is done to familiar images, and the least area under the curve of the two-sided score."""


def test_foreign_slices_score_higher_and_familiar_ones_do_not(
    scorer: ReconstructionScorer, own: torch.Tensor
) -> None:
    familiar = scorer.score_parts(own).score_B
    second = torch.from_numpy(show_planes(SEED + 2, IMAGES).image)
    sets = {name: make(own) for name, (make, _) in SHIFTS.items()} | {"second familiar": second}
    print(f"\n{'set':18s} two-sided (interval)      one-sided, as published; n {IMAGES}")
    found = {}
    for name, images in sets.items():
        scores = scorer.score_parts(images).score_B
        two = detect(scores["two_sided"].numpy(), familiar["two_sided"].numpy())
        one = detect(scores["one_sided"].numpy(), familiar["one_sided"].numpy())
        low, high = two.interval
        print(f"{name:18s} {two.auroc:.3f} ({low:.3f} to {high:.3f})  {one.auroc:.3f}")
        found[name] = (two.auroc, one.auroc)
    short = {n: found[n][0] for n, (_, least) in SHIFTS.items() if found[n][0] < least}
    assert short == {}
    assert abs(found["second familiar"][0] - 0.5) < 0.1
    assert abs(found["second familiar"][1] - 0.5) < 0.1
    assert found["smoothed"][1] < 0.5  # the control: the published score takes it for familiar


def test_error_map_finds_lesions_better_than_the_codec_alone(
    scorer: ReconstructionScorer, own: torch.Tensor, plane_model: Trained
) -> None:
    images, mask = add_lesion(own, torch_stream(SEED, "lesion"))
    maps = scorer.maps(images)
    with torch.no_grad():
        back = plane_model.codec.decode(plane_model.codec.encode(images))
    codec = (images - back).abs().mean(1)
    rng = stream(SEED, "maps")
    judged = {
        name: judge_maps(value.numpy(), mask.numpy(), rng=rng)
        for name, value in {"map": maps.standardized, "raw": maps.raw, "codec": codec}.items()
    }
    for name, quality in judged.items():
        low, high = quality.dice_interval
        print(f"{name}: best Dice {quality.dice.value:.3f} ({low:.3f} to {high:.3f})")
    assert judged["map"].dice.value > judged["codec"].dice.value
    assert judged["map"].dice.value > judged["map"].prevalence
