"""Noise levels rise while noise is added and fall to nothing while it is taken away."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch

from vitrael.core.configs import Prediction, SamplerName
from vitrael.core.errors import DataError, UsageError
from vitrael.core.sampling.schedules import (
    cosine_sigmas,
    falling_levels,
    flow_sigmas,
    karras_sigmas,
    linear_sigmas,
    log_snr_sigmas,
    partial_levels,
    sampling_levels,
    sampling_sigmas,
    scaled_linear_sigmas,
)


@pytest.fixture(scope="module")
def sigmas() -> torch.Tensor:
    return scaled_linear_sigmas(1_000, beta_start=0.0015, beta_end=0.0205)


def test_noise_rises_from_almost_none_to_almost_all(sigmas: torch.Tensor) -> None:
    assert sigmas.shape == (1_000,)
    assert sigmas.dtype == torch.float32
    assert (sigmas.diff() > 0).all()
    alpha_bar = 1 / (1 + sigmas.double() ** 2)
    assert alpha_bar[0].item() == pytest.approx(1 - 0.0015, rel=1e-6)
    assert alpha_bar[-1].item() < 1e-3


def test_levels_are_those_of_the_paper_s_betas(sigmas: torch.Tensor) -> None:
    beta = np.linspace(0.0015**0.5, 0.0205**0.5, 1_000) ** 2
    alpha_bar = np.cumprod(1 - beta)
    np.testing.assert_allclose(sigmas.numpy() ** 2, 1 / alpha_bar - 1, rtol=1e-5)


def test_levels_are_those_of_monai(sigmas: torch.Tensor) -> None:
    from monai.networks.schedulers import DDIMScheduler

    peer = DDIMScheduler(
        num_train_timesteps=1_000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0205
    )
    expected = ((1 - peer.alphas_cumprod) / peer.alphas_cumprod).sqrt()
    torch.testing.assert_close(sigmas, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 5, 25, 1_000])
def test_sampling_falls_from_the_last_level_to_zero(steps: int, sigmas: torch.Tensor) -> None:
    falling = sampling_sigmas(sigmas, steps)
    assert falling.shape == (steps + 1,)
    assert falling[0] == sigmas[-1]
    assert falling[-2] == sigmas[0]
    assert falling[-1] == 0
    assert (falling.diff() < 0).all()


def test_single_step_goes_from_the_last_level_to_zero(sigmas: torch.Tensor) -> None:
    assert sampling_sigmas(sigmas, 1).tolist() == [sigmas[-1].item(), 0]


def test_linear_and_cosine_levels_are_those_of_monai() -> None:
    from monai.networks.schedulers import DDPMScheduler

    peer = DDPMScheduler(1_000, "linear_beta").alphas_cumprod.double()
    expected = ((1 - peer) / peer).sqrt().float()
    ours = linear_sigmas(1_000, beta_start=1e-4, beta_end=0.02)
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
    assert (cosine_sigmas(1_000).diff() > 0).all()


def test_cosine_levels_follow_the_cosine() -> None:
    """Nichol and Dhariwal 2021: alpha_bar is a squared cosine of time but for the last levels."""
    time = torch.arange(1, 951, dtype=torch.float64) / 1_000
    wave = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    first = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    alpha_bar = 1 / (1 + cosine_sigmas(1_000)[:950].double() ** 2)
    torch.testing.assert_close(alpha_bar, wave / first, rtol=1e-4, atol=1e-7)
    assert cosine_sigmas(1_000).isfinite().all()


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_levels_between_bounds_keep_both_ends_and_then_vanish(steps: int) -> None:
    for levels in (karras_sigmas(0.03, 90.1, steps=steps), log_snr_sigmas(0.03, 90.1, steps=steps)):
        assert levels.shape == (steps + 1,)
        assert levels[0] == 90.1
        assert levels[-1] == 0
        assert steps == 1 or levels[-2] == 0.03
        assert (levels.diff() < 0).all()


def test_karras_levels_are_even_in_the_root_and_others_in_the_logarithm() -> None:
    root = karras_sigmas(0.03, 90, steps=9)[:-1] ** (1 / 7)
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(8))
    logarithm = log_snr_sigmas(0.03, 90, steps=9)[:-1].log()
    torch.testing.assert_close(logarithm.diff(), logarithm.diff()[:1].expand(8))
    linear = karras_sigmas(0.03, 90, steps=9, rho=1)[:-1]
    torch.testing.assert_close(linear.diff(), linear.diff()[:1].expand(8))


def test_flow_levels_are_even_in_the_time_of_the_flow() -> None:
    levels = flow_sigmas(10, start=0.9)
    time = levels / (1 + levels)
    torch.testing.assert_close(time, torch.linspace(0.9, 0, 11, dtype=torch.float64))


@pytest.mark.parametrize("sampler", get_args(SamplerName))
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_every_prediction_and_sampler_has_levels(
    prediction: Prediction, sampler: SamplerName, sigmas: torch.Tensor
) -> None:
    for steps in (1, 2, 12):
        levels = sampling_levels(prediction, sigmas, steps=steps, sampler=sampler)
        assert len(falling_levels(levels)) == steps + 1
        highest = {"edm": 80.0, "flow": 999.0}.get(prediction, sigmas[-1].item())
        assert levels[0].item() == pytest.approx(highest, rel=1e-6)
    if prediction in {"noise", "velocity", "image"}:
        ends = levels[[0, -2]].float()
        assert torch.equal(ends, sigmas[[-1, 0]])  # both ends are trained ones, to the last bit


def test_ddim_gets_trained_levels_and_unipc_gets_even_log_snr(sigmas: torch.Tensor) -> None:
    even = sampling_levels("velocity", sigmas, steps=50)
    assert torch.equal(even, sampling_sigmas(sigmas, 50))
    fast = sampling_levels("velocity", sigmas, steps=12, sampler="unipc")
    expected = log_snr_sigmas(sigmas[0].item(), sigmas[-1].item(), steps=12)
    assert torch.equal(fast, expected)


def test_edm_and_flow_need_no_trained_levels() -> None:
    for prediction in ("edm", "flow"):
        assert sampling_levels(prediction, None, steps=5, sampler="heun")[-1] == 0
    with pytest.raises(UsageError, match="give the trained sigmas"):
        sampling_levels("noise", None, steps=5)


def test_partial_levels_lead_from_any_level_to_zero(sigmas: torch.Tensor) -> None:
    levels = sampling_sigmas(sigmas, 20)
    between = partial_levels(levels, 1.234)
    assert between[0].item() == pytest.approx(1.234)
    assert torch.equal(between[1:], levels[levels < 1.234])
    for start in levels[:-1].tolist():  # a level of the list is not walked twice
        tail = partial_levels(levels, start)
        assert torch.equal(tail, levels[levels <= start])
    assert partial_levels(levels, 1e-3).tolist() == pytest.approx([1e-3, 0])
    assert partial_levels(levels, 1e3)[1:].tolist() == levels.tolist()


@pytest.mark.parametrize("start", [0.0, -1.0, math.inf, math.nan])
def test_partial_start_without_noise_is_refused(start: float, sigmas: torch.Tensor) -> None:
    with pytest.raises(DataError, match="positive sigma"):
        partial_levels(sampling_sigmas(sigmas, 5), start)


def test_bad_numbers_of_steps_are_refused(sigmas: torch.Tensor) -> None:
    for steps in (0, -3):
        with pytest.raises(DataError, match="at least one step"):
            sampling_sigmas(sigmas, steps)
        with pytest.raises(DataError, match="at least one step"):
            karras_sigmas(0.1, 1, steps=steps)
        with pytest.raises(DataError, match="at least one step"):
            flow_sigmas(steps)
    with pytest.raises(DataError, match="at most 1000 steps"):
        sampling_sigmas(sigmas, 1_001)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (0.1, math.inf)]
)
def test_bounds_without_room_between_are_refused(low: float, high: float) -> None:
    with pytest.raises(DataError, match="0 < low < high"):
        log_snr_sigmas(low, high, steps=3)


@pytest.mark.parametrize("start", [0.0, 1.0, 1.5, math.nan])
def test_flow_starts_inside_its_time(start: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        flow_sigmas(5, start=start)
