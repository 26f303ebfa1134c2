"""DDIM against a denoiser whose answer is known: a normal, whose flow has a closed form.

For ``x_0 ~ N(m, s^2)`` the best estimate is ``E[x_0 | x_t] = m + s^2 / (s^2 + sigma^2) (x_t - m)``
and the probability flow maps ``x_t - m`` by the factor ``s / sqrt(s^2 + sigma^2)``.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from vitrael.core.sampling.denoisers import DiscreteDenoiser, signal_and_noise
from vitrael.core.sampling.samplers import ddim
from vitrael.core.sampling.schedules import sampling_sigmas, scaled_linear_sigmas

MEAN, STD = 0.7, 0.3
SIGMAS = scaled_linear_sigmas(1_000, beta_start=0.0015, beta_end=0.0205).double()
NOTHING = torch.zeros(4_000, 0)


def best(x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    del condition
    share = STD**2 / (STD**2 + sigma**2)
    return MEAN + share.reshape(-1, *[1] * (x_t.ndim - 1)) * (x_t - MEAN)


def start() -> torch.Tensor:
    rng = torch.Generator().manual_seed(4)
    return SIGMAS[-1] * torch.randn(4_000, 1, generator=rng, dtype=torch.float64)


def exact(x_t: torch.Tensor) -> torch.Tensor:
    return MEAN + (x_t - MEAN) * STD / (STD**2 + SIGMAS[-1] ** 2).sqrt()


def error(steps: int) -> float:
    end = ddim(best, start(), sampling_sigmas(SIGMAS, steps), NOTHING)
    return (end - exact(start())).abs().max().item()


def test_error_falls_with_the_steps() -> None:
    errors = [error(steps) for steps in (10, 30, 100, 300, 1_000)]
    assert all(fine < coarse for coarse, fine in pairwise(errors))
    assert errors[-1] < 0.02
    assert errors[0] > 5 * errors[-1]


def test_samples_have_the_mean_and_the_spread_of_the_data() -> None:
    end = ddim(best, start(), sampling_sigmas(SIGMAS, 300), NOTHING)
    assert end.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert end.std().item() == pytest.approx(STD, rel=0.05)


def test_each_step_is_the_published_one() -> None:
    """Song et al. 2021, equation 12 with eta 0, in their scaled states."""
    levels = sampling_sigmas(SIGMAS, 7)
    alpha_bar = 1 / (1 + levels**2)
    state = start() * alpha_bar[0].sqrt()
    for i in range(7):
        sigma = levels[i].expand(len(state))
        x_0 = best(state / alpha_bar[i].sqrt(), sigma, NOTHING)
        noise = (state - alpha_bar[i].sqrt() * x_0) / (1 - alpha_bar[i]).sqrt()
        state = alpha_bar[i + 1].sqrt() * x_0 + (1 - alpha_bar[i + 1]).sqrt() * noise
    torch.testing.assert_close(ddim(best, start(), levels, NOTHING), state)


def test_denoiser_that_knows_the_answer_is_believed() -> None:
    truth = torch.linspace(0, 1, 4_000, dtype=torch.float64)[:, None]
    for steps in (1, 5):
        levels = sampling_sigmas(SIGMAS, steps)
        end = ddim(lambda *_: truth, start(), levels, NOTHING)
        torch.testing.assert_close(end, truth)


def test_velocity_network_of_the_same_normal_gives_the_same_samples() -> None:
    def network(state: torch.Tensor, step: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        sigma = SIGMAS[step.long()]
        alpha, beta = signal_and_noise(sigma, state.ndim)
        x_0 = best(state / alpha, sigma, NOTHING)
        return (alpha * state - x_0) / beta

    levels = sampling_sigmas(SIGMAS, 50)
    denoiser = DiscreteDenoiser(network, SIGMAS, prediction="velocity")
    end = ddim(denoiser, start(), levels, NOTHING)
    torch.testing.assert_close(end, ddim(best, start(), levels, NOTHING))


def test_condition_and_levels_reach_the_denoiser() -> None:
    seen: list[tuple[float, int]] = []
    condition = torch.rand(4_000, 3)

    def denoise(x_t: torch.Tensor, sigma: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        assert told is condition
        seen.append((sigma[0].item(), len(sigma)))
        return x_t * 0

    levels = sampling_sigmas(SIGMAS, 4)
    ddim(denoise, start(), levels, condition)
    assert seen == [(level.item(), 4_000) for level in levels[:-1]]
