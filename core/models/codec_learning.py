"""What a codec learns by: reconstruction, and how its images look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitrael.core.metrics.medicalnet import read_medicalnet
from vitrael.core.models.nets.critic import build_critic_network
from vitrael.core.training.critic import Critic
from vitrael.core.training.objectives import AutoencoderObjective
from vitrael.core.training.perceptual import FeaturePerceptual, GradientPerceptual

if TYPE_CHECKING:
    from vitrael.core.configs import BrainLDMConfig
    from vitrael.core.training.perceptual import Perceptual


class CodecLearning(NamedTuple):
    """An objective, the critic that the loop trains beside it, and what its terms are called."""

    objective: AutoencoderObjective
    critic: Critic | None
    perceptual: str
    """``none``, or what is compared, weights by their digest; a fallback says so."""


def codec_learning(
    system: BrainLDMConfig, *, seed: int, weights: Path | None = None, device: str = "cpu"
) -> CodecLearning:
    """Return what a codec learns by; without ``weights`` edges stand in for MedicalNet.

    Raises WeightsError for a file of weights that cannot be used.
    """
    config = system.codec
    perceptual: Perceptual | None = None
    name = "none"
    if config.perceptual_weight:
        perceptual, name = _perceptual(config.perceptual, weights, device=device)
    critic = None
    if config.critic is not None:
        network = build_critic_network(config.critic, dimensions=system.dimensions, seed=seed)
        critic = Critic(network, config.critic)
    objective = AutoencoderObjective(
        kl_weight=config.kl_weight,
        square_weight=config.square_weight,
        perceptual=perceptual,
        perceptual_weight=config.perceptual_weight,
        critic=critic,
    )
    return CodecLearning(objective, critic, name)


def _perceptual(kind: str, weights: Path | None, *, device: str) -> tuple[Perceptual, str]:
    if kind == "gradients":
        return GradientPerceptual(), "gradients"
    if weights is None:
        return GradientPerceptual(), "gradients (fallback: no MedicalNet weights were given)"
    network = read_medicalnet(weights, device=device)
    return FeaturePerceptual(network.stages, name=network.name), network.name
