"""Experts and their fusion as one Predictor that says what it sees, how surely, and who decided.

A panel is a document and named tensors, so it can be kept, registered and opened elsewhere. An
expert that leaves takes its part of both with it; the fusion of the others is then trained anew.
Axes: B images, H W pixels, N experts, G classes of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

import torch
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from vitrael.core.configs import Section, ViewExpertConfig
from vitrael.core.data.recipes import RECIPES, RecipeSettings, settings_for
from vitrael.core.digest import Digest, digest_bytes, digest_json
from vitrael.core.errors import ConfigError, DataError, WeightsError
from vitrael.core.models.fusion_learning import read_all
from vitrael.core.models.score_fusion import ExpertShape, ScoreFusion, build_fusion
from vitrael.core.models.view_expert import ViewExpert, open_expert
from vitrael.core.protocols import Name, ViewName, parse_digest
from vitrael.core.weights import Tensors, load_weights, module_tensors, pack_tensors

FUSION: Final = "fusion"
"""Name of the part that is no expert; no site can have it."""

DigestField = Annotated[Digest, AfterValidator(parse_digest)]


class ExpertEntry(Section):
    """What is known of one expert beside its weights."""

    site: Name
    labels: tuple[ViewName, ...] = Field(min_length=2)
    """As the study calls the views."""
    weights: DigestField
    cohort: DigestField | None = None
    """Version of the scans that it learned from."""


class PanelDocument(Section):
    """All that is known of a panel beside its weights."""

    format: Literal["vitrael/view-panel/1"] = "vitrael/view-panel/1"
    config: ViewExpertConfig
    recipe: RecipeSettings
    """How a picture or a clip becomes an image as the experts know it."""
    experts: tuple[ExpertEntry, ...] = Field(min_length=1)
    """In the order in which they joined."""
    hidden: int = Field(default=16, ge=1)
    weighted: bool = True
    fusion: DigestField

    @field_validator("recipe")
    @classmethod
    def _of_planes(cls, recipe: RecipeSettings) -> RecipeSettings:
        if RECIPES[recipe.name].takes == "volume":
            msg = "experts know planes, and the recipe makes volumes"
            raise ValueError(msg)
        try:
            usual = settings_for(recipe.name, grid_vox=recipe.grid_vox)
        except ConfigError as error:
            raise ValueError(error.sentence()) from error
        if recipe != usual.model_copy(update={"version": recipe.version}):
            msg = "its spacing or its frame time is not that of the recipe"
            raise ValueError(msg)
        return recipe

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        sites = [expert.site for expert in self.experts]
        if len(set(sites)) < len(sites):
            msg = "a site has one expert"
            raise ValueError(msg)
        if FUSION in sites:
            msg = f"no site can be called {FUSION}"
            raise ValueError(msg)
        return self

    @property
    def edge_px(self) -> int:
        """Edge of the square images that the experts know."""
        return self.recipe.grid_vox[0]

    @property
    def parts(self) -> Mapping[str, Digest]:
        """Digests of all weights: of the fusion, and of each expert by its site."""
        return {FUSION: self.fusion} | {expert.site: expert.weights for expert in self.experts}

    @property
    def digest(self) -> Digest:
        """Name of the panel by its content, the weights among it."""
        return digest_json(self.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a panel says of one image."""

    label: str
    probability: float
    """Of the label, among all views that an expert knows."""
    weights: Mapping[str, float]
    """Expert -> how much it decided; they add up to 1."""
    known_to: tuple[str, ...]
    """Experts to which the image is like their own; with none it is foreign to all that judge."""
    judges: tuple[str, ...]
    """Experts that can say so: those for which enough patients were held out."""

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
        readings = read_all(self.experts, x)
        fused = self.fusion(readings)
        judges = tuple(one.name for one in self.experts if one.calibration.is_known)
        known = {one.name: one.knows(readings.discrepancy[one.name]) for one in self.experts}
        probability_BG = fused.logit_BG.softmax(1)
        best_B = probability_BG.argmax(1).tolist()
        names = [expert.name for expert in self.experts]
        return [
            Prediction(
                self.fusion.classes[best],
                float(probability_BG[row, best]),
                dict(zip(names, map(float, fused.weight_BN[row]), strict=True)),
                tuple(name for name in judges if known[name][row]),
                judges,
            )
            for row, best in enumerate(best_B)
        ]

    def tensors(self) -> dict[str, Tensors]:
        """Return what is to be kept: the weights of the fusion, and of each expert by its site."""
        return {
            FUSION: module_tensors(self.fusion),
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
    recipe: RecipeSettings,
    cohorts: Mapping[str, Digest] | None = None,
) -> ViewPanel:
    """Return the panel of experts and the fusion that was trained for them.

    ``recipe`` made the images that they learned from. Raises DataError for a fusion that was
    trained for others, and for a name or a recipe that no panel can have.
    """
    if fusion.experts != tuple(map(shape_of, experts)):
        raise DataError(
            "the fusion was trained for other experts", fix="train it for those that are here"
        )
    try:
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
            recipe=recipe,
            experts=entries,
            hidden=fusion.hidden,
            weighted=fusion.weighted,
            fusion=digest_bytes(pack_tensors(module_tensors(fusion))),
        )
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise DataError("the experts make no panel", why=fault["msg"]) from error
    return ViewPanel(document, tuple(experts), fusion.eval())


def open_panel(document: PanelDocument, tensors: Mapping[str, Tensors]) -> ViewPanel:
    """Return a panel from what was kept of it.

    Raises WeightsError, which names it, for a part that is missing or whose digest is another, and
    for weights of another network.
    """
    for part, digest in document.parts.items():
        if part not in tensors or digest_bytes(pack_tensors(tensors[part])) != digest:
            raise WeightsError(
                f"the weights of {part} are missing or not those of the panel",
                why="their digest is another",
                fix="fetch the panel again",
            )
    experts = []
    for one in document.experts:
        with _fitting(one.site):
            experts.append(
                open_expert(tensors[one.site], document.config, name=one.site, labels=one.labels)
            )
    fusion = build_fusion(
        [shape_of(expert) for expert in experts],
        seed=0,
        hidden=document.hidden,
        weighted=document.weighted,
    )
    with _fitting(FUSION):
        load_weights(fusion, tensors[FUSION])
    return ViewPanel(document, tuple(experts), fusion.eval())


@contextmanager
def _fitting(part: str) -> Iterator[None]:
    """Open one part; whose weights do not fit is said by the error."""
    try:
        yield
    except DataError as error:
        told = ", ".join(text for text in (error.what, error.why) if text)
        raise WeightsError(
            f"the weights of {part} do not fit the panel",
            why=told,
            fix="use the document and the weights of one panel",
        ) from error
