"""Small experts for tests: how one is trained, and how several are fused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vitrael.core.configs import LocalTrainingConfig, ViewExpertConfig
from vitrael.core.data.augment import PUBLISHED_MOTION, MovedViews, PlanarMotion
from vitrael.core.models.fusion_learning import pick_readings
from vitrael.core.models.nets.view_net import ViewNet
from vitrael.core.models.score_fusion import (
    ExpertShape,
    Fused,
    FusionObjective,
    Readings,
    ScoreFusion,
    build_fusion,
    merge_classes,
)
from vitrael.core.models.view_expert import ViewExpert, build_view_net, complete_expert
from vitrael.core.rng import torch_stream
from vitrael.core.training.loop import fit
from vitrael.core.training.objectives import ClassifierObjective

FUSION_IMAGES = 9_600


def learning(images: int, *, rate: float = 2e-3, batch: int = 32) -> LocalTrainingConfig:
    return LocalTrainingConfig(length_images=images, batch_images=batch, learning_rate=rate)


def small_expert(length_images: int) -> ViewExpertConfig:
    """Return a config of which an epoch takes a second."""
    return ViewExpertConfig(
        kind="view_expert",
        channels=(8, 16, 32, 64),
        blocks=(1, 1, 1, 1),
        stem_stride=2,
        training=learning(length_images),
    )


def learn(
    net: ViewNet,
    image_BCHW: np.ndarray,
    label_B: np.ndarray,
    *,
    images: int,
    rng: torch.Generator,
    motion: PlanarMotion = PUBLISHED_MOTION,
) -> ViewNet:
    draw = MovedViews(image_BCHW, label_B, classes=net.classes, motion=motion)
    objective, config = ClassifierObjective(classes=net.classes), learning(images)
    fit(net, objective, draw, config, length_images=images, rng=rng)
    return net.eval()


def train_expert(
    image_BCHW: np.ndarray,
    label_B: np.ndarray,
    config: ViewExpertConfig,
    *,
    name: str,
    labels: Sequence[str],
    seed: int,
    first: ViewExpert | None,
    motion: PlanarMotion = PUBLISHED_MOTION,
) -> ViewExpert:
    start = None if first is None else first.weights()
    net = build_view_net(config, len(labels), seed=seed, start=start)
    rng = torch_stream(seed, "expert", name)
    length = config.training.length_images
    learn(net, image_BCHW, label_B, images=length, rng=rng, motion=motion)
    return complete_expert(net, torch.from_numpy(image_BCHW), name=name, labels=labels)


def shapes_of(experts: Sequence[ViewExpert]) -> list[ExpertShape]:
    return [
        ExpertShape(one.name, one.labels, one.net.features, len(one.net.layers)) for one in experts
    ]


def train_fusion(
    experts: Sequence[ViewExpert],
    readings: Readings,
    names: Sequence[str],
    *,
    seed: int,
    weighted: bool = True,
) -> ScoreFusion:
    """Return fusion that learned from readings and the names of their classes."""
    shapes = shapes_of(experts)
    fusion = build_fusion(shapes, seed=seed, weighted=weighted)
    label_B = torch.tensor([merge_classes(shapes).index(name) for name in names])
    config = learning(FUSION_IMAGES, rate=0.02, batch=64)
    rng = torch_stream(seed, "fusion")
    draw = pick_readings(readings, label_B)
    fit(fusion, FusionObjective(), draw, config, length_images=FUSION_IMAGES, rng=rng)
    return fusion


@torch.no_grad()
def ask(fusion: ScoreFusion, readings: Readings) -> Fused:
    fused: Fused = fusion(readings)
    return fused
