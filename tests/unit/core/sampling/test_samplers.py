"""The table of samplers tells the truth; gradients pass; bad levels and missing noise are refused.

How exact they are stands in ``tests/numerics``.
"""

from __future__ import annotations

import math
from functools import partial
from typing import get_args

import pytest
import torch

from vitrael.core.configs import SamplerName
from vitrael.core.errors import DataError, UsageError
from vitrael.core.rng import torch_stream
from vitrael.core.sampling.noise import RowNoise
from vitrael.core.sampling.samplers import SAMPLERS, ddim, ddpm, heun
from vitrael.core.sampling.schedules import log_snr_sigmas

NAMES: tuple[SamplerName, ...] = get_args(SamplerName)
NOTHING = torch.zeros(2, 0)


class Watched:
    """A Denoiser for white data of variance 1, which notes what it was asked."""

    def __init__(self) -> None:
        self.levels: list[float] = []
        self.conditions: list[torch.Tensor] = []

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        assert sigma.shape == (len(x_t),)
        assert (sigma == sigma[0]).all()
        self.levels.append(sigma[0].item())
        self.conditions.append(condition)
        return x_t / (1 + sigma.reshape(-1, *[1] * (x_t.ndim - 1)) ** 2)


def noise() -> RowNoise:
    return RowNoise([torch_stream(1, "row", row) for row in range(2)], (3, 2, 2))


def test_every_sampler_of_a_config_is_in_the_table() -> None:
    assert tuple(SAMPLERS) == NAMES


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize("name", NAMES)
def test_table_tells_the_number_of_evaluations(name: SamplerName, steps: int) -> None:
    spec, watched, condition = SAMPLERS[name], Watched(), torch.rand(2, 5)
    levels = log_snr_sigmas(0.1, 10, steps=steps)
    end = spec.sample(watched, 10 * noise()(), levels, condition, noise=noise())
    assert end.shape == (2, 3, 2, 2)
    assert len(watched.levels) == spec.evaluations(steps)
    assert set(watched.levels) == set(levels[:-1].float().tolist())
    assert all(condition is told for told in watched.conditions)


@pytest.mark.parametrize("name", NAMES)
def test_steps_within_a_budget_are_the_most_it_allows(name: SamplerName) -> None:
    spec = SAMPLERS[name]
    for budget in range(1, 30):
        steps = spec.steps_within(budget)
        assert spec.evaluations(steps) <= max(budget, 1)
        assert spec.evaluations(steps + 1) > budget


def test_plms_looks_at_the_second_level_twice_and_at_no_other() -> None:
    watched = Watched()
    levels = log_snr_sigmas(0.1, 10, steps=6)
    SAMPLERS["plms"].sample(watched, noise()(), levels, NOTHING)
    told = levels[:-1].float().tolist()
    assert watched.levels == [told[0], told[1], *told[1:]]


def test_heun_without_churn_walks_the_levels_in_pairs() -> None:
    watched = Watched()
    levels = log_snr_sigmas(0.1, 10, steps=3)
    heun(watched, noise()(), levels, NOTHING)
    a, b, c = levels[:-1].float().tolist()
    assert watched.levels == [a, b, b, c, c]


def test_churn_raises_levels_of_its_range_alone() -> None:
    watched = Watched()
    levels = log_snr_sigmas(0.1, 10, steps=3)
    heun(watched, noise()(), levels, NOTHING, noise=noise(), churn=0.3, churn_range=(0.5, 2))
    assert watched.levels == pytest.approx([10, 1, 1.1, 0.1, 0.1])
    heun(watched, noise()(), levels, NOTHING, noise=noise(), churn=1e9)
    assert watched.levels[5] == pytest.approx(10 * math.sqrt(2))


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_the_estimate(name: SamplerName) -> None:
    x_t = 5 * noise()()
    end = SAMPLERS[name].sample(Watched(), x_t, torch.tensor([5.0, 0.0]), NOTHING, noise=noise())
    torch.testing.assert_close(end, x_t / 26)


