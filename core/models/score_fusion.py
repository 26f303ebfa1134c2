"""Experts of several sites as one predictor: who is at home with an image decides the most.

Score fusion of Bransby et al. 2024 ("Multi-site class-incremental learning with weighted experts in
echocardiography"): experts are frozen, and each keeps its own classes. Linear maps bring the
features of every other expert to an expert's classes, rows are weighted by in-distribution scores,
and what several experts know in common is decided by the one that is surest.

Differently from the paper all experts share one small network for their weights, which sees of each
expert how far every layer is from its usual activity. It has no place for a favorite: with scores
that say nothing all experts weigh the same, and an expert that joins brings no new parameter to it.

Axes: B images, N experts, E features, L layers, K classes of one expert, G classes of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.records import Loss
from vitrael.core.rng import seeded_initialization

if TYPE_CHECKING:
    from vitrael.core.configs import ViewExpertConfig
    from vitrael.core.data.recipes import RecipeSettings
    from vitrael.core.models.view_expert import ViewExpert


@dataclass(frozen=True, slots=True)
class JoinedExperts:
    """What sites have brought to a fusion: no config names it, since sites come and go."""

    experts: tuple[ViewExpert, ...]
    """In the order in which they joined; none of them learns any more."""
    config: ViewExpertConfig
    """By which all of them were trained."""
    recipe: RecipeSettings
    """Of the images that they learned from."""


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """What fusion must know of an expert to give it room."""

    name: str
    classes: tuple[str, ...]
    """As the study calls them, in the order of its logits."""
    features: int
    layers: int


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What all experts see in images."""

    logits: Mapping[str, torch.Tensor]
    """Expert -> ``[B, K]``."""
    features: Mapping[str, torch.Tensor]
    """Expert -> ``[B, E]``."""
    discrepancy: Mapping[str, torch.Tensor]
    """Expert -> ``[B, L]``: how far each layer is from its usual activity."""

    def rows(self, index_B: torch.Tensor) -> Readings:
        """Return the readings of some images."""
        parts = (self.logits, self.features, self.discrepancy)
        chosen = ({name: value[index_B] for name, value in part.items()} for part in parts)
        return Readings(*chosen)


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """What the experts say together."""

    logit_BG: torch.Tensor
    weight_BN: torch.Tensor
    """Of each expert, in order; they add up to 1."""


class ScoreFusion(nn.Module):
    """Maps the readings of experts to logits over all classes, and tells the experts' weights."""

    def __init__(
        self, experts: Sequence[ExpertShape], *, hidden: int = 16, weighted: bool = True
    ) -> None:
        """Give every expert its room; without ``weighted`` all count the same.

        Raises DataError for no expert, for two of one name, and for networks with other numbers of
        layers, which one set of weights cannot judge.
        """
        super().__init__()
        names = [expert.name for expert in experts]
        if not names or len(set(names)) < len(names):
            raise DataError("fusion needs experts with different names")
        if len({expert.layers for expert in experts}) > 1:
            raise DataError(
                "the experts cannot be weighed against each other",
                why="their networks have other numbers of layers",
                fix="train them by one configuration",
            )
        self.experts = tuple(experts)
        self.hidden = hidden
        self.classes = merge_classes(experts)
        self.weighted = weighted
        self.maps = nn.ModuleDict(
            {
                f"{other.name}:{own.name}": nn.Linear(other.features, len(own.classes))
                for own in experts
                for other in experts
                if own is not other
            }
        )
        for parameter in self.maps.parameters():
            nn.init.zeros_(parameter)
        self.weigh = nn.Sequential(
            nn.Linear(experts[0].layers, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, readings: Readings) -> Fused:
        """Return the logits of all classes and the weights of all experts.

        Raises DataError, which names the expert, for readings that are missing, of another network
        or not finite.
        """
        for expert in self.experts:
            _demand_reading(expert, readings)
        weight_BN = self._weights(readings)
        most = [self._of(own, readings, weight_BN) for own in self.experts]
        columns = []
        for name in self.classes:
            known = [
                logit_BK[:, own.classes.index(name)]
                for own, logit_BK in zip(self.experts, most, strict=True)
                if name in own.classes
            ]
            columns.append(torch.stack(known).amax(dim=0))
        return Fused(torch.stack(columns, dim=1), weight_BN)

    def _weights(self, readings: Readings) -> torch.Tensor:
        score_BN = torch.cat(
            [self.weigh(readings.discrepancy[expert.name]) for expert in self.experts], dim=1
        )
        return functional.softmax(score_BN if self.weighted else score_BN * 0, dim=1)

    def _of(self, own: ExpertShape, readings: Readings, weight_BN: torch.Tensor) -> torch.Tensor:
        """Return ``[B, K]``: what all experts say of one expert's classes."""
        total = torch.zeros_like(readings.logits[own.name])
        for place, other in enumerate(self.experts):
            said = (
                readings.logits[own.name]
                if other is own
                else self.maps[f"{other.name}:{own.name}"](readings.features[other.name])
            )
            total = total + weight_BN[:, place : place + 1] * said
        return total


def _demand_reading(expert: ExpertShape, readings: Readings) -> None:
    wanted = {
        "logits": (readings.logits, len(expert.classes)),
        "features": (readings.features, expert.features),
        "discrepancies": (readings.discrepancy, expert.layers),
    }
    for what, (found, width) in wanted.items():
        value = found.get(expert.name)
        if value is None or value.ndim != 2 or value.shape[1] != width:  # noqa: PLR2004 - B, width
            raise DataError(
                f"the {what} of {expert.name} are not those of its expert",
                why=f"{width} for each image are expected",
                fix="run the expert that the fusion was trained with",
            )
        if not torch.isfinite(value).all():
            raise DataError(
                f"the {what} of {expert.name} are not finite", fix="leave the expert out"
            )


def build_fusion(
    experts: Sequence[ExpertShape], *, seed: int, hidden: int = 16, weighted: bool = True
) -> ScoreFusion:
    """Return fusion whose first weights come from the stream ``(seed, "score fusion")``."""
    with seeded_initialization(seed, "score fusion"):
        return ScoreFusion(experts, hidden=hidden, weighted=weighted)


def merge_classes(experts: Sequence[ExpertShape]) -> tuple[str, ...]:
    """Return all classes, each once, in the order in which experts brought them."""
    return tuple(dict.fromkeys(name for expert in experts for name in expert.classes))


class FusionObjective:
    """Cross-entropy of the fused logits over all classes."""

    def __call__(
        self, model: ScoreFusion, batch: tuple[Readings, torch.Tensor], rng: torch.Generator
    ) -> Loss:
        """Return the loss of readings and labels ``[B]``; ``rng`` is not used."""
        del rng
        readings, label_B = batch
        logit_BG = model(readings).logit_BG
        loss = functional.cross_entropy(logit_BG, label_B)
        right = (logit_BG.argmax(1) == label_B).float().mean()
        return Loss(total=loss, parts={"accuracy": right})
