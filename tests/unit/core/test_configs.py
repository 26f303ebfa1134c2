"""What the tables of a system cannot mean is refused when they are read."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from vitrael.core.configs import (
    EVEN_IN_TIME,
    CriticConfig,
    DiffusionConfig,
    SamplerName,
    TrainingConfig,
)
from vitrael.core.models.nets.critic import build_critic_network
from vitrael.core.sampling.schedules import SPACINGS

TRAINING = {"length_images": 8}


def diffusion(**given: object) -> DiffusionConfig:
    return DiffusionConfig.model_validate({"training": TRAINING, **given})


@pytest.mark.parametrize(("start", "end"), [(0.03, 0.02), (0.02, 0.02)])
def test_betas_that_do_not_rise_are_refused(start: float, end: float) -> None:
    with pytest.raises(ValidationError, match="beta_start must be below beta_end"):
        diffusion(beta_start=start, beta_end=end)
    assert diffusion(beta_start=0.01, beta_end=0.02).beta_end == 0.02


@pytest.mark.parametrize("sampler", get_args(SamplerName))
@pytest.mark.parametrize("prediction", ["noise", "velocity", "image", "edm", "flow"])
def test_more_steps_than_trained_levels_are_refused_where_each_needs_its_own(
    sampler: SamplerName, prediction: str
) -> None:
    needs = SPACINGS[sampler]["discrete"] == "time" and prediction not in ("edm", "flow")
    assert (sampler in EVEN_IN_TIME) == (SPACINGS[sampler]["discrete"] == "time")
    given = {"timesteps": 20, "sampler": sampler, "prediction": prediction}
    assert diffusion(**given, sampling_steps=20).sampling_steps == 20
    if not needs:
        assert diffusion(**given, sampling_steps=21).sampling_steps == 21
        return
    with pytest.raises(ValidationError, match="sampling_steps must not exceed timesteps"):
        diffusion(**given, sampling_steps=21)


def test_unknown_schedule_is_refused() -> None:
    assert diffusion().schedule == "scaled_linear"
    with pytest.raises(ValidationError, match="schedule"):
        diffusion(schedule="sigmoid")


def test_least_edge_of_a_critic_is_that_of_its_network() -> None:
    for layers in (1, 2, 3):
        config = CriticConfig(channels=4, layers=layers)
        network = build_critic_network(config, dimensions=2, seed=1)
        assert config.least_vox == network.least_vox


def test_images_of_a_step_are_those_of_all_its_batches() -> None:
    config = TrainingConfig(length_images=8, batch_images=4, accumulated_batches=3)
    assert config.step_images == 12
