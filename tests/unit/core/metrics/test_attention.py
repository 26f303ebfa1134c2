"""Attention is found where a network looks, and counted inside the sector."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vitrael.core.errors import DataError
from vitrael.core.metrics.attention import (
    attribute_grad_cam,
    attribute_gradient,
    measure_focus,
)
from vitrael.core.models.nets.view_net import ViewNet
from vitrael.core.rng import seeded_initialization

BATCH, EDGE = 6, 12
SECTOR = torch.zeros(BATCH, EDGE, EDGE, dtype=torch.bool)
SECTOR[:, 3:9, 3:9] = True


class Looks(nn.Module):
    """Tells two classes by the mean gray where it looks."""

    def __init__(self, where: torch.Tensor) -> None:
        super().__init__()
        self.early = nn.Conv2d(1, 2, 1, bias=False)
        self.drop = nn.Dropout(0.9)
        with torch.no_grad():
            self.early.weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
        self.register_buffer("where", where.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.drop((self.early(x) * self.where).mean((2, 3)))
        return logits


def images(seed: int = 1) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 0.2 + 0.8 * torch.rand(BATCH, 1, EDGE, EDGE, generator=rng)


def test_gradient_finds_who_looks_inside_and_who_looks_outside() -> None:
    inside = measure_focus(attribute_gradient(Looks(SECTOR[0]), images()), SECTOR, method="g")
    assert (inside.energy.value, inside.peak.value) == (1.0, 1.0)
    outside = measure_focus(attribute_gradient(Looks(~SECTOR[0]), images()), SECTOR, method="g")
    assert (outside.energy.value, outside.peak.value) == (0.0, 0.0)
    assert inside.energy.above(outside.energy)
    assert inside.peak.above(outside.peak)


def test_attention_without_aim_has_the_share_of_the_area() -> None:
    focus = measure_focus(torch.ones(BATCH, EDGE, EDGE), SECTOR, method="g")
    assert focus.area_frac == pytest.approx(36 / 144)
    assert focus.energy.value == pytest.approx(focus.area_frac)
    assert (focus.energy.n, focus.energy.unit) == (BATCH, "patients")


def test_black_pixels_have_no_gradient_attribution() -> None:
    image = images()
    image[:, :, :2] = 0
    found = attribute_gradient(Looks(torch.ones(EDGE, EDGE)), image)
    assert not found[:, :2].any()
    assert bool((found[:, 2:] > 0).all())


def net() -> ViewNet:
    with seeded_initialization(1, "net"):
        return ViewNet(channels=(4, 4, 8, 8), blocks=(1, 1, 1, 1), classes=3)


@pytest.mark.parametrize("layer", ["body.layer1", "body.layer3"])
def test_grad_cam_is_that_of_its_definition(layer: str) -> None:
    model, image = net().eval(), images()
    found = attribute_grad_cam(model, image, layer=layer)
    for number in range(BATCH):
        maps: list[torch.Tensor] = []
        handle = model.get_submodule(layer).register_forward_hook(lambda *a, m=maps: m.append(a[2]))
        score = model(image[[number]]).max()
        handle.remove()
        (slope,) = torch.autograd.grad(score, maps[0])
        cam = torch.einsum("m,mhw->hw", slope[0].mean((1, 2)), maps[0][0]).clamp_min(0)
        whole = nn.functional.interpolate(cam[None, None], (EDGE, EDGE), mode="bilinear")
        torch.testing.assert_close(found[number], whole[0, 0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["gradient", "grad_cam"])
def test_network_is_left_as_it_was(name: str) -> None:
    model = net().train()
    model.head.eval()
    for weight in model.parameters():
        weight.requires_grad_(requires_grad=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    image = images()
    with torch.no_grad():
        if name == "gradient":
            found = attribute_gradient(model, image)
        else:
            found = attribute_grad_cam(model, image, layer="body.layer2")
    assert found.shape == (BATCH, EDGE, EDGE)
    assert bool((found >= 0).all())
    assert not found.requires_grad
    assert not image.requires_grad
    assert model.training
    assert not model.head.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not model.body.layer2._forward_hooks


def test_images_do_not_meet() -> None:
    model, image = net(), images()
    together = attribute_gradient(model, image)
    alone = torch.cat([attribute_gradient(model, image[[row]]) for row in range(BATCH)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-4)


def test_picture_without_attribution_is_not_counted() -> None:
    found = attribute_gradient(Looks(SECTOR[0]), images())
    found[:2] = 0
    focus = measure_focus(found, SECTOR, method="g")
    assert (focus.energy.n, focus.energy.value, focus.peak.value) == (4, 1.0, 1.0)


def test_no_attribution_at_all_is_not_estimable() -> None:
    focus = measure_focus(torch.zeros(BATCH, EDGE, EDGE), SECTOR, method="g")
    for number in (focus.energy, focus.peak):
        assert math.isnan(number.value)
        assert (number.low, number.high, number.n) == (0.0, 1.0, 0)


def test_one_picture_bounds_nothing() -> None:
    focus = measure_focus(torch.ones(1, EDGE, EDGE), SECTOR[:1], method="g")
    assert (focus.energy.low, focus.energy.high) == (0.0, 1.0)


def test_what_cannot_be_measured_is_refused() -> None:
    good = torch.ones(BATCH, EDGE, EDGE)
    spoiled = good.clone()
    spoiled[0, 0, 0] = math.nan
    for attribution, sector, match in (
        (good[:, :6], SECTOR, "different sizes"),
        (good[:4], SECTOR, "different sizes"),
        (-good, SECTOR, "negative or not finite"),
        (spoiled, SECTOR, "negative or not finite"),
        (good, torch.ones_like(SECTOR), "whole picture or nothing"),
        (good, torch.zeros_like(SECTOR), "whole picture or nothing"),
    ):
        with pytest.raises(DataError, match=match):
            measure_focus(attribution, sector, method="g")
    with pytest.raises(DataError, match="no such layer"):
        attribute_grad_cam(net(), images(), layer="body.layer9")
