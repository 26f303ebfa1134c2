"""Experts and their fusion as one Predictor that says what it sees, how surely, and who decided.

A panel is a document and named tensors, so it can be kept, registered and opened elsewhere. An
expert that leaves takes its part of both with it; the fusion of the others is then trained anew.
Axes: B images, H W pixels, N experts, G classes of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator

from vitrael.core.configs import Section, ViewExpertConfig
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.models.fusion_learning import read_all
from vitrael.core.models.score_fusion import ExpertShape, ScoreFusion, build_fusion
from vitrael.core.models.view_expert import ViewExpert, open_expert
from vitrael.core.study import Name, parse_digest
from vitrael.core.weights import Tensors, load_weights, module_tensors, pack_tensors

_FUSION: Final = "fusion"

DigestField = Annotated[Digest, AfterValidator(parse_digest)]


class ExpertEntry(Section):
    """What is known of one expert beside its weights."""

    site: Name
    labels: tuple[str, ...] = Field(min_length=2)
    """As the study calls the views."""
    weights: DigestField
    cohort: DigestField | None = None
    """Version of the scans that it learned from."""


class PanelDocument(Section):
    """All that is known of a panel beside its weights."""

    format: Literal["vitrael/view-panel/1"] = "vitrael/view-panel/1"
    config: ViewExpertConfig
    edge_px: int = Field(ge=8)
    """Of the square images that the experts learned from."""
    experts: tuple[ExpertEntry, ...] = Field(min_length=1)
    """In the order in which they joined."""
    hidden: int = Field(default=16, ge=1)
    weighted: bool = True
    fusion: DigestField

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        sites = [expert.site for expert in self.experts]
        if len(set(sites)) < len(sites):
            msg = "a site has one expert"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a panel says of one image."""

    label: str
    probability: float
    """Of the label, among all views that an expert knows."""
    weights: Mapping[str, float]
    """Expert -> how much it decided; they add up to 1."""

    @property
    def decider(self) -> str:
        """The expert that weighs most."""
        return max(self.weights, key=lambda name: self.weights[name])


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ViewPanel:
    """A Predictor: experts of several sites with their fusion."""

    document: PanelDocument
    experts: tuple[ViewExpert, ...]
    fusion: ScoreFusion

    def __repr__(self) -> str:
        """Show whose experts they are."""
        return f"ViewPanel({', '.join(expert.name for expert in self.experts)})"

    @torch.no_grad()
    def predict(self, x: torch.Tensor) -> list[Prediction]:
        """Return what is seen in images ``[B, 1, H, W]`` in [0, 1], one Prediction each.

        Raises DataError for images of another size or number of channels, and for values that are
        not finite or lie outside [0, 1].
        """
        self._demand(x)
        fused = self.fusion(read_all(self.experts, x))
        probability_BG = fused.logit_BG.softmax(1)
        best_B = probability_BG.argmax(1).tolist()
        names = [expert.name for expert in self.experts]
        return [
            Prediction(
                self.fusion.classes[best],
                float(probability_BG[row, best]),
                dict(zip(names, map(float, fused.weight_BN[row]), strict=True)),
            )
            for row, best in enumerate(best_B)
        ]

    def tensors(self) -> dict[str, Tensors]:
        """Return what is to be kept: the weights of the fusion, and of each expert by its site."""
        return {
            _FUSION: module_tensors(self.fusion),
            **{expert.name: expert.tensors() for expert in self.experts},
        }

    def _demand(self, x: torch.Tensor) -> None:
        edge = self.document.edge_px
        if x.ndim != 4 or x.shape[1:] != (1, edge, edge):  # noqa: PLR2004 - B, 1, H, W
            raise DataError(
                "the images are not those that the experts know",
                why=f"one channel of {edge} x {edge} pixels is expected",
                fix="prepare them by the study's recipe",
            )
        if not torch.isfinite(x).all() or x.amin() < 0 or x.amax() > 1:
            raise DataError(
                "the images hold values that are not finite or lie outside [0, 1]",
                fix="prepare them by the study's recipe",
            )


def shape_of(expert: ViewExpert) -> ExpertShape:
    """Return what fusion must know of an expert."""
    return ExpertShape(expert.name, expert.labels, expert.net.features, len(expert.net.layers))


def assemble_panel(
    experts: Sequence[ViewExpert],
    fusion: ScoreFusion,
    config: ViewExpertConfig,
    *,
    edge_px: int,
    cohorts: Mapping[str, Digest] | None = None,
) -> ViewPanel:
    """Return the panel of experts and the fusion that was trained for them.

    Raises DataError when it was trained for others.
    """
    if fusion.experts != tuple(map(shape_of, experts)):
        raise DataError(
            "the fusion was trained for other experts", fix="train it for those that are here"
        )
    entries = tuple(
        ExpertEntry(
            site=expert.name,
            labels=expert.labels,
            weights=digest_bytes(pack_tensors(expert.tensors())),
            cohort=(cohorts or {}).get(expert.name),
        )
        for expert in experts
    )
    document = PanelDocument(
        config=config,
        edge_px=edge_px,
        experts=entries,
        hidden=fusion.hidden,
        weighted=fusion.weighted,
        fusion=digest_bytes(pack_tensors(module_tensors(fusion))),
    )
    return ViewPanel(document, tuple(experts), fusion.eval())


def open_panel(document: PanelDocument, tensors: Mapping[str, Tensors]) -> ViewPanel:
    """Return a panel from what was kept of it.

    Raises WeightsError, which names it, for a part that is missing or whose digest is another, and
    for weights of another network.
    """
    wanted = {_FUSION: document.fusion} | {one.site: one.weights for one in document.experts}
    for part, digest in wanted.items():
        if part not in tensors or digest_bytes(pack_tensors(tensors[part])) != digest:
            raise WeightsError(
                f"the weights of {part} are missing or not those of the panel",
                why="their digest is another",
                fix="fetch the panel again",
            )
    experts = tuple(
        open_expert(tensors[one.site], document.config, name=one.site, labels=one.labels)
        for one in document.experts
    )
    fusion = build_fusion(
        [shape_of(expert) for expert in experts],
        seed=0,
        hidden=document.hidden,
        weighted=document.weighted,
    )
    load_weights(fusion, tensors[_FUSION])
    return ViewPanel(document, experts, fusion.eval())
