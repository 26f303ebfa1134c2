"""Experts put together without learning: what fusion is held against.

Each takes the readings of all experts and returns scores of all classes; the largest is the answer.
Axes: B images, N experts, K classes of one expert, G classes of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch

from vitrael.core.models.score_fusion import ExpertShape, Readings, merge_classes

_NEVER: Final = -1e9
"""What a class scores of which the chosen expert knows nothing."""

Combine = Callable[[Sequence[ExpertShape], Readings], torch.Tensor]
"""``(experts, readings) -> score_BG`` over ``merge_classes(experts)``."""


def largest_logit(experts: Sequence[ExpertShape], readings: Readings) -> torch.Tensor:
    """Return for each class the largest logit that an expert gives it."""
    return _largest(experts, readings.logits)


def largest_probability(experts: Sequence[ExpertShape], readings: Readings) -> torch.Tensor:
    """Return for each class the largest probability that an expert gives it.

    Its largest is the answer of the expert that is surest of all.
    """
    probabilities = {name: logit_BK.softmax(1) for name, logit_BK in readings.logits.items()}
    return _largest(experts, probabilities)


def nearest_expert(experts: Sequence[ExpertShape], readings: Readings) -> torch.Tensor:
    """Return the logits of the one expert whose layers see an image as most usual."""
    foreign_BN = torch.stack(
        [readings.discrepancy[expert.name].mean(1) for expert in experts], dim=1
    )
    return _of_one(experts, readings, foreign_BN.argmin(1))


COMBINATIONS: Final[Mapping[str, Combine]] = {
    "largest logit": largest_logit,
    "largest probability": largest_probability,
    "nearest expert": nearest_expert,
}
"""By the name that a table shows."""


def _largest(experts: Sequence[ExpertShape], scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
    classes = merge_classes(experts)
    images = len(next(iter(scores.values())))
    best_BG = torch.full((images, len(classes)), _NEVER)
    for expert in experts:
        places = [classes.index(name) for name in expert.classes]
        best_BG[:, places] = torch.maximum(best_BG[:, places], scores[expert.name])
    return best_BG


def _of_one(
    experts: Sequence[ExpertShape], readings: Readings, chosen_B: torch.Tensor
) -> torch.Tensor:
    classes = merge_classes(experts)
    score_BG = torch.full((len(chosen_B), len(classes)), _NEVER)
    for number, expert in enumerate(experts):
        rows = torch.nonzero(chosen_B == number).flatten()
        places = torch.tensor([classes.index(name) for name in expert.classes])
        score_BG[rows[:, None], places] = readings.logits[expert.name][rows]
    return score_BG
