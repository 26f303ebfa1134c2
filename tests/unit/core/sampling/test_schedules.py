"""Noise levels rise while noise is added and fall to nothing while it is taken away."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrael.core.sampling.schedules import sampling_sigmas, scaled_linear_sigmas


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
