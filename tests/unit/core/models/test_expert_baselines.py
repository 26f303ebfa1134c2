"""Experts put together without learning: each way takes what it says and nothing else."""

from __future__ import annotations

import pytest
import torch

from vitrael.core.metrics.comparison import METHODS
from vitrael.core.models.expert_baselines import COMBINATIONS
from vitrael.core.models.score_fusion import ExpertShape, Readings

NORTH = ExpertShape("north", ("A2C", "A4C"), features=2, layers=1)
SOUTH = ExpertShape("south", ("A4C", "PLAX"), features=2, layers=1)


def readings(north: list[float], south: list[float], *, far: tuple[float, float]) -> Readings:
    """Return the readings of one picture."""
    logits = {"north": torch.tensor([north]), "south": torch.tensor([south])}
    nothing = {name: torch.zeros(1, 2) for name in logits}
    distance = {name: torch.tensor([[d]]) for name, d in zip(logits, far, strict=True)}
    return Readings(logits, nothing, distance)


def answer(way: str, seen: Readings) -> str:
    score_BG = COMBINATIONS[way]([NORTH, SOUTH], seen)
    assert score_BG.shape == (1, 3)
    return ("A2C", "A4C", "PLAX")[int(score_BG.argmax(1))]


@pytest.mark.parametrize(
    ("way", "said"),
    [("largest logit", "A2C"), ("largest probability", "PLAX"), ("nearest expert", "A4C")],
)
def test_each_way_takes_what_it_says(way: str, said: str) -> None:
    """North shouts and is unsure; south is sure and far away; the nearest is north's other view."""
    assert answer(way, readings([9.0, 8.9], [0.0, 5.0], far=(2.0, 1.0))) == (
        said if way != "nearest expert" else "PLAX"
    )
    if way == "nearest expert":
        assert answer(way, readings([8.9, 9.0], [0.0, 5.0], far=(1.0, 2.0))) == said


def test_class_that_the_chosen_expert_does_not_know_never_wins() -> None:
    seen = readings([-50.0, -60.0], [90.0, 99.0], far=(0.0, 1.0))
    assert answer("nearest expert", seen) == "A2C"


def test_comparison_counts_every_way() -> None:
    assert set(COMBINATIONS) < set(METHODS)
