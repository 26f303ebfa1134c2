"""The U-Net sees its condition twice, its timestep, and every row alone."""

from __future__ import annotations

import pytest
import torch

from tests.factories.systems import brain_ldm
from vitrael.core.models.brain_ldm import build_denoiser
from vitrael.core.models.nets.unet import HybridUNet


@pytest.fixture(scope="module")
def unet() -> HybridUNet:
    """A U-Net that has left its start, at which its last layer is zero."""
    config = brain_ldm()
    network = build_denoiser(config, config.teacher, seed=1)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    return network


def asked(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    state = torch.randn(count, 2, 4, 4, 4, generator=rng)
    return state, torch.tensor([0, 50, 99][:count]), torch.rand(count, 4, generator=rng)


@torch.no_grad()
def answer(unet: HybridUNet, *arguments: torch.Tensor) -> torch.Tensor:
    return unet(*arguments)


def test_answer_has_the_shape_of_the_state(unet: HybridUNet) -> None:
    state, step, condition = asked()
    assert answer(unet, state, step, condition).shape == state.shape


def test_rows_do_not_see_each_other(unet: HybridUNet) -> None:
    state, step, condition = asked()
    together = answer(unet, state, step, condition)
    alone = [
        answer(unet, state[i : i + 1], step[i : i + 1], condition[i : i + 1]) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_condition_and_timestep_matter(unet: HybridUNet) -> None:
    state, step, condition = asked()
    usual = answer(unet, state, step, condition)
    for column in range(4):
        changed = condition.clone()
        changed[:, column] = 1 - changed[:, column]
        assert not torch.allclose(answer(unet, state, step, changed), usual, atol=1e-5)
    assert not torch.allclose(answer(unet, state, step.flip(0), condition), usual, atol=1e-4)


def test_fresh_network_predicts_nothing() -> None:
    config = brain_ldm()
    fresh = build_denoiser(config, config.teacher, seed=1)
    assert answer(fresh, *asked()).abs().max() == 0


def test_plane_is_answered_as_a_volume_is() -> None:
    config = brain_ldm().teacher
    unet = HybridUNet(config, latent_channels=2, conditions=4, dimensions=2).eval()
    with torch.no_grad():
        found = unet(torch.randn(3, 2, 8, 4), torch.tensor([1.0, 5.5, 90.0]), torch.rand(3, 4))
    assert found.shape == (3, 2, 8, 4)