@pytest.mark.parametrize("name", NAMES)
def test_denoiser_that_knows_the_answer_is_believed(name: SamplerName) -> None:
    truth = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2)
    for steps in (1, 2, 3, 9):
        levels = log_snr_sigmas(0.1, 10, steps=steps)
        end = SAMPLERS[name].sample(
            lambda *_: truth, 10 * noise()(), levels, NOTHING, noise=noise()
        )
        torch.testing.assert_close(end, truth)


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_samplers_draw_nothing(name: SamplerName) -> None:
    drawn = 0

    def source() -> torch.Tensor:
        nonlocal drawn
        drawn += 1
        return torch.zeros(2, 3, 2, 2)

    levels = log_snr_sigmas(0.1, 10, steps=4)
    SAMPLERS[name].sample(Watched(), noise()(), levels, NOTHING, noise=source)
    assert drawn == (3 if SAMPLERS[name].stochastic else 0)


def deviation_by(steps: int) -> float:
    """Return the exact standard deviation of ddpm's samples of white data.

    Start and draws lie along axes of their own, and all is linear.
    """
    axes = iter(torch.eye(steps, dtype=torch.float64)[1:, None])
    start = torch.eye(steps, dtype=torch.float64)[:1]
    levels = log_snr_sigmas(0.02, 50, steps=steps)
    end = ddpm(Watched(), 50 * start, levels, torch.zeros(1, 0), noise=lambda: next(axes))
    assert next(axes, None) is None
    return end.norm().item()


def test_variance_of_ddpm_converges_with_order_one() -> None:
    limit = 1 / math.sqrt(1 + 0.02**2)  # the last step to 0 is the estimate
    errors = [abs(deviation_by(steps) - limit) for steps in (100, 400)]
    assert errors[1] < 0.01
    assert math.log(errors[0] / errors[1]) / math.log(4) == pytest.approx(1, abs=0.1)


def test_ddpm_is_ddim_of_eta_one() -> None:
    levels = log_snr_sigmas(0.1, 10, steps=5)
    one = ddpm(Watched(), 10 * noise()(), levels, NOTHING, noise=noise())
    other = ddim(Watched(), 10 * noise()(), levels, NOTHING, noise=noise(), eta=1.0)
    assert torch.equal(one, other)
    half = ddim(Watched(), 10 * noise()(), levels, NOTHING, noise=noise(), eta=0.5)
    assert not torch.allclose(one, half)


class Wide(torch.nn.Module):
    """A small network with wide activations, told level and condition."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch_stream(2, "wide")
        self.there = torch.nn.Parameter(torch.randn(6, 512, generator=rng).double() / 4)
        self.back = torch.nn.Parameter(torch.randn(512, 4, generator=rng).double() / 40)

    def forward(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        scaled = x_t / (1 + sigma[:, None] ** 2).sqrt()
        told = torch.cat([scaled, condition], dim=1)
        return torch.tanh(told @ self.there) @ self.back


def test_gradient_through_ddim_is_that_of_finite_differences() -> None:
    network = Wide()
    levels = log_snr_sigmas(0.1, 9, steps=4)
    rng = torch_stream(5, "check")
    x_t = (9 * torch.randn(2, 4, generator=rng).double()).requires_grad_()
    condition = torch.rand(2, 2, generator=rng).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, c: ddim(network, x, levels, c), (x_t, condition))


@pytest.mark.parametrize(
    "levels",
    [
        *([], [0.0], [3.0], [3.0, 1.0], [1.0, 3.0, 0.0], [3.0, 3.0, 0.0], [3.0, -1.0, 0.0]),
        *([math.inf, 1.0, 0.0], [math.nan, 1.0, 0.0], [3.0, math.nan, 0.0]),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_levels_that_do_not_fall_to_zero_are_refused(
    name: SamplerName, levels: list[float]
) -> None:
    with pytest.raises(DataError, match="finite, fall at each step and end with 0"):
        SAMPLERS[name].sample(Watched(), noise()(), torch.tensor(levels), NOTHING, noise=noise())


def test_stochastic_sampler_without_noise_is_refused() -> None:
    levels = log_snr_sigmas(0.1, 10, steps=4)
    for sampler in (ddpm, partial(ddim, eta=0.1), partial(heun, churn=1.0)):
        with pytest.raises(UsageError, match="RowNoise"):
            sampler(Watched(), noise()(), levels, NOTHING)
    ddim(Watched(), noise()(), levels, NOTHING)  # the control
