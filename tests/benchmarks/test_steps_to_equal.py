"""How few evaluations of the network are as good as 50 of DDIM (B2).

The denoiser is that of mixtures of normals, where it is known exactly: wide and narrow, few
dimensions and many. A small network that learned one has a rougher field, more of its samples end
elsewhere, whatever the sampler, and only the median is demanded of it; whether the mean square is
met as well is printed. ``tests/numerics/test_few_evaluations.py`` asks a trained model.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.factories.few_evaluations import (
    AIM,
    BUDGETS,
    DEFAULT,
    FAST,
    MOST,
    TRAINED,
    describe,
    smallest_evaluations,
)
from tests.factories.mixture import Mixture, draw_mixture
from vitrael.core.configs import SamplerName
from vitrael.core.rng import seeded_initialization, torch_stream
from vitrael.core.sampling.denoisers import make_denoiser, signal_and_noise
from vitrael.core.sampling.schedules import SPACINGS

ROWS = 96
MIXTURES: dict[str, Mixture] = {
    "3 wide in 4": draw_mixture(1, kinds=3, dimensions=4, apart=1, stds=(0.3, 1.0)),
    "5 flat in 16": draw_mixture(2, kinds=5, dimensions=16, apart=1, stds=(0.02, 1.0)),
    "8 narrow in 16": draw_mixture(3, kinds=8, dimensions=16, apart=1, stds=(0.05, 0.2)),
    "20 flat in 64": draw_mixture(4, kinds=20, dimensions=64, apart=1, stds=(0.02, 0.8)),
    "8 near in 128": draw_mixture(5, kinds=8, dimensions=128, apart=0.5, stds=(0.02, 1.0)),
}


@pytest.mark.bench
def test_fast_sampler_equals_fifty_steps_of_ddim_in_few_evaluations() -> None:
    torch.set_num_threads(1)
    everywhere: dict[SamplerName, list[int | None]] = {name: [] for name in FAST}
    spacings = ", ".join(f"{name} {SPACINGS[name]['discrete']}" for name in FAST)
    print(f"\nevaluations that equal DDIM-50, by both and by the median; levels: {spacings}")
    for label, mixture in MIXTURES.items():
        shape = (ROWS, mixture.means.shape[1])
        noise = torch.randn(shape, generator=torch_stream(7, "noise"), dtype=torch.float64)
        found = smallest_evaluations(mixture.denoise, noise, torch.zeros(ROWS, 0))
        print(f"{label}: {describe(found)}")
        for name, one in found.items():
            everywhere[name].append(one.evaluations())
    print(f"all: {everywhere}; {DEFAULT}: aim {AIM}, at most {MOST}")
    assert all(count is not None and count <= MOST for count in everywhere[DEFAULT])


@pytest.mark.bench
def test_ddim_itself_does_not_do_with_less() -> None:
    """The control: what is measured is the sampler, not the patience of the measure."""
    mixture = MIXTURES["3 wide in 4"]
    noise = torch.randn((ROWS, 4), generator=torch_stream(7, "noise"), dtype=torch.float64)
    found = smallest_evaluations(mixture.denoise, noise, torch.zeros(ROWS, 0), samplers=("ddim",))
    assert found["ddim"].evaluations() is None
    assert found["ddim"].evaluations(by_median=True) is None


class Learner(torch.nn.Module):
    """A small network that predicts ``v`` of points."""

    def __init__(self, dimensions: int, width: int = 160) -> None:
        super().__init__()
        self.rates = torch.exp(torch.linspace(0, -9, 32))
        self.into = torch.nn.Linear(dimensions + 64, width)
        self.inner = torch.nn.ModuleList(torch.nn.Linear(width + 64, width) for _ in range(3))
        self.out = torch.nn.Linear(width, dimensions)

    def forward(
        self, state: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        del condition
        angle = timestep.float()[:, None] * self.rates
        time = torch.cat([angle.sin(), angle.cos()], dim=1)
        hidden = self.into(torch.cat([state, time], dim=1))
        for layer in self.inner:
            hidden = hidden + functional.silu(layer(torch.cat([hidden, time], dim=1)))
        return self.out(hidden)


def learn(mixture: Mixture, *, steps: int) -> Learner:
    rng = torch_stream(8, "learn")
    data = mixture.draw(20_000, rng).float()
    with seeded_initialization(8, "weights"):
        network = Learner(data.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x_0 = data[torch.randint(len(data), (256,), generator=rng)]
        step = torch.randint(len(TRAINED), (256,), generator=rng)
        alpha, beta = signal_and_noise(TRAINED[step], x_0.ndim)
        noise = torch.randn(x_0.shape, generator=rng)
        answer = network(alpha * x_0 + beta * noise, step, torch.zeros(256, 0))
        loss = functional.mse_loss(answer, alpha * noise - beta * x_0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    return network


@pytest.mark.bench
def test_learned_network_needs_as_few() -> None:
    torch.set_num_threads(1)
    network = learn(MIXTURES["5 flat in 16"], steps=3_000)
    denoiser = make_denoiser(network, "velocity", sigmas=TRAINED)
    noise = torch.randn((ROWS, 16), generator=torch_stream(7, "noise"))
    found = smallest_evaluations(denoiser, noise, torch.zeros(ROWS, 0))
    print(f"\na learned network: {describe(found)}")
    needed, by_both = found[DEFAULT].evaluations(by_median=True), found[DEFAULT].evaluations()
    met = by_both is not None and by_both <= MOST
    print(
        f"{DEFAULT}: median met at {needed}; root mean square {'met' if met else 'not met'} within "
        f"{MOST} evaluations ({'never up to' if by_both is None else 'at'} "
        f"{by_both or max(BUDGETS)})"
    )
    assert needed is not None
    assert needed <= MOST
