"""What is minimized is zero where it should be, and the parts add up to the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.factories.systems import brain_ldm, images
from vitrael.core.models.brain_ldm import build_codec, trained_sigmas
from vitrael.core.sampling.denoisers import signal_and_noise
from vitrael.core.training.objectives import AutoencoderObjective, VelocityObjective


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class PerfectCodec:
    """Stands for a codec whose latents are standard normal and whose images come back."""

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.image = x
        return torch.zeros(len(x), 2, 4, 4, 4), torch.ones(len(x), 2, 4, 4, 4)

    def reconstruct(self, z: torch.Tensor) -> torch.Tensor:
        del z
        return self.image


def test_perfect_codec_has_no_loss() -> None:
    objective = AutoencoderObjective(kl_weight=1.0, square_weight=4.0)
    codec: Any = PerfectCodec()
    loss = objective(codec, images(2), generator())
    assert loss.total.item() == pytest.approx(0, abs=1e-6)


def test_parts_add_up_to_the_whole() -> None:
    codec = build_codec(brain_ldm(), seed=1)
    with torch.no_grad():
        loss = AutoencoderObjective(kl_weight=0.5, square_weight=4.0)(codec, images(2), generator())
    parts = {name: value.item() for name, value in loss.parts.items()}
    assert loss.total.item() == pytest.approx(
        parts["l1"] + 4.0 * parts["square"] + 0.5 * parts["kl"], rel=1e-5
    )
    assert all(value > 0 for value in parts.values())


def test_divergence_is_that_of_the_closed_form() -> None:
    class Shifted(PerfectCodec):
        def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, std = super().posterior(x)
            return mean + 0.7, std * 0.4

    codec: Any = Shifted()
    loss = AutoencoderObjective(kl_weight=1.0, square_weight=0.0)(codec, images(2), generator())
    normal, own = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.7, 0.4)
    expected = torch.distributions.kl_divergence(own, normal).item()
    assert loss.parts["kl"].item() == pytest.approx(expected, rel=1e-5)


def test_true_velocity_has_no_loss_and_another_has() -> None:
    sigmas = trained_sigmas(brain_ldm().teacher)
    z_0, condition = torch.randn(8, 2, 4, 4, 4, generator=generator()), torch.zeros(8, 4)

    def perfect(state: torch.Tensor, step: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        alpha, beta = signal_and_noise(sigmas[step], state.ndim)
        return alpha * (state - alpha * z_0) / beta - beta * z_0

    network: Any = perfect
    loss = VelocityObjective(sigmas)(network, (z_0, condition), generator())
    assert loss.total.item() == pytest.approx(0, abs=1e-6)
    network = lambda *asked: perfect(*asked) + 1  # noqa: E731 - the control
    loss = VelocityObjective(sigmas)(network, (z_0, condition), generator())
    assert loss.total.item() == pytest.approx(1, rel=1e-3)


def test_timesteps_and_conditions_reach_the_network_row_by_row() -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def network(state: torch.Tensor, step: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        seen.append((step, condition))
        return state

    asked: Any = network
    z_0, condition = torch.zeros(500, 2, 1, 1, 1), torch.rand(500, 4)
    VelocityObjective(trained_sigmas(brain_ldm().teacher))(asked, (z_0, condition), generator())
    step, told = seen[0]
    assert told.equal(condition)
    assert step.shape == (500,)
    assert (step.min(), step.max()) == (0, 99)
    assert abs(step.float().mean().item() - 49.5) < 4
