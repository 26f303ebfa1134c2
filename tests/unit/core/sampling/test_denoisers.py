"""Whatever a network predicts, its wrapper loses nothing between the prediction and the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch

from vitrael.core.configs import Prediction
from vitrael.core.errors import UsageError
from vitrael.core.interfaces import Denoiser
from vitrael.core.rng import torch_stream
from vitrael.core.sampling.denoisers import (
    DENOISERS,
    NULL_CONDITION,
    DiscreteDenoiser,
    EDMDenoiser,
    FlowDenoiser,
    GuidedDenoiser,
    estimate,
    make_denoiser,
    signal_and_noise,
    timestep_of,
)
from vitrael.core.sampling.schedules import cosine_sigmas, linear_sigmas, scaled_linear_sigmas

SIGMAS = scaled_linear_sigmas(1_000, beta_start=0.0015, beta_end=0.0205)
LEVELS = SIGMAS[torch.tensor([0, 10, 100, 500, 900, 999])]
PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
SHAPES = [(2, 3, 3, 3), (2, 3, 3)]
Truth = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

ANSWERS: dict[Prediction, Truth] = {
    "noise": lambda _, noise, __: noise,
    "velocity": lambda x_0, noise, sigma: (noise - sigma * x_0) / (1 + sigma**2).sqrt(),
    "image": lambda x_0, *_: x_0,
    "edm": lambda x_0, noise, sigma: (
        (x_0 - (x_0 + sigma * noise) / (1 + sigma**2)) * (1 + sigma**2).sqrt() / sigma
    ),
    "flow": lambda x_0, noise, _: noise - x_0,
}
TIMES: dict[Prediction, torch.Tensor] = {
    "noise": torch.tensor([0.0, 10, 100, 500, 900, 999]),
    "velocity": torch.tensor([0.0, 10, 100, 500, 900, 999]),
    "image": torch.tensor([0.0, 10, 100, 500, 900, 999]),
    "edm": 250 * LEVELS.log(),
    "flow": 1000 * LEVELS / (1 + LEVELS),
}


def rows(shape: tuple[int, ...] = SHAPES[0]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch_stream(2, "rows")
    x_0, noise = torch.randn(2, 6, *shape, generator=rng)
    return x_0, noise, LEVELS.reshape(-1, *[1] * len(shape))


class Perfect:
    """A network that knows the truth, plus an error; it keeps what it was shown."""

    def __init__(self, prediction: Prediction, shape: tuple[int, ...], error: float = 0) -> None:
        self.answer = ANSWERS[prediction](*rows(shape)) + error
        self.state = self.timestep = torch.empty(0)

    def __call__(
        self, state: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        self.state, self.timestep = state, timestep
        assert condition.shape == (6, 4)
        return self.answer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_perfect_prediction_gives_exactly_the_clean_image(
    prediction: Prediction, shape: tuple[int, ...]
) -> None:
    x_0, noise, sigma = rows(shape)
    x_t, condition = x_0 + sigma * noise, torch.zeros(6, 4)
    network = Perfect(prediction, shape)
    found = make_denoiser(network, prediction, sigmas=SIGMAS)(x_t, LEVELS, condition)
    torch.testing.assert_close(found, x_0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network.timestep, TIMES[prediction], atol=1e-3, rtol=1e-6)
    wrong = make_denoiser(Perfect(prediction, shape, 0.1), prediction, sigmas=SIGMAS)
    assert (wrong(x_t, LEVELS, condition) - x_0).abs().max() > 0.05  # the control


@pytest.mark.parametrize("prediction", ["noise", "velocity", "image", "edm"])
def test_network_sees_unit_variance_at_every_level(prediction: Prediction) -> None:
    x_0, noise, sigma = rows()
    network = Perfect(prediction, SHAPES[0])
    denoiser = make_denoiser(network, prediction, sigmas=SIGMAS)
    denoiser(x_0 + sigma * noise, LEVELS, torch.zeros(6, 4))
    alpha, beta = signal_and_noise(LEVELS, x_0.ndim)
    torch.testing.assert_close(network.state, alpha * x_0 + beta * noise, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alpha**2 + beta**2, torch.ones_like(alpha))
    torch.testing.assert_close(beta / alpha, sigma, rtol=1e-4, atol=0)


def test_flow_network_sees_the_straight_line_between_data_and_noise() -> None:
    x_0, noise, sigma = rows()
    network = Perfect("flow", SHAPES[0])
    FlowDenoiser(network)(x_0 + sigma * noise, LEVELS, torch.zeros(6, 4))
    time = sigma / (1 + sigma)
    torch.testing.assert_close(network.state, (1 - time) * x_0 + time * noise, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_edm_scales_keep_network_and_target_at_unit_variance(sigma_data: float) -> None:
    """Karras et al. 2022, appendix B.6: for white data both have variance 1 at every level."""
    rng = torch_stream(3, "white")
    x_0 = sigma_data * torch.randn(4_000, 1, generator=rng)
    for level in (0.01, 1.0, 50.0):
        x_t = x_0 + level * torch.randn(4_000, 1, generator=rng)
        seen: list[torch.Tensor] = []

        def silent(state: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            seen.append(state)  # noqa: B023 - used before the next turn
            return torch.zeros_like(state)

        def loud(state: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(state)

        sigma, nothing = torch.full((4_000,), level), torch.zeros(4_000, 0)
        skipped = EDMDenoiser(silent, sigma_data=sigma_data)(x_t, sigma, nothing)
        c_out = EDMDenoiser(loud, sigma_data=sigma_data)(x_t, sigma, nothing) - skipped
        assert seen[0].std().item() == pytest.approx(1, rel=0.05)
        assert ((x_0 - skipped) / c_out).std().item() == pytest.approx(1, rel=0.05)


def test_factors_scale_as_many_axes_as_there_are() -> None:
    assert signal_and_noise(SIGMAS[:3], 5)[0].shape == (3, 1, 1, 1, 1)
    assert signal_and_noise(SIGMAS[:3], 4)[0].shape == (3, 1, 1, 1)


@pytest.mark.parametrize(
    "sigmas",
    [
        SIGMAS,
        SIGMAS.double(),
        linear_sigmas(1_000, beta_start=1e-4, beta_end=0.02),
        cosine_sigmas(1_000),
        scaled_linear_sigmas(7, beta_start=0.01, beta_end=0.5),
    ],
)
def test_trained_levels_have_whole_timesteps(sigmas: torch.Tensor) -> None:
    whole = list(range(len(sigmas)))
    assert timestep_of(sigmas, sigmas).tolist() == whole
    assert timestep_of(sigmas.float(), sigmas.double()).tolist() == whole
    assert timestep_of(sigmas * (1 + 1e-7), sigmas).tolist() == whole


def test_timesteps_between_are_linear_in_the_logarithm() -> None:
    for share in (0.1, 0.5, 0.9):
        between = (SIGMAS[4].log() * (1 - share) + SIGMAS[5].log() * share).exp()
        assert timestep_of(between[None], SIGMAS).item() == pytest.approx(4 + share, abs=1e-4)
    rising = timestep_of(torch.linspace(0.04, 90, 10_000), SIGMAS)
    assert (rising.diff() >= 0).all()
    assert rising.is_floating_point()


def test_timesteps_are_clamped_to_what_was_trained() -> None:
    assert timestep_of(torch.tensor([0.0, 1e-9, 1e9]), SIGMAS).tolist() == [0, 0, 999]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_half_precision_of_the_network_does_not_change_the_dtype(prediction: Prediction) -> None:
    x_0, _, _ = rows()
    denoiser = make_denoiser(lambda state, *_: state.bfloat16(), prediction, sigmas=SIGMAS)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert denoiser(x_0.to(dtype), LEVELS, torch.zeros(6, 4)).dtype == dtype


def test_half_precision_of_the_state_keeps_the_timestep() -> None:
    told: list[torch.Tensor] = []

    def network(state: torch.Tensor, timestep: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        told.append(timestep)
        return state

    denoiser = DiscreteDenoiser(network, SIGMAS, prediction="velocity")
    estimate(denoiser, torch.ones(1, 1).bfloat16(), SIGMAS[777].item(), torch.zeros(1, 0))
    assert told[0].tolist() == [777]
    assert timestep_of(SIGMAS[777:778].bfloat16(), SIGMAS).item() != 777  # the control


def test_noise_prediction_loses_no_more_than_its_inputs_have_lost() -> None:
    """At large sigma the image is a small difference; it is taken from what has least rounding."""
    rng = torch_stream(4, "wide")
    x_0, noise = torch.randn(2, 1, 1000, generator=rng, dtype=torch.float64)
    sigma = torch.tensor([SIGMAS[-1]], dtype=torch.float64)
    x_t = (x_0 + sigma * noise).float()
    denoiser = DiscreteDenoiser(lambda *_: noise.float(), SIGMAS, prediction="noise")
    ours = (denoiser(x_t, sigma.float(), torch.zeros(1, 0)) - x_0).abs().max().item()
    alpha, beta = signal_and_noise(sigma.float(), 2)
    usual = ((alpha * x_t - beta * noise.float()) / alpha - x_0).abs().max().item()
    spacing = 2**-23 * x_t.abs().max().item()
    assert ours <= 2 * spacing
    assert usual > ours


@pytest.mark.parametrize("level", [1e-6, 1e-4])
@pytest.mark.parametrize("prediction", ["noise", "velocity", "edm", "flow"])
def test_almost_no_noise_is_almost_no_change(prediction: Prediction, level: float) -> None:
    x_0, _, _ = rows()
    denoiser = make_denoiser(
        lambda state, *_: 3 * torch.ones_like(state), prediction, sigmas=SIGMAS
    )
    found = denoiser(x_0, torch.full((6,), level), torch.zeros(6, 4))
    assert (found - x_0).abs().max() < 10 * level


def test_every_prediction_has_its_wrapper() -> None:
    assert tuple(DENOISERS) == PREDICTIONS
    for prediction in PREDICTIONS:
        denoiser = make_denoiser(lambda *asked: asked[0], prediction, sigmas=SIGMAS)
        assert isinstance(denoiser, Denoiser)


@pytest.mark.parametrize("prediction", ["noise", "velocity", "image"])
def test_trained_levels_that_are_missing_are_asked_for(prediction: Prediction) -> None:
    with pytest.raises(UsageError, match="give the trained sigmas"):
        make_denoiser(lambda *asked: asked[0], prediction)


def test_discrete_network_of_another_process_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot predict 'edm'.*noise, velocity, image"):
        DiscreteDenoiser(lambda *asked: asked[0], SIGMAS, prediction="edm")  # type: ignore[arg-type]


class Listener:
    """A Denoiser whose answer is linear in the condition; it counts calls and rows."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        self.batches.append(len(x_t))
        heard = (condition.sum(1) / sigma).reshape(-1, *[1] * (x_t.ndim - 1))
        return 0.5 * x_t + heard


