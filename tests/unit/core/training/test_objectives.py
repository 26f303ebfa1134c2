"""What is minimized is zero where it should be, and the parts add up to the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.factories.systems import brain_ldm, images
from vitrael.core.configs import BrainLDMConfig, CriticConfig
from vitrael.core.models.brain_ldm import build_codec
from vitrael.core.models.nets.critic import build_critic_network
from vitrael.core.training.critic import Critic
from vitrael.core.training.objectives import AutoencoderObjective
from vitrael.core.training.perceptual import GradientPerceptual


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class PerfectCodec:
    """Stands for a codec whose latents are standard normal and whose images come back."""

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.image = x
        return torch.zeros(len(x), 2, 4, 4, 4), torch.ones(len(x), 2, 4, 4, 4)

    def reconstruct(self, z: torch.Tensor) -> torch.Tensor:
        del z
        return self.image


def test_perfect_codec_has_no_loss() -> None:
    objective = AutoencoderObjective(kl_weight=1.0, square_weight=4.0)
    codec: Any = PerfectCodec()
    loss = objective(codec, images(2), generator())
    assert loss.total.item() == pytest.approx(0, abs=1e-6)


def test_parts_add_up_to_the_whole() -> None:
    codec = build_codec(brain_ldm(), seed=1)
    with torch.no_grad():
        loss = AutoencoderObjective(kl_weight=0.5, square_weight=4.0)(codec, images(2), generator())
    parts = {name: value.item() for name, value in loss.parts.items()}
    assert loss.total.item() == pytest.approx(
        parts["l1"] + 4.0 * parts["square"] + 0.5 * parts["kl"], rel=1e-5
    )
    assert all(value > 0 for value in parts.values())


def test_divergence_is_that_of_the_closed_form() -> None:
    class Shifted(PerfectCodec):
        def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, std = super().posterior(x)
            return mean + 0.7, std * 0.4

    codec: Any = Shifted()
    loss = AutoencoderObjective(kl_weight=1.0, square_weight=0.0)(codec, images(2), generator())
    normal, own = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.7, 0.4)
    expected = torch.distributions.kl_divergence(own, normal).item()
    assert loss.parts["kl"].item() == pytest.approx(expected, rel=1e-5)


def test_divergence_of_the_published_preset_weighs_what_the_authors_sum_weighs() -> None:
    """They take 1e-8 of the sum over channels and space, by image; here it is a mean."""
    published = BrainLDMConfig.model_validate({"kind": "brain_ldm", "preset": "pinaya2022"})
    rng = generator()
    mean = torch.randn((2, 3, 20, 28, 20), generator=rng)
    std = 0.1 + torch.rand(mean.shape, generator=rng)

    class Published(PerfectCodec):
        def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.image = x
            return mean, std

    weight = published.codec.kl_weight
    codec: Any = Published()
    loss = AutoencoderObjective(kl_weight=weight, square_weight=0.0)(codec, images(2), generator())
    normal, own = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(mean, std)
    divergence = torch.distributions.kl_divergence(own, normal)
    expected = 1e-8 * divergence.sum().item() / len(mean)
    assert loss.total.item() == pytest.approx(expected, rel=1e-3)
    assert 1e-8 * loss.parts["kl"].item() < expected / 30_000  # the control: 1e-8 of the mean


def test_how_an_image_looks_is_added_with_its_weights() -> None:
    codec = build_codec(brain_ldm(), seed=1)
    config = CriticConfig(channels=4, layers=1, weight=0.25)
    critic = Critic(build_critic_network(config, dimensions=3, seed=1), config)
    plain = AutoencoderObjective(kl_weight=0.5, square_weight=4.0)
    full = AutoencoderObjective(
        kl_weight=0.5,
        square_weight=4.0,
        perceptual=GradientPerceptual(),
        perceptual_weight=2.0,
        critic=critic,
    )
    with torch.no_grad():
        alone, whole = (objective(codec, images(2), generator()) for objective in (plain, full))
    added = {name: whole.parts[name].item() for name in set(whole.parts) - set(alone.parts)}
    assert set(added) == {"perceptual", "adversarial", "critic"}
    assert all(value > 0 for value in added.values())
    assert {name: whole.parts[name] for name in alone.parts} == alone.parts
    assert whole.total.item() == pytest.approx(
        alone.total.item()
        + 2.0 * added["perceptual"]
        + 0.25 * added["adversarial"]
        + added["critic"],
        rel=1e-5,
    )


def test_gradients_of_codec_and_critic_never_cross() -> None:
    codec = build_codec(brain_ldm(), seed=1)
    config = CriticConfig(channels=4, layers=1, weight=0.25)
    critic = Critic(build_critic_network(config, dimensions=3, seed=1), config)

    def slopes(name: str) -> tuple[bool, bool]:
        objective = AutoencoderObjective(kl_weight=0, square_weight=0, critic=critic)
        part = objective(codec, images(2), generator()).parts[name]
        codec.zero_grad()
        critic.zero_grad()
        part.backward()
        reached = [
            any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
            for module in (codec, critic)
        ]
        return reached[0], reached[1]

    assert slopes("adversarial") == (True, False)
    assert slopes("critic") == (False, True)
    assert slopes("l1") == (True, False)
