"""Small panels with drawn weights: nothing is learned, and everything is there."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tests.factories.view_experts import small_expert
from vitrael.core.data.recipes import RecipeSettings, settings_for
from vitrael.core.models.score_fusion import build_fusion
from vitrael.core.models.view_expert import ViewExpert, build_view_net, complete_expert
from vitrael.core.models.view_panel import ViewPanel, assemble_panel, shape_of
from vitrael.core.rng import torch_stream

PICTURES = settings_for("image-2d", grid_vox=(24, 24))
CLIPS = settings_for("echo-apical", grid_vox=(32, 32))
SITES: Mapping[str, tuple[str, ...]] = {"north": ("A4C", "A2C"), "south": ("PLAX", "A4C", "PSAX")}
CONFIG = small_expert(8)


def draw_expert(name: str, recipe: RecipeSettings, *, seed: int) -> ViewExpert:
    net = build_view_net(CONFIG, len(SITES[name]), seed=seed)
    shape = (12, 1, *recipe.grid_vox)
    image_BCHW = torch.rand(shape, generator=torch_stream(seed, "images"))
    return complete_expert(net, image_BCHW, name=name, labels=SITES[name])


def draw_panel(recipe: RecipeSettings = PICTURES, *, seed: int = 0) -> ViewPanel:
    experts = [draw_expert(name, recipe, seed=seed + place) for place, name in enumerate(SITES)]
    fusion = build_fusion([shape_of(expert) for expert in experts], seed=seed)
    return assemble_panel(experts, fusion, CONFIG, recipe=recipe)
