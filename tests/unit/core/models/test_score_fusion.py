"""Experts are weighed by how much they are at home, alike when nothing tells them apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.interfaces import Objective
from vitrael.core.models.expert_baselines import COMBINATIONS
from vitrael.core.models.score_fusion import (
    ExpertShape,
    FusionObjective,
    Readings,
    ScoreFusion,
    merge_classes,
)
from vitrael.core.rng import torch_stream

NORTH = ExpertShape("north", ("A4C", "A2C"), features=5, layers=3)
SOUTH = ExpertShape("south", ("PLAX", "A4C", "PSAX"), features=4, layers=3)
BOTH = (NORTH, SOUTH)


def readings(seed: int = 1, images: int = 6) -> Readings:
    rng = torch_stream(seed, "readings")

    def draw(width: int) -> torch.Tensor:
        return torch.randn((images, width), generator=rng)

    return Readings(
        {one.name: draw(len(one.classes)) for one in BOTH},
        {one.name: draw(one.features) for one in BOTH},
        {one.name: draw(one.layers) for one in BOTH},
    )


def test_classes_of_all_experts_come_once_in_the_order_of_their_arrival() -> None:
    assert merge_classes(BOTH) == ("A4C", "A2C", "PLAX", "PSAX")
    assert ScoreFusion(BOTH)(readings()).logit_BG.shape == (6, 4)


def test_weights_of_the_experts_add_up_to_one_and_follow_their_discrepancies() -> None:
    fusion = ScoreFusion(BOTH)
    with torch.no_grad():
        for layer, value in zip((fusion.weigh[0], fusion.weigh[2]), (1.0, -1.0), strict=True):
            layer.weight.fill_(value)  # type: ignore[operator,union-attr]
            layer.bias.zero_()  # type: ignore[operator,union-attr]
    near, far = torch.zeros(6, 3), torch.full((6, 3), 2.0)
    seen = readings()
    at_home = Readings(seen.logits, seen.features, {"north": near, "south": far})
    weight_BN = fusion(at_home).weight_BN
    torch.testing.assert_close(weight_BN.sum(1), torch.ones(6))
    assert (weight_BN[:, 0] > 0.99).all()
    swapped = Readings(seen.logits, seen.features, {"north": far, "south": near})
    assert (fusion(swapped).weight_BN[:, 1] > 0.99).all()


def test_experts_with_equal_discrepancies_weigh_the_same_whatever_was_learned() -> None:
    fusion = ScoreFusion(BOTH)
    seen = readings()
    alike = torch.randn((6, 3), generator=torch_stream(2, "alike"))
    same = Readings(seen.logits, seen.features, {"north": alike, "south": alike})
    torch.testing.assert_close(fusion(same).weight_BN, torch.full((6, 2), 0.5))
    assert not torch.allclose(fusion(seen).weight_BN, torch.full((6, 2), 0.5))  # the control
    plain = ScoreFusion(BOTH, weighted=False)
    torch.testing.assert_close(plain(seen).weight_BN, torch.full((6, 2), 0.5))


def test_before_anything_is_learned_shared_classes_go_to_the_larger_weighted_logit() -> None:
    seen = readings()
    fused = ScoreFusion(BOTH, weighted=False)(seen)
    wanted = 0.5 * torch.maximum(seen.logits["north"][:, 0], seen.logits["south"][:, 1])
    torch.testing.assert_close(fused.logit_BG[:, 0], wanted)
    torch.testing.assert_close(fused.logit_BG[:, 2], 0.5 * seen.logits["south"][:, 0])


def test_fusion_learns_what_features_say_and_logits_do_not() -> None:
    fusion, seen = ScoreFusion(BOTH), readings(images=40)
    label_B = seen.features["south"].argmax(1)  # what one expert sees, no logit says
    objective: Objective = FusionObjective()
    rng = torch_stream(1, "loss")
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = objective(fusion, (seen, label_B), rng)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert 0 <= float(loss.parts["accuracy"]) <= 1


@pytest.mark.parametrize(
    ("experts", "why"),
    [
        ((), "different names"),
        ((NORTH, NORTH), "different names"),
        ((NORTH, ExpertShape("south", ("PLAX", "PSAX"), 4, 5)), "cannot be weighed"),
    ],
)
def test_experts_that_cannot_be_fused_are_refused(
    experts: tuple[ExpertShape, ...], why: str
) -> None:
    with pytest.raises(DataError, match=why):
        ScoreFusion(experts)


@pytest.mark.parametrize("what", ["logits", "features", "discrepancy"])
@pytest.mark.parametrize("fault", ["missing", "width", "nan"])
def test_readings_that_do_not_fit_are_refused_by_the_expert(what: str, fault: str) -> None:
    seen = readings()
    part = dict(getattr(seen, what))
    if fault == "missing":
        del part["south"]
    else:
        wide = torch.cat([part["south"], part["south"][:, :1]], dim=1)
        part["south"] = wide if fault == "width" else part["south"] * float("nan")
    with pytest.raises(DataError, match="of south are not"):
        ScoreFusion(BOTH)(replace(seen, **{what: part}))
    ScoreFusion(BOTH)(seen)  # the control


def test_fusion_after_a_withdrawal_knows_nothing_of_the_expert_that_left() -> None:
    left = ScoreFusion((SOUTH,))
    assert left.classes == SOUTH.classes
    fused = left(readings())
    torch.testing.assert_close(fused.logit_BG, readings().logits["south"])
    assert torch.equal(fused.weight_BN, torch.ones(6, 1))


def test_rows_of_readings_are_those_of_the_images() -> None:
    seen = readings()
    part = seen.rows(torch.tensor([4, 1]))
    assert torch.equal(part.logits["south"], seen.logits["south"][[4, 1]])
    assert torch.equal(part.discrepancy["north"], seen.discrepancy["north"][[4, 1]])


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_needs_no_learning_scores_every_class(name: str) -> None:
    logits = {
        "north": torch.tensor([[5.0, 0.0], [0.0, 1.0]]),
        "south": torch.tensor([[0.0, 1.0, 0.0], [9.0, 0.0, 0.0]]),
    }
    near, far = torch.zeros(1, 3), torch.ones(1, 3)
    seen = Readings(
        logits,
        readings(images=2).features,
        {"north": torch.cat([near, far]), "south": torch.cat([far, near])},
    )
    score_BG = COMBINATIONS[name](BOTH, seen)
    assert score_BG.shape == (2, 4)
    assert score_BG.argmax(1).tolist() == [0, 2]  # A4C by north, PLAX by south
