"""Samplers on a mixture of normals, whose denoiser and whose probability flow are known.

The order of a method is the slope of its error over the steps, both in the logarithm. All levels
end with the same step from LOW to 0, so that what is compared is the way from HIGH to LOW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

from tests.factories.mixture import Mixture, draw_mixture
from vitrael.core.configs import SamplerName
from vitrael.core.interfaces import Denoiser
from vitrael.core.rng import torch_stream
from vitrael.core.sampling.denoisers import estimate
from vitrael.core.sampling.multistep import plms
from vitrael.core.sampling.noise import RowNoise
from vitrael.core.sampling.samplers import SAMPLERS, Sampler, ddim, ddpm, heun
from vitrael.core.sampling.schedules import (
    karras_sigmas,
    log_snr_sigmas,
    partial_levels,
    sampling_sigmas,
    scaled_linear_sigmas,
)

LOW, HIGH = 0.05, 50.0
ROWS = 24
MIXTURE = draw_mixture(1, kinds=3, dimensions=4, apart=1.0, stds=(0.3, 1.0))
NOTHING = torch.zeros(ROWS, 0)
DETERMINISTIC: tuple[SamplerName, ...] = ("ddim", "plms", "heun", "dpm_solver", "unipc")
ORDERS: dict[SamplerName, float] = {"ddim": 1, "plms": 2, "heun": 2, "dpm_solver": 2, "unipc": 3}
Spacing = Callable[[int], torch.Tensor]
SPACINGS: dict[str, Spacing] = {
    "log-SNR": lambda steps: log_snr_sigmas(LOW, HIGH, steps=steps),
    "Karras": lambda steps: karras_sigmas(LOW, HIGH, steps=steps),
}


def begin(rows: int = ROWS, level: float = HIGH) -> torch.Tensor:
    rng = torch_stream(3, "start")
    return level * torch.randn(rows, 4, generator=rng, dtype=torch.float64)


def follow_flow(denoiser: Denoiser, x_t: torch.Tensor, *, high: float = HIGH) -> torch.Tensor:
    """Return the exact flow to LOW, by Runge and Kutta's method in log sigma, then the estimate."""
    nothing = x_t.new_zeros(len(x_t), 0)
    steps = 400
    step = math.log(LOW / high) / steps

    def slope(x: torch.Tensor, place: float) -> torch.Tensor:
        return x - estimate(denoiser, x, high * math.exp(place * step), nothing)

    for i in range(steps):
        first = slope(x_t, i)
        second = slope(x_t + step / 2 * first, i + 0.5)
        third = slope(x_t + step / 2 * second, i + 0.5)
        fourth = slope(x_t + step * third, i + 1)
        x_t = x_t + step / 6 * (first + 2 * second + 2 * third + fourth)
    return estimate(denoiser, x_t, LOW, nothing)


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    return follow_flow(MIXTURE.denoise, begin())


def order_of(sampler: Sampler, spacing: Spacing, exact: torch.Tensor) -> float:
    """Return the slope of the error between 64 and 256 steps."""
    errors = [
        (sampler(MIXTURE.denoise, begin(), spacing(n), NOTHING) - exact).pow(2).mean().sqrt()
        for n in (64, 128, 256)
    ]
    return math.log2(errors[0] / errors[2]) / 2


def hurried(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigmas: torch.Tensor,
    condition: torch.Tensor,
    *,
    noise: object = None,
) -> torch.Tensor:
    """Return what plms would if its second transition were left out, as a known peer does."""
    high, low = (float(level) for level in sigmas[:2])
    slope = (x_t - estimate(denoiser, x_t, high, condition)) / high
    ahead = x_t + (low - high) * slope
    slope = (slope + (ahead - estimate(denoiser, ahead, low, condition)) / low) / 2
    return plms(denoiser, x_t + (low - high) * slope, sigmas[2:], condition)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_error_falls_with_the_order_of_the_theory(
    name: SamplerName, spacing: str, exact: torch.Tensor
) -> None:
    order = order_of(SAMPLERS[name].sample, SPACINGS[spacing], exact)
    assert SAMPLERS[name].order == ORDERS[name]
    assert order == pytest.approx(ORDERS[name], abs=0.25)


def test_a_skipped_transition_costs_the_order(exact: torch.Tensor) -> None:
    assert order_of(hurried, SPACINGS["log-SNR"], exact) < 1.5


