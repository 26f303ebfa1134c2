"""The systems of Vitrael: ``SYSTEMS`` names each kind once, and nothing registers itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vitrael.core.configs import (
    BrainLDMConfig,
    DiffusionConfig,
    ReidEncoderConfig,
    ScoreFusionConfig,
    ViewExpertConfig,
    ViewRetrievalConfig,
)
from vitrael.core.interfaces import Codec, Denoiser, Embedder, Objective, Predictor
from vitrael.core.models.brain_ldm import (
    build_codec,
    build_denoiser,
    latent_denoiser,
    trained_sigmas,
)
from vitrael.core.models.codec_learning import codec_learning
from vitrael.core.models.nets.view_net import ViewNet
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.models.score_fusion import (
    FusionObjective,
    JoinedExperts,
    ScoreFusion,
    build_fusion,
)
from vitrael.core.models.spec import Parts, SystemSpec
from vitrael.core.models.view_expert import (
    SiteViews,
    ViewExpert,
    build_view_net,
    complete_expert,
)
from vitrael.core.models.view_panel import ViewPanel, assemble_panel, shape_of
from vitrael.core.models.view_retrieval import build_view_encoder
from vitrael.core.training.clip_contrast import ClipContrastObjective
from vitrael.core.training.contrastive import ContrastiveObjective
from vitrael.core.training.diffusion import DiffusionObjective
from vitrael.core.training.objectives import ClassifierObjective


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


def _build_view_expert(config: ViewExpertConfig, seed: int, site: SiteViews) -> Parts:
    return {"net": build_view_net(config, len(site.labels), seed=seed).eval()}


def _view_expert(parts: Mapping[str, ViewNet], _: ViewExpertConfig, site: SiteViews) -> ViewExpert:
    return complete_expert(parts["net"], site.image_BCHW, name=site.name, labels=site.labels)


def _build_score_fusion(config: ScoreFusionConfig, seed: int, joined: JoinedExperts) -> Parts:
    shapes = [shape_of(expert) for expert in joined.experts]
    return {"fusion": build_fusion(shapes, seed=seed, hidden=config.hidden).eval()}


def _view_panel(
    parts: Mapping[str, ScoreFusion], _: ScoreFusionConfig, joined: JoinedExperts
) -> ViewPanel:
    return assemble_panel(joined.experts, parts["fusion"], joined.config, recipe=joined.recipe)


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
        build=lambda config, seed: {
            "encoder": build_reid_encoder(config, seed=seed),
            "copies": build_reid_encoder(config, seed=seed, learns="copies"),
        },
        objective=lambda config, _: ContrastiveObjective(config.temperature),
        roles={Embedder: lambda parts, _: parts["encoder"]},
    ),
    "view_expert": SystemSpec(
        kind="view_expert",
        config=ViewExpertConfig,
        build=_build_view_expert,
        objective=lambda _, __, site: ClassifierObjective(classes=len(site.labels)),
        roles={Predictor: _view_expert, Embedder: _view_expert},
    ),
    "score_fusion": SystemSpec(
        kind="score_fusion",
        config=ScoreFusionConfig,
        build=_build_score_fusion,
        objective=lambda _, __, ___: FusionObjective(),
        roles={Predictor: _view_panel},
    ),
    "view_retrieval": SystemSpec(
        kind="view_retrieval",
        config=ViewRetrievalConfig,
        build=lambda config, seed: {"encoder": build_view_encoder(config, seed=seed)},
        objective=lambda config, _: ClipContrastObjective(config.temperature),
        roles={Embedder: lambda parts, _: parts["encoder"]},
    ),
}
"""Kind of a system to what it is; a study names the kind, an unknown one fails when it loads."""
