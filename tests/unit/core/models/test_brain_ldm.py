"""Parts of the brain LDM are built from named streams and drawn from with their conditions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.factories.systems import GRID, brain_ldm
from vitrael.core.configs import BrainLDMConfig, DiffusionConfig, SamplerName
from vitrael.core.errors import DataError, UsageError
from vitrael.core.geometry import centered_affine
from vitrael.core.models.brain_ldm import (
    LatentGenerator,
    build_codec,
    build_denoiser,
    draw_latents,
    latent_levels,
    trained_sigmas,
)
from vitrael.core.records import SampleRequest
from vitrael.core.sampling.samplers import SAMPLERS
from vitrael.core.sampling.schedules import cosine_sigmas, linear_sigmas, scaled_linear_sigmas
from vitrael.core.weights import load_weights, module_tensors


def test_latents_are_drawn_with_their_own_conditions() -> None:
    latents = torch.arange(7.0).reshape(7, 1, 1, 1, 1).expand(7, 2, 1, 1, 1)
    condition = torch.arange(7.0)[:, None].expand(7, 4)
    drawn, told = draw_latents(latents, condition)(300, torch.Generator().manual_seed(1))
    assert drawn.shape == (300, 2, 1, 1, 1)
    assert drawn[:, 0, 0, 0, 0].equal(told[:, 0])
    assert set(told[:, 0].tolist()) == set(range(7))
    again, _ = draw_latents(latents, condition)(300, torch.Generator().manual_seed(1))
    assert again.equal(drawn)


def test_codec_and_denoisers_have_streams_of_their_own() -> None:
    config = brain_ldm()
    teacher = build_denoiser(config, config.teacher, seed=1)
    codec_after = build_codec(config, seed=1)
    codec_before = build_codec(config, seed=1)
    for name, array in module_tensors(codec_before).items():
        assert (array == module_tensors(codec_after)[name]).all()
    again = build_denoiser(config, config.teacher, seed=1)
    load_weights(again, module_tensors(teacher))


def test_noise_levels_are_those_of_the_config() -> None:
    config = brain_ldm()
    assert len(trained_sigmas(config.teacher)) == config.teacher.timesteps
    shorter = config.teacher.model_copy(update={"beta_end": 0.01})
    assert trained_sigmas(shorter)[-1] < trained_sigmas(config.teacher)[-1]


@pytest.mark.parametrize(
    ("schedule", "made"),
    [
        ("scaled_linear", scaled_linear_sigmas(100, beta_start=0.0015, beta_end=0.0205)),
        ("linear", linear_sigmas(100, beta_start=0.0015, beta_end=0.0205)),
        ("cosine", cosine_sigmas(100)),
    ],
)
def test_schedule_is_that_of_the_config(schedule: str, made: torch.Tensor) -> None:
    given = {**brain_ldm().teacher.model_dump(), "schedule": schedule}
    part = DiffusionConfig.model_validate(given)
    assert trained_sigmas(part).equal(made)
    default = trained_sigmas(brain_ldm().teacher)
    assert trained_sigmas(part).equal(default) == (schedule == "scaled_linear")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_schedule_is_sampled(schedule: str, sampler: SamplerName) -> None:
    part = brain_ldm().teacher.model_copy(update={"schedule": schedule, "sampler": sampler})
    image = generator(part).sample(request()).image_BCDHW
    assert np.isfinite(image).all()
    assert image.std() > 0


def generator(
    part: DiffusionConfig, *, guidance: float = 1.0, dimensions: int = 3
) -> LatentGenerator:
    """Return a generator whose network has left its start, at which it predicts nothing."""
    document = {**brain_ldm().model_dump(), "dimensions": dimensions}
    config = BrainLDMConfig.model_validate(document)
    denoiser = build_denoiser(config, part, seed=1)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    return LatentGenerator(
        build_codec(config, seed=1),
        denoiser,
        part,
        grid_vox=GRID[:dimensions],
        affine=centered_affine(GRID, spacing=12.0),
        guidance=guidance,
    )


def request() -> SampleRequest:
    return SampleRequest(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), seed=5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_shards_that_make_the_whole(sampler: SamplerName) -> None:
    part = brain_ldm().teacher.model_copy(update={"sampler": sampler})
    whole = generator(part).sample(request()).image_BCDHW
    rows = request().condition_BK
    shards = [
        generator(part).sample(dataclasses.replace(request(), condition_BK=rows[a:b], first=a))
        for a, b in ((0, 1), (1, 3))
    ]
    apart = np.concatenate([shard.image_BCDHW for shard in shards])
    np.testing.assert_allclose(apart, whole, atol=1e-5)
    assert not np.allclose(whole[0], whole[1], atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_are_evaluations_of_the_network(sampler: SamplerName) -> None:
    asked = 12
    part = brain_ldm().teacher.model_copy(update={"sampler": sampler, "sampling_steps": asked})
    steps = len(latent_levels(part)) - 1
    assert asked - 1 <= SAMPLERS[sampler].evaluations(steps) <= asked


@pytest.mark.parametrize("prediction", ["noise", "velocity", "image", "edm", "flow"])
def test_every_prediction_is_sampled(prediction: str) -> None:
    part = brain_ldm().teacher.model_copy(update={"prediction": prediction})
    image = generator(part).sample(request()).image_BCDHW
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1


def test_planes_are_sampled() -> None:
    image = generator(brain_ldm().teacher, dimensions=2).sample(request()).image_BCDHW
    assert image.shape == (3, 1, *GRID[:2])


def test_model_that_always_saw_conditions_cannot_be_guided() -> None:
    with pytest.raises(UsageError, match="cannot be guided"):
        generator(brain_ldm().teacher, guidance=2.0)
    able = brain_ldm().teacher.model_copy(update={"condition_dropout": 0.1})
    plain, guided, nothing = (
        generator(able, guidance=weight).sample(request()).image_BCDHW for weight in (1.0, 3.0, 0.0)
    )
    assert not np.allclose(plain, guided, atol=1e-4)
    assert not np.allclose(plain, nothing, atol=1e-4)
    other = dataclasses.replace(request(), condition_BK=1 - request().condition_BK)
    unasked = generator(able, guidance=0.0).sample(other).image_BCDHW
    np.testing.assert_array_equal(unasked, nothing)  # what is asked for does not matter


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (np.full((3, 4), np.nan), "not finite"),
        (np.array([[0.5, 0.5, np.inf, 0.5]]), "not finite"),
        (np.zeros((3, 5)), "4 numbers"),
        (np.zeros((3, 3)), "4 numbers"),
        (np.zeros(4), "4 numbers"),
        (np.zeros((0, 4)), "at least one row"),
    ],
)
def test_request_that_cannot_be_answered_is_refused(condition: np.ndarray, words: str) -> None:
    asked = SampleRequest(condition.astype(np.float32), seed=5)
    with pytest.raises(DataError, match=words):
        generator(brain_ldm().teacher).sample(asked)