def test_higher_order_is_worth_its_evaluations(exact: torch.Tensor) -> None:
    def error(name: SamplerName, evaluations: int) -> float:
        spec = SAMPLERS[name]
        levels = log_snr_sigmas(LOW, HIGH, steps=spec.steps_within(evaluations))
        end = spec.sample(MIXTURE.denoise, begin(), levels, NOTHING)
        return (end - exact).pow(2).mean().sqrt().item()

    assert error("unipc", 40) < error("dpm_solver", 40) < error("ddim", 40) / 10
    assert error("plms", 40) < error("ddim", 40) / 10
    assert error("heun", 40) < error("ddim", 40) / 2


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_any_level_is_a_start(name: SamplerName) -> None:
    """A partly noised point is led where the flow leads it."""
    level = 0.7
    rng = torch_stream(4, "partial")
    x_0 = MIXTURE.draw(ROWS, rng)
    x_t = x_0 + level * torch.randn(ROWS, 4, generator=rng, dtype=torch.float64)
    exact = follow_flow(MIXTURE.denoise, x_t, high=level)
    levels = partial_levels(log_snr_sigmas(LOW, HIGH, steps=400), level)
    end = SAMPLERS[name].sample(MIXTURE.denoise, x_t, levels, NOTHING)
    assert (end - exact).abs().max() < (0.02 if name == "ddim" else 2e-4)
    assert (end - follow_flow(MIXTURE.denoise, x_t)).abs().max() > 0.1  # another start level


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_sampler_knows_ratios_of_levels_alone(name: SamplerName) -> None:
    """Levels that are all doubled give the same, if the denoiser is told half of them."""
    levels = log_snr_sigmas(LOW, HIGH, steps=12)

    def told_half(x_t: torch.Tensor, sigma: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return MIXTURE.denoise(x_t, sigma / 2, c)

    sample = SAMPLERS[name].sample
    one = sample(MIXTURE.denoise, begin(), levels, NOTHING)
    other = sample(told_half, begin(), 2 * levels, NOTHING)
    torch.testing.assert_close(one, other)
    assert (sample(MIXTURE.denoise, begin(), 2 * levels, NOTHING) - one).abs().max() > 1e-3


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 1, 2, 2), (4, 1, 1)])
def test_single_precision_and_axes_of_space_change_nothing(
    name: SamplerName, shape: tuple[int, ...]
) -> None:
    sample, levels = SAMPLERS[name].sample, log_snr_sigmas(LOW, HIGH, steps=15)
    expected = sample(MIXTURE.denoise, begin(), levels, NOTHING)
    x_t = begin().reshape(ROWS, *shape).float()
    end = sample(MIXTURE.denoise, x_t, levels.float(), NOTHING)
    assert end.dtype == torch.float32
    assert end.shape == (ROWS, *shape)
    assert (end.double().reshape(ROWS, 4) - expected).abs().max() < 2e-3
    assert (end.double().reshape(ROWS, 4) - expected).pow(2).mean().sqrt() < 1e-4


def z_scores(points: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """Return how many standard errors mean, covariance and weights are from those of the data."""
    count = len(points)
    rng = torch_stream(5, "truth")
    truth = mixture.draw(100_000, rng)

    def features(x: torch.Tensor) -> torch.Tensor:
        centered = x - mixture.mean
        products = (centered[:, :, None] * centered[:, None]).flatten(1)
        nearest = torch.cdist(x, mixture.means).argmin(1)
        shares = torch.nn.functional.one_hot(nearest, len(mixture.weights)).double()
        return torch.cat([x, products, shares], dim=1)

    known, seen = features(truth), features(points)
    error = (known.var(0) * (1 / count + 1 / len(truth))).sqrt()
    return (seen.mean(0) - known.mean(0)) / error


COUNT = 3_000
FLAT = draw_mixture(6, kinds=3, dimensions=2, apart=1.0, stds=(0.2, 0.5))
STOCHASTIC: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim eta 1": partial(ddim, eta=1.0),
    "ddim eta 0.5": partial(ddim, eta=0.5),
    "heun with churn": partial(heun, churn=40.0, churn_noise=1.0),
}


def sample_flat(sampler: Sampler, *, scale: float = 1.0) -> torch.Tensor:
    rows = torch_stream(7, "rows")

    def noise() -> torch.Tensor:
        return scale * torch.randn(COUNT, 2, generator=rows, dtype=torch.float64)

    levels = log_snr_sigmas(0.01, 50.0, steps=200)
    return sampler(FLAT.denoise, 50.0 * noise() / scale, levels, torch.zeros(COUNT, 0), noise=noise)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samples_have_the_moments_of_the_data(name: str) -> None:
    assert z_scores(sample_flat(STOCHASTIC[name]), FLAT).abs().max() < 4


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_of_a_wrong_scale_gives_other_moments(name: str) -> None:
    assert z_scores(sample_flat(STOCHASTIC[name], scale=1.15), FLAT).abs().max() > 4


def test_points_of_the_data_have_the_moments_of_the_data() -> None:
    assert z_scores(FLAT.draw(COUNT, torch_stream(8, "points")), FLAT).abs().max() < 4


