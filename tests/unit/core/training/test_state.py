"""The moving average halves its distance every half-life of images, however they are batched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitrael.core.training.state import MovingAverage


def model_at(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def settled(halflife_images: int) -> MovingAverage:
    """Return an average at 0 that has seen enough for the whole half-life."""
    average = MovingAverage(model_at(0), halflife_images)
    average.follow(model_at(0), 10 * halflife_images)
    return average


def distance(average: MovingAverage) -> float:
    return 1 - average.shadow[0].item()


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
def test_half_of_the_way_is_made_in_one_half_life(batch: int) -> None:
    average = settled(64)
    for _ in range(64 // batch):
        average.follow(model_at(1), batch)
    assert distance(average) == pytest.approx(0.5, abs=1e-5)
    for _ in range(64 // batch):
        average.follow(model_at(1), batch)
    assert distance(average) == pytest.approx(0.25, abs=1e-5)


def test_start_is_forgotten_early_on() -> None:
    young, old = MovingAverage(model_at(0), 64), settled(64)
    for average in (young, old):
        for _ in range(16):
            average.follow(model_at(1), 4)
    assert distance(young) < 1e-3
    assert distance(old) == pytest.approx(0.5, abs=1e-5)  # the control


def test_average_of_a_module_that_stands_still_is_the_module() -> None:
    average, model = MovingAverage(model_at(0.3), 64), model_at(0.3)
    for _ in range(20):
        average.follow(model, 4)
    average.copy_to(model)
    assert model.weight.item() == pytest.approx(0.3, abs=1e-6)


def test_following_does_not_touch_the_module_and_copying_does() -> None:
    average, model = MovingAverage(model_at(0), 64), model_at(1)
    average.follow(model, 4)
    assert model.weight.item() == 1
    average.copy_to(model)
    assert 0 < model.weight.item() < 1
    assert model.weight.requires_grad
