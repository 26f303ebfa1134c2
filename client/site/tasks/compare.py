"""The site counts what experts, their fusion and its rivals get right on pictures held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.networks import site_compute
from vitrael.client.site.tasks.views import OwnViews, build_common, open_experts, read_views
from vitrael.core.data.splits import Split
from vitrael.core.errors import CohortError
from vitrael.core.messages import Task
from vitrael.core.metrics.comparison import METHODS
from vitrael.core.models.expert_baselines import COMBINATIONS
from vitrael.core.models.fusion_learning import SMALLEST_CLASS, read_all
from vitrael.core.models.score_fusion import Fused, Readings, build_fusion, merge_classes
from vitrael.core.models.view_expert import ViewExpert
from vitrael.core.models.view_panel import shape_of
from vitrael.core.weights import Tensors, load_weights

_NETWORKS: Final = {"averaged": "federated averaging", "relay": "one network in turn"}
_FUSIONS: Final = {"unweighted": "fusion, unweighted", "fusion": "fusion"}


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:  # noqa: ARG001 - every task is called alike
    """Return ``counts`` over the pictures of views with eleven held-out patients or more.

    ``images`` int64 ``[V]``: how many of each view. ``right`` int64 ``[M, V]``: of these, how many
    each of ``METHODS`` names rightly. ``heaviest`` int64 ``[V]``: in how many the site's own expert
    weighs most. ``weight`` float64 ``[N]``: the mean weight of each expert. Raises CohortError
    where too few patients are held out.
    """
    compute = site_compute(context)
    views = context.study.experts.data.views
    own = read_views(context, Split.UTILITY)
    if not own.views:
        raise CohortError(
            "experts cannot be held to anything here",
            why=f"no view has {SMALLEST_CLASS} patients that nobody learned from",
        )
    experts = open_experts(inputs, context, device=compute.device)
    readings = read_all(experts, own.images)
    said = _ask_all(experts, readings, views=views, site=context.name)
    fused = {
        part: _fuse(inputs[part], experts, readings, context, weighted=part == "fusion")
        for part in _FUSIONS
    }
    classes = np.array([views.index(name) for name in merge_classes([*map(shape_of, experts)])])
    for part, method in _FUSIONS.items():
        said[method] = classes[fused[part].logit_BG.argmax(1).numpy()]
    for part, method in _NETWORKS.items():
        if part in inputs:
            said[method] = _ask_common(inputs[part], own, context, device=compute.device)
    counts = _count(own, said, views=len(views))
    weight_BN = fused["fusion"].weight_BN.double().numpy()
    names = [expert.name for expert in experts]
    mine = (
        weight_BN.argmax(1) == names.index(context.name)
        if context.name in names
        else np.zeros(len(own), dtype=bool)
    )
    counts["heaviest"] = _by_view(mine, own, views=len(views))
    counts["weight"] = weight_BN.mean(axis=0)
    return TaskResult(tensors={"counts": counts}, num_examples=len(own))


def _ask_all(
    experts: tuple[ViewExpert, ...], readings: Readings, *, views: tuple[str, ...], site: str
) -> dict[str, np.ndarray]:
    """Return what the experts say without fusion, each answer a place among the study's views."""
    shapes = [shape_of(expert) for expert in experts]
    classes = np.array([views.index(name) for name in merge_classes(shapes)])
    said = {
        method: classes[combine(shapes, readings).argmax(1).numpy()]
        for method, combine in COMBINATIONS.items()
    }
    for expert in experts:
        if expert.name == site:
            places = np.array([views.index(name) for name in expert.labels])
            said["own expert"] = places[readings.logits[site].argmax(1).numpy()]
    return said


def _fuse(
    tensors: Tensors,
    experts: tuple[ViewExpert, ...],
    readings: Readings,
    context: SiteContext,
    *,
    weighted: bool,
) -> Fused:
    shapes = [shape_of(expert) for expert in experts]
    hidden = context.study.experts.fusion.hidden
    fusion = build_fusion(shapes, seed=0, hidden=hidden, weighted=weighted)
    load_weights(fusion, tensors)
    with torch.no_grad():
        fused: Fused = fusion.eval()(readings)
    return fused


@torch.no_grad()
def _ask_common(
    tensors: Tensors, own: OwnViews, context: SiteContext, *, device: str
) -> np.ndarray:
    net = build_common(context)
    load_weights(net, tensors)
    net.eval().to(device)
    parts = [net(part.to(device)).argmax(1).cpu() for part in own.images.split(64)]
    return torch.cat(parts).numpy()


def _count(own: OwnViews, said: Mapping[str, np.ndarray], *, views: int) -> dict[str, np.ndarray]:
    right_MV = np.full((len(METHODS), views), -1, dtype=np.int64)
    for method, answer_B in said.items():
        right_MV[METHODS.index(method)] = _by_view(answer_B == own.view_B, own, views=views)
    everything = np.ones(len(own), dtype=bool)
    return {"images": _by_view(everything, own, views=views), "right": right_MV}


def _by_view(chosen_B: np.ndarray, own: OwnViews, *, views: int) -> np.ndarray:
    return np.bincount(own.view_B[chosen_B], minlength=views).astype(np.int64)