@pytest.mark.parametrize("name", ["ddpm", "heun with churn"])
def test_samples_do_not_depend_on_shards(name: str) -> None:
    levels = log_snr_sigmas(LOW, HIGH, steps=9)

    def sample(rows: Sequence[int]) -> torch.Tensor:
        rngs = [torch_stream(9, "row", row) for row in rows]
        noise = RowNoise(rngs, (4,), dtype=torch.float64)
        nothing = torch.zeros(len(rows), 0)
        return STOCHASTIC[name](MIXTURE.denoise, HIGH * noise(), levels, nothing, noise=noise)

    whole = sample(range(6))
    torch.testing.assert_close(torch.cat([sample([0]), sample([1, 2, 3]), sample([4, 5])]), whole)
    assert (sample(range(1, 7)) - whole).abs().max() > 0.01  # other rows, other samples


TRAINED = scaled_linear_sigmas(1_000, beta_start=0.0015, beta_end=0.0205).double()
BETAS = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205}


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_equals_monai_where_their_timesteps_agree(eta: float) -> None:
    """Their transitions are 1000 // 10 long, so the timesteps must be so far apart, too."""
    from monai.networks.schedulers import DDIMScheduler

    peer = DDIMScheduler(num_train_timesteps=1_000, clip_sample=False, **BETAS)
    peer.set_timesteps(10)
    steps = list(range(999, 0, -100))
    theirs, rng = begin(level=1.0), torch_stream(10, "peer")
    for t in steps:
        alpha = peer.alphas_cumprod[t].double().sqrt()
        sigma = TRAINED[t].expand(ROWS)
        x_0 = MIXTURE.denoise(theirs / alpha, sigma, NOTHING)
        noise = (theirs - alpha * x_0) / (1 - alpha**2).sqrt()
        theirs, _ = peer.step(noise, t, theirs, eta=eta, generator=rng)
    levels = torch.cat([TRAINED[steps], TRAINED.new_zeros(1)])
    x_t = begin(level=1.0) * (1 + levels[0] ** 2).sqrt()
    same = torch_stream(10, "peer")
    ours = ddim(
        MIXTURE.denoise,
        x_t,
        levels,
        NOTHING,
        noise=lambda: torch.randn(ROWS, 4, generator=same, dtype=torch.float64),
        eta=eta,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    even = ddim(MIXTURE.denoise, x_t, sampling_sigmas(TRAINED, 10), NOTHING)
    assert (even - theirs).abs().max() > 1e-3  # the control: other timesteps


def run_peer_plms(*, repeat: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return MONAI's samples of a narrow normal around 1 in 10 steps, and the states on the way.

    ``repeat`` gives it the second timestep twice, which leaves its averaging step room.
    """
    from monai.networks.schedulers import PNDMScheduler

    peer = PNDMScheduler(1_000, "linear_beta", skip_prk_steps=True, set_alpha_to_one=True)
    peer.set_timesteps(10)
    steps = peer.timesteps.tolist()
    state, states = narrow_noise(), []
    for t in steps[:2] + steps[1:] if repeat else steps:
        alpha = peer.alphas_cumprod[t].double().sqrt()
        sigma = ((1 - alpha**2).sqrt() / alpha).expand(len(state))
        states.append(state / alpha)
        noise = (state - alpha * narrow(state / alpha, sigma, state)) / (1 - alpha**2).sqrt()
        state, _ = peer.step(noise, t, state)
    return state, torch.stack(states)


def narrow_noise() -> torch.Tensor:
    return torch.randn(2_000, 1, generator=torch_stream(11, "noise"), dtype=torch.float64)


def narrow(x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Return the best estimate for a normal around 1 with a deviation of 0.2."""
    return 1 + 0.04 / (0.04 + sigma[:, None] ** 2) * (x_t - 1)


def test_plms_makes_every_transition_where_monai_leaves_one_out() -> None:
    """Liu et al. 2022 in 10 steps: MONAI's mean is 10 % off, ours and its repaired one are not."""
    from monai.networks.schedulers import PNDMScheduler

    seen: list[torch.Tensor] = []

    def watched(x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        seen.append(x_t)
        return narrow(x_t, sigma, condition)

    peer = PNDMScheduler(1_000, "linear_beta").alphas_cumprod.double()
    trained = ((1 - peer) / peer).sqrt()
    levels = torch.cat([trained[range(900, -1, -100)], trained.new_zeros(1)])
    x_t = narrow_noise() * (1 + levels[0] ** 2).sqrt()
    ours = plms(watched, x_t, levels, torch.zeros(len(x_t), 0))
    broken, _ = run_peer_plms(repeat=False)
    repaired, states = run_peer_plms(repeat=True)
    assert broken.mean().item() > 1.08
    assert repaired.mean().item() == pytest.approx(1, abs=0.01)
    assert ours.mean().item() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(torch.stack(seen), states, atol=1e-4, rtol=1e-5)


def test_plms_begins_anew_in_each_call() -> None:
    levels = log_snr_sigmas(LOW, HIGH, steps=8)
    first = plms(MIXTURE.denoise, begin(), levels, NOTHING)
    plms(MIXTURE.denoise, -begin(), partial_levels(levels, 1.0), NOTHING)
    assert torch.equal(plms(MIXTURE.denoise, begin(), levels, NOTHING), first)
