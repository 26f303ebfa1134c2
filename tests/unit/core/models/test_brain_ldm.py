"""Parts of the brain LDM are built from named streams and drawn from with their conditions."""

from __future__ import annotations

import torch

from tests.factories.systems import brain_ldm
from vitrael.core.models.brain_ldm import (
    build_codec,
    build_denoiser,
    draw_latents,
    trained_sigmas,
)
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
