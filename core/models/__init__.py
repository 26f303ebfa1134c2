"""The systems of Vitrael: ``SYSTEMS`` names each kind once, and nothing registers itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vitrael.core.configs import BrainLDMConfig, DiffusionConfig, ReidEncoderConfig
from vitrael.core.interfaces import Codec, Denoiser, Embedder, Objective
from vitrael.core.models.brain_ldm import (
    build_codec,
    build_denoiser,
    latent_denoiser,
    trained_sigmas,
)
from vitrael.core.models.codec_learning import codec_learning
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.models.spec import Parts, SystemSpec
from vitrael.core.training.contrastive import ContrastiveObjective
from vitrael.core.training.diffusion import DiffusionObjective


def _build_brain_ldm(config: BrainLDMConfig, seed: int) -> Parts:
    return {
        "codec": build_codec(config, seed=seed),
        "teacher": build_denoiser(config, config.teacher, seed=seed),
        "student": build_denoiser(config, config.student, seed=seed),
    }


_CRITIC_SEED: Final = 0
"""A critic is new in every round, and no weight of it is kept."""


def _brain_ldm_objective(config: BrainLDMConfig, part: str) -> Objective:
    if part == "codec":
        return codec_learning(config, seed=_CRITIC_SEED).objective
    network: DiffusionConfig = getattr(config, part)
    return DiffusionObjective(
        trained_sigmas(network),
        prediction=network.prediction,
        condition_dropout=network.condition_dropout,
        min_snr_gamma=network.min_snr_gamma,
    )


SYSTEMS: Final[Mapping[str, SystemSpec]] = {
    "brain_ldm": SystemSpec(
        kind="brain_ldm",
        config=BrainLDMConfig,
        build=_build_brain_ldm,
        objective=_brain_ldm_objective,
        roles={
            Codec: lambda parts, _: parts["codec"],
            Denoiser: lambda parts, config: latent_denoiser(parts["teacher"], config.teacher),
        },
    ),
    "reid_encoder": SystemSpec(
        kind="reid_encoder",
        config=ReidEncoderConfig,
        build=lambda config, seed: {"encoder": build_reid_encoder(config, seed=seed)},
        objective=lambda config, _: ContrastiveObjective(config.temperature),
        roles={Embedder: lambda parts, _: parts["encoder"]},
    ),
}
"""Kind of a system to what it is; a study names the kind, an unknown one fails when it loads."""
