"""A panel says what it sees and who decided, and is the same wherever it is opened."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tests.unit.core.models.test_view_expert import CONFIG, images
from vitrael.core.data.recipes import RecipeSettings, settings_for
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.interfaces import Predictor
from vitrael.core.models.score_fusion import build_fusion
from vitrael.core.models.view_expert import ViewExpert, build_view_net, complete_expert
from vitrael.core.models.view_panel import (
    PanelDocument,
    ViewPanel,
    assemble_panel,
    open_panel,
    shape_of,
)

RECIPE = settings_for("image-2d", grid_vox=(24, 24))
SITES = {"north": ("A4C", "A2C"), "south": ("PLAX", "A4C", "PSAX")}


def expert_of(name: str, *, seed: int) -> ViewExpert:
    net = build_view_net(CONFIG, len(SITES[name]), seed=seed)
    return complete_expert(net, images(seed=seed), name=name, labels=SITES[name])


@pytest.fixture(scope="module")
def panel() -> ViewPanel:
    experts = [expert_of(name, seed=seed) for seed, name in enumerate(SITES)]
    fusion = build_fusion([shape_of(expert) for expert in experts], seed=3)
    cohorts = {"north": digest_bytes(b"cohort")}
    return assemble_panel(experts, fusion, CONFIG, recipe=RECIPE, cohorts=cohorts)


def test_prediction_has_label_probability_and_the_weight_of_each_expert(panel: ViewPanel) -> None:
    assert isinstance(panel, Predictor)
    found = panel.predict(images(5, seed=9))
    assert len(found) == 5
    for one in found:
        assert one.label in {"A4C", "A2C", "PLAX", "PSAX"}
        assert 0.25 <= one.probability <= 1
        assert set(one.weights) == set(SITES)
        assert sum(one.weights.values()) == pytest.approx(1, abs=1e-5)
        assert one.weights[one.decider] == max(one.weights.values())


def test_prediction_of_an_image_does_not_depend_on_its_batch(panel: ViewPanel) -> None:
    x = images(70, seed=8)
    together, alone = panel.predict(x)[69], panel.predict(x[69:])[0]
    assert together.label == alone.label
    assert together.probability == pytest.approx(alone.probability, abs=1e-4)


def test_panel_that_was_kept_says_the_same(panel: ViewPanel) -> None:
    text = panel.document.model_dump_json()
    opened = open_panel(PanelDocument.model_validate_json(text), panel.tensors())
    x = images(4, seed=7)
    for own, other in zip(panel.predict(x), opened.predict(x), strict=True):
        assert own.label == other.label
        assert own.weights == pytest.approx(other.weights)
    assert opened.document == panel.document


@pytest.mark.parametrize("part", ["fusion", "north"])
def test_weights_that_are_missing_or_changed_are_refused_by_name(
    panel: ViewPanel, part: str
) -> None:
    tensors = panel.tensors()
    changed = {name: value + 1 for name, value in tensors[part].items()}
    with pytest.raises(WeightsError, match=f"weights of {part}"):
        open_panel(panel.document, {**tensors, part: changed})
    del tensors[part]
    with pytest.raises(WeightsError, match=f"weights of {part}"):
        open_panel(panel.document, tensors)


def test_fusion_of_other_experts_makes_no_panel(panel: ViewPanel) -> None:
    with pytest.raises(DataError, match="trained for other experts"):
        assemble_panel(panel.experts[:1], panel.fusion, CONFIG, recipe=RECIPE)


def test_site_cannot_have_two_experts(panel: ViewPanel) -> None:
    facts = panel.document.model_dump(mode="json")
    facts["experts"] = [facts["experts"][0]] * 2
    with pytest.raises(ValidationError, match="one expert"):
        PanelDocument.model_validate(facts, strict=False)


def test_weights_of_another_network_are_refused_by_name(panel: ViewPanel) -> None:
    wider = CONFIG.model_copy(update={"channels": (8, 8, 8, 8)})
    with pytest.raises(WeightsError, match="weights of north do not fit the panel: tensor"):
        open_panel(panel.document.model_copy(update={"config": wider}), panel.tensors())


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (settings_for("brain-t1"), "volumes"),
        (RECIPE.model_copy(update={"grid_vox": (24, 32)}), "square"),
        (RECIPE.model_copy(update={"spacing_mm": 1.0}), "spacing"),
        (RECIPE.model_copy(update={"grid_vox": (4, 4)}), "less than 8"),
    ],
)
def test_recipe_that_makes_no_square_pictures_makes_no_panel(
    panel: ViewPanel, recipe: RecipeSettings, told: str
) -> None:
    assert panel.document.edge_px == 24
    with pytest.raises(DataError, match=told):
        assemble_panel(panel.experts, panel.fusion, CONFIG, recipe=recipe)


def test_site_cannot_be_called_like_the_fusion(panel: ViewPanel) -> None:
    experts = [replace(panel.experts[0], name="fusion"), panel.experts[1]]
    fusion = build_fusion([shape_of(expert) for expert in experts], seed=3)
    with pytest.raises(DataError, match="no site can be called fusion"):
        assemble_panel(experts, fusion, CONFIG, recipe=RECIPE)


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (torch.zeros(2, 1, 20, 24), "not those that the experts know"),
        (torch.zeros(2, 4, 24, 24), "not those that the experts know"),
        (torch.full((2, 1, 24, 24), float("nan")), "not finite"),
        (torch.full((2, 1, 24, 24), 2.0), "outside"),
    ],
)
def test_images_that_the_experts_cannot_know_are_refused(
    panel: ViewPanel, x: torch.Tensor, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        panel.predict(x)


def test_repr_shows_whose_experts_they_are(panel: ViewPanel) -> None:
    assert repr(panel) == "ViewPanel(north, south)"
    assert replace(panel, experts=panel.experts[:1]).experts[0].name == "north"
