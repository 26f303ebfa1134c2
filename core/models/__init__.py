"""The systems of Vitrael: ``SYSTEMS`` names each kind once, and nothing registers itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vitrael.core.configs import BrainLDMConfig, ReidEncoderConfig
from vitrael.core.interfaces import Codec, Denoiser, Embedder, Objective
from vitrael.core.models.brain_ldm import build_codec, build_denoiser, trained_sigmas
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.models.spec import Parts, SystemSpec
from vitrael.core.sampling.denoisers import VelocityDenoiser
from vitrael.core.training.contrastive import ContrastiveObjective
from vitrael.core.training.objectives import AutoencoderObjective, VelocityObjective


def _build_brain_ldm(config: BrainLDMConfig, seed: int) -> Parts:
    return {
        "codec": build_codec(config, seed=seed),
        "teacher": build_denoiser(config, config.teacher, seed=seed),
        "student": build_denoiser(config, config.student, seed=seed),
    }


def _brain_ldm_objective(config: BrainLDMConfig, part: str) -> Objective:
    if part == "codec":
        codec = config.codec
        return AutoencoderObjective(kl_weight=codec.kl_weight, square_weight=codec.square_weight)
    return VelocityObjective(trained_sigmas(getattr(config, part)))


def _teacher_denoiser(parts: Parts, config: BrainLDMConfig) -> Denoiser:
    return VelocityDenoiser(parts["teacher"], trained_sigmas(config.teacher))


SYSTEMS: Final[Mapping[str, SystemSpec]] = {
    "brain_ldm": SystemSpec(
        kind="brain_ldm",
        config=BrainLDMConfig,
        build=_build_brain_ldm,
        objective=_brain_ldm_objective,
        roles={
            Codec: lambda parts, _: parts["codec"],
            Denoiser: _teacher_denoiser,
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
