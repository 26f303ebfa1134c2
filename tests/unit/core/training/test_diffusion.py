"""What a network learns is what its denoiser asks of it, for every prediction and dimension."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.nn import functional

from vitrael.core.configs import Prediction
from vitrael.core.sampling.denoisers import NULL_CONDITION, make_denoiser, signal_and_noise
from vitrael.core.sampling.schedules import scaled_linear_sigmas
from vitrael.core.training.diffusion import DiffusionObjective, FlowTimes

SIGMAS = scaled_linear_sigmas(1000, beta_start=0.0015, beta_end=0.0205)
PREDICTIONS = get_args(Prediction)
SHAPES = [(32, 2, 6, 5), (32, 2, 4, 3, 5)]

every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(shape: tuple[int, ...], seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = generator(seed)
    return torch.randn(shape, generator=rng), torch.rand((shape[0], 4), generator=rng)


def level(prediction: Prediction, timestep: torch.Tensor, ndim: int) -> torch.Tensor:
    """Return the noise level of a timestep, shaped to scale an image."""
    if prediction == "edm":
        sigma = (timestep / 250).exp()
    elif prediction == "flow":
        sigma = timestep / (1000 - timestep)
    else:
        sigma = SIGMAS[timestep.long()]
    return sigma.reshape(-1, *[1] * (ndim - 1))


class Listener:
    """A network that is no good at all and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[torch.Tensor, ...]] = []

    def __call__(
        self, state: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        self.asked.append((state, timestep, condition))
        told = (timestep.float() / 1000 + condition.sum(1)).reshape(-1, *[1] * (state.ndim - 1))
        return torch.tanh(2 * state + told)


class Knowing:
    """A network that knows the clean latents, and errs by a constant."""

    def __init__(self, prediction: Prediction, z_0: torch.Tensor, error: float = 0.0) -> None:
        self.prediction, self.z_0, self.error = prediction, z_0, error

    def __call__(self, state: torch.Tensor, timestep: torch.Tensor, _: object) -> torch.Tensor:
        sigma, z_0 = level(self.prediction, timestep, state.ndim), self.z_0
        alpha, beta = signal_and_noise(sigma.flatten(), state.ndim)
        noise = (state - alpha * z_0) / beta
        if self.prediction == "flow":
            answer = (state - z_0) * (1 + sigma) / sigma
        elif self.prediction == "edm":  # Karras et al. 2022, equation 8, sigma_data 1
            answer = (z_0 - alpha * state) / beta
        else:
            answer = {"noise": noise, "velocity": alpha * noise - beta * z_0, "image": z_0}[
                self.prediction
            ]
        return answer + self.error


@every_prediction
@every_shape
def test_network_without_loss_is_a_perfect_denoiser(
    prediction: Prediction, shape: tuple[int, ...]
) -> None:
    z_0, condition = batch(shape)
    objective = DiffusionObjective(SIGMAS, prediction=prediction)
    sigma = SIGMAS[torch.randint(1000, (len(z_0),), generator=generator(4))]
    x_t = z_0 + sigma.reshape(-1, *[1] * (z_0.ndim - 1)) * batch(shape, seed=5)[0]

    def off(error: float) -> tuple[float, float]:
        network: Any = Knowing(prediction, z_0, error)
        loss = objective(network, (z_0, condition), generator()).total
        denoise = make_denoiser(network, prediction, sigmas=SIGMAS)
        return loss.item(), (denoise(x_t, sigma, condition) - z_0).abs().max().item()

    loss, distance = off(0)
    assert loss == pytest.approx(0, abs=1e-6)
    assert distance == pytest.approx(0, abs=2e-4)
    loss, distance = off(0.5)  # the control
    assert loss == pytest.approx(0.25, rel=1e-2)
    assert distance > 0.1


@every_prediction
@every_shape
@pytest.mark.parametrize("gamma", [0.5, 5.0, 1e9])
def test_loss_is_the_weighted_error_of_the_denoiser(
    prediction: Prediction, shape: tuple[int, ...], gamma: float
) -> None:
    z_0, condition = batch(shape)
    network = Listener()
    objective = DiffusionObjective(SIGMAS, prediction=prediction, min_snr_gamma=gamma)
    loss = objective(network, (z_0, condition), generator()).total
    ((state, timestep, told),) = network.asked
    sigma = level(prediction, timestep, z_0.ndim)
    alpha, _ = signal_and_noise(sigma.flatten(), z_0.ndim)
    x_t = state * (1 + sigma) if prediction == "flow" else state / alpha
    denoise = make_denoiser(network, prediction, sigmas=SIGMAS)
    error = denoise(x_t, sigma.flatten(), condition) - z_0
    wanted = ((sigma**-2).clamp(max=gamma) * error**2).mean()
    torch.testing.assert_close(loss, wanted, rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(network.asked[1][0], state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.asked[1][1], timestep.float(), rtol=1e-4, atol=1e-2)
    assert network.asked[1][2].equal(told)


@pytest.mark.parametrize("prediction", ["noise", "velocity", "image"])
def test_min_snr_weighs_each_prediction_as_published(prediction: Prediction) -> None:
    # Hang et al. 2023, section 3.4
    z_0, condition = batch((512, 1, 2, 2))
    network: Any = Knowing(prediction, z_0, error=1.0)
    objective = DiffusionObjective(SIGMAS, prediction=prediction, min_snr_gamma=5.0)
    loss = objective(network, (z_0, condition), generator()).total
    snr = SIGMAS[torch.randint(1000, (512,), generator=generator())] ** -2
    clipped = snr.clamp(max=5.0)
    weight = {"noise": clipped / snr, "velocity": clipped / (snr + 1), "image": clipped}
    torch.testing.assert_close(loss, weight[prediction].mean(), rtol=1e-3, atol=0)


def test_defaults_are_the_plain_velocity_to_the_bit() -> None:
    z_0, condition = batch((8, 2, 4, 4, 4))
    network, ours, plain = Listener(), generator(3), generator(3)
    loss = DiffusionObjective(SIGMAS)(network, (z_0, condition), ours).total
    step = torch.randint(1000, (8,), generator=plain)
    sigma = SIGMAS[step].reshape(-1, 1, 1, 1, 1)
    alpha = (1 + sigma**2).rsqrt()
    beta = sigma * alpha
    noise = torch.randn(z_0.shape, generator=plain)
    velocity = network(alpha * z_0 + beta * noise, step, condition)
    assert loss.equal(functional.mse_loss(velocity, alpha * noise - beta * z_0))
    assert ours.get_state().equal(plain.get_state())
    assert network.asked[0][1].equal(step)
    assert network.asked[0][2].equal(condition)


@every_prediction
def test_dropped_conditions_are_whole_rows_and_move_no_noise(prediction: Prediction) -> None:
    z_0, condition = batch((2000, 1, 2, 2))
    kept = condition.clone()
    network = Listener()
    for share in (0.0, 0.3):
        objective = DiffusionObjective(SIGMAS, prediction=prediction, condition_dropout=share)
        objective(network, (z_0, condition), generator())
    (state, timestep, told), (dropped_state, dropped_timestep, dropped) = network.asked
    assert told.equal(kept)
    assert condition.equal(kept), "what was drawn is not written to"
    assert dropped_state.equal(state)
    assert dropped_timestep.equal(timestep)
    lost = (dropped == NULL_CONDITION).all(1)
    assert dropped[~lost].equal(kept[~lost])
    assert abs(lost.float().mean().item() - 0.3) < 0.04


def levels_of(prediction: Prediction, times: FlowTimes = "logit_normal") -> torch.Tensor:
    network = Listener()
    objective = DiffusionObjective(SIGMAS, prediction=prediction, flow_times=times)
    objective(network, batch((20_000, 1, 1, 1)), generator())
    return level(prediction, network.asked[0][1], 1)


def test_levels_are_drawn_as_published() -> None:
    edm = levels_of("edm").log()
    assert edm.mean().item() == pytest.approx(-1.2, abs=0.03)
    assert edm.std().item() == pytest.approx(1.2, abs=0.03)
    flow = levels_of("flow").log()
    assert flow.mean().item() == pytest.approx(0, abs=0.03)
    assert flow.std().item() == pytest.approx(1, abs=0.03)
    sigma = levels_of("flow", "uniform")
    time = (sigma / (1 + sigma)).sort().values
    torch.testing.assert_close(time, torch.linspace(0, 1, len(time)), atol=0.02, rtol=0)
    for prediction in ("noise", "velocity", "image"):
        places = torch.searchsorted(SIGMAS, levels_of(prediction)).float() / 1000
        assert places.mean().item() == pytest.approx(0.5, abs=0.01)
        assert places.std().item() == pytest.approx(12**-0.5, abs=0.01)


def test_timesteps_and_conditions_reach_the_network_row_by_row() -> None:
    network = Listener()
    z_0, condition = torch.zeros(500, 2, 1, 1, 1), torch.rand(500, 4)
    DiffusionObjective(SIGMAS[:100])(network, (z_0, condition), generator())
    _, step, told = network.asked[0]
    assert told.equal(condition)
    assert step.shape == (500,)
    assert (step.min(), step.max()) == (0, 99)
    assert abs(step.float().mean().item() - 49.5) < 4
