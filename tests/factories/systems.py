"""The smallest config of every system, its data, and batches that its parts can learn from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from vitrael.core.configs import (
    BrainLDMConfig,
    ReidEncoderConfig,
    ScoreFusionConfig,
    Section,
    ViewExpertConfig,
    ViewRetrievalConfig,
)
from vitrael.core.data.augment import ViewBatch
from vitrael.core.data.recipes import settings_for
from vitrael.core.models import SYSTEMS
from vitrael.core.models.fusion_learning import read_all
from vitrael.core.models.score_fusion import JoinedExperts, merge_classes
from vitrael.core.models.view_expert import (
    SiteViews,
    ViewExpert,
    build_view_net,
    complete_expert,
)
from vitrael.core.models.view_panel import shape_of
from vitrael.core.training.clip_contrast import ClipPairs

GRID = (16, 16, 16)
_TRAINING = {"length_images": 64, "batch_images": 8}
_DIFFUSION = {
    "channels": (8, 16),
    "timesteps": 100,
    "sampling_steps": 5,
    "training": _TRAINING,
}

CONFIGS: dict[str, Section] = {
    "brain_ldm": BrainLDMConfig.model_validate(
        {
            "kind": "brain_ldm",
            "codec": {"channels": (8, 16), "latent_channels": 2, "training": _TRAINING},
            "teacher": _DIFFUSION,
            "student": {**_DIFFUSION, "channels": (8, 8)},
        }
    ),
    "reid_encoder": ReidEncoderConfig.model_validate(
        {"kind": "reid_encoder", "channels": (4, 8), "embedding": 8, "training": _TRAINING}
    ),
    "view_expert": ViewExpertConfig.model_validate(
        {
            "kind": "view_expert",
            "channels": (4, 4, 8, 8),
            "blocks": (1, 1, 1, 1),
            "training": _TRAINING,
        }
    ),
    "score_fusion": ScoreFusionConfig.model_validate(
        {"kind": "score_fusion", "hidden": 4, "training": _TRAINING}
    ),
    "view_retrieval": ViewRetrievalConfig.model_validate(
        {
            "kind": "view_retrieval",
            "channels": (4, 8),
            "features": 16,
            "embedding": 8,
            "training": _TRAINING,
        }
    ),
}
"""Kind to its config; a new system is given a line here."""
SITES = {"north": ("A4C", "A2C"), "south": ("PLAX", "A4C", "PSAX")}
"""Those that bring an expert, with the views that they know."""
PLANES = frozenset({"view_expert", "score_fusion"})
"""Kinds that see pictures; the others see volumes, or clips of as many frames."""


def brain_ldm() -> BrainLDMConfig:
    """Return the tiny brain LDM."""
    config = CONFIGS["brain_ldm"]
    assert isinstance(config, BrainLDMConfig)
    return config


def images(count: int, *, seed: int = 0) -> torch.Tensor:
    """Return ``[B, 1, 16, 16, 16]`` blobs in [0, 1] on black, each of another place and size."""
    rng = torch.Generator().manual_seed(seed)
    lines = torch.linspace(-1, 1, GRID[0])
    points = torch.stack(torch.meshgrid(lines, lines, lines, indexing="ij"))
    centre = 0.5 * torch.rand((count, 3, 1, 1, 1), generator=rng) - 0.25
    width = 0.2 + 0.2 * torch.rand((count, 1, 1, 1), generator=rng)
    return torch.exp(-((points - centre) ** 2).sum(1) / (2 * width**2))[:, None]


def images_of(kind: str, count: int, *, seed: int = 0) -> torch.Tensor:
    """Return blobs as a system sees them: ``[B, 1, 16, 16]`` or ``[B, 1, 16, 16, 16]``."""
    blobs = images(count, seed=seed)
    return blobs[:, :, GRID[0] // 2] if kind in PLANES else blobs


@cache
def data_of(kind: str) -> tuple[Any, ...]:
    """Return what data decide of a system, as the last argument of its fields; mostly nothing."""
    if kind == "view_expert":
        return (site_views("north"),)
    if kind == "score_fusion":
        config = CONFIGS["view_expert"]
        assert isinstance(config, ViewExpertConfig)
        experts = tuple(_expert(name, config) for name in SITES)
        recipe = settings_for("image-2d", grid_vox=GRID[:2])
        return (JoinedExperts(experts, config, recipe),)
    return ()


def site_views(name: str) -> SiteViews:
    """Return twelve pictures of a site, with its labels."""
    return SiteViews(name, SITES[name], images_of("view_expert", 12, seed=len(SITES[name])))


def _expert(name: str, config: ViewExpertConfig) -> ViewExpert:
    site = site_views(name)
    net = build_view_net(config, len(site.labels), seed=len(site.labels))
    return complete_expert(net, site.image_BCHW, name=name, labels=site.labels)


def build_parts(kind: str, seed: int) -> Mapping[str, nn.Module]:
    """Return the networks of a system's smallest config."""
    return SYSTEMS[kind].build(CONFIGS[kind], seed, *data_of(kind))


def batch(kind: str, part: str, *, count: int = 4, seed: int = 0) -> Any:
    """Return what the objective of a system's part is called with."""
    rng = torch.Generator().manual_seed(seed)
    own = images_of(kind, count, seed=seed)
    if kind == "reid_encoder":
        return own, own * 0.9
    if kind == "view_retrieval":
        return ClipPairs(own, own.roll(1, 2), ~torch.eye(count, dtype=torch.bool))
    if kind == "view_expert":
        label_B = torch.arange(count) % len(SITES["north"])
        return ViewBatch(own, label_B, torch.zeros(count, dtype=torch.bool))
    if kind == "score_fusion":
        experts = data_of(kind)[0].experts
        classes = merge_classes([shape_of(expert) for expert in experts])
        return read_all(experts, own), torch.arange(count) % len(classes)
    if part == "codec":
        return own
    latents = torch.randn((count, 2, 4, 4, 4), generator=rng)
    return latents, torch.rand((count, 4), generator=rng)


def parts_of(kind: str) -> tuple[str, ...]:
    """Return the names of a system's networks."""
    return tuple(build_parts(kind, 1))
