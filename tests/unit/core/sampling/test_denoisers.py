"""A velocity and a clean image say the same thing; the wrapper loses nothing between them."""

from __future__ import annotations

import pytest
import torch

from vitrael.core.sampling.denoisers import VelocityDenoiser, signal_and_noise, timestep_of
from vitrael.core.sampling.schedules import scaled_linear_sigmas

SIGMAS = scaled_linear_sigmas(1_000, beta_start=0.0015, beta_end=0.0205)


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    x_0 = torch.randn(6, 2, 3, 3, 3, generator=rng)
    noise = torch.randn(6, 2, 3, 3, 3, generator=rng)
    return x_0, noise, SIGMAS[torch.tensor([0, 10, 100, 500, 900, 999])]


def test_perfect_velocity_gives_exactly_the_clean_image() -> None:
    x_0, noise, sigma = rows()
    alpha, beta = signal_and_noise(sigma, x_0.ndim)
    seen: list[torch.Tensor] = []

    def network(state: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        seen.append(state)
        return alpha * noise - beta * x_0

    x_t = x_0 + sigma.reshape(-1, 1, 1, 1, 1) * noise
    estimate = VelocityDenoiser(network, SIGMAS)(x_t, sigma, torch.zeros(6, 4))
    torch.testing.assert_close(estimate, x_0, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen[0], alpha * x_0 + beta * noise, atol=1e-5, rtol=1e-4)
    wrong = VelocityDenoiser(lambda *asked: network(*asked) + 0.1, SIGMAS)
    assert (wrong(x_t, sigma, torch.zeros(6, 4)) - x_0).abs().max() > 0.05  # the control


def test_state_has_unit_variance_at_every_level() -> None:
    alpha, beta = signal_and_noise(SIGMAS, 1)
    torch.testing.assert_close(alpha**2 + beta**2, torch.ones(1_000))
    torch.testing.assert_close(beta / alpha, SIGMAS, rtol=1e-4, atol=0)


def test_factors_scale_as_many_axes_as_there_are() -> None:
    assert signal_and_noise(SIGMAS[:3], 5)[0].shape == (3, 1, 1, 1, 1)


def test_network_is_told_the_timestep_of_the_level() -> None:
    assert timestep_of(SIGMAS, SIGMAS).tolist() == list(range(1_000))
    between = torch.tensor([(SIGMAS[4] * SIGMAS[5]).sqrt() * 1.001])
    assert timestep_of(between, SIGMAS).item() == 5
    assert timestep_of(torch.tensor([0.0, 1e-9, 1e9]), SIGMAS).tolist() == [0, 0, 999]


def test_half_precision_of_the_network_does_not_change_the_dtype() -> None:
    x_0, _, sigma = rows()
    denoiser = VelocityDenoiser(lambda state, *_: state.bfloat16(), SIGMAS)
    assert denoiser(x_0, sigma, torch.zeros(6, 4)).dtype == torch.float32


@pytest.mark.parametrize("level", [1e-6, 1e-4])
def test_almost_no_noise_is_almost_no_change(level: float) -> None:
    x_0, _, _ = rows()
    denoiser = VelocityDenoiser(lambda state, *_: 3 * torch.ones_like(state), SIGMAS)
    estimate = denoiser(x_0, torch.full((6,), level), torch.zeros(6, 4))
    assert (estimate - x_0).abs().max() < 10 * level