def guided(
    weight: float, interval: tuple[float, float] | None = None
) -> tuple[torch.Tensor, list[int]]:
    x_0, _, _ = rows()
    listener = Listener()
    denoiser = GuidedDenoiser(listener, weight=weight, interval=interval)
    return denoiser(x_0, LEVELS, torch.full((6, 4), 0.3)), listener.batches


def plain(value: float) -> torch.Tensor:
    return Listener()(rows()[0], LEVELS, torch.full((6, 4), value))


def test_guidance_of_weight_one_is_the_conditional_answer() -> None:
    found, batches = guided(1.0)
    assert torch.equal(found, plain(0.3))
    assert batches == [6]


def test_guidance_of_weight_zero_is_the_unconditional_answer() -> None:
    found, batches = guided(0.0)
    assert torch.equal(found, plain(NULL_CONDITION))
    assert batches == [6]


@pytest.mark.parametrize("weight", [0.5, 1 + 1e-9, 3.0])
def test_guidance_is_linear_in_its_weight_and_one_doubled_call(weight: float) -> None:
    found, batches = guided(weight)
    leaning = plain(NULL_CONDITION) + weight * (plain(0.3) - plain(NULL_CONDITION))
    torch.testing.assert_close(found, leaning)
    assert batches == [12]


def test_guidance_outside_its_interval_is_the_conditional_answer_alone() -> None:
    found, batches = guided(3.0, (1e3, 1e4))
    assert torch.equal(found, plain(0.3))
    assert batches == [6]
    low, high = LEVELS[2].item(), LEVELS[3].item()
    found, batches = guided(3.0, (low, high))
    inside = [2, 3]
    torch.testing.assert_close(found[inside], guided(3.0)[0][inside])
    outside = [0, 1, 4, 5]
    torch.testing.assert_close(found[outside], plain(0.3)[outside])
    assert batches == [12]
    unconditional = guided(0.0, (low, high))[0]
    torch.testing.assert_close(unconditional[inside], plain(NULL_CONDITION)[inside])
    torch.testing.assert_close(unconditional[outside], plain(0.3)[outside])


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_weight_that_is_no_number_is_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="weight"):
        guided(weight)


@pytest.mark.parametrize("interval", [(2.0, 1.0), (math.nan, 1.0), (0.1, math.nan), (-2.0, -1.0)])
def test_interval_that_holds_no_level_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="interval"):
        guided(3.0, interval)
    assert guided(3.0, (0.0, math.inf))[0].equal(guided(3.0)[0])  # the control: all levels


def test_null_condition_lies_outside_what_is_asked() -> None:
    assert NULL_CONDITION < 0
    assert math.isfinite(NULL_CONDITION)
