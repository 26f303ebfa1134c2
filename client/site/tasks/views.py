"""What the tasks of a study of experts share: the site's pictures in the study's words, networks.

Of a view with fewer than eleven patients nothing is learned and nothing is told, not even that the
site has it. Axes: B pictures, H W pixels, N experts, V views of the study.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from vitrael.core.configs import TrainingConfig
from vitrael.core.data.splits import Split
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.models.fusion_learning import SMALLEST_CLASS
from vitrael.core.models.nets.view_net import ViewNet
from vitrael.core.models.view_expert import (
    ViewExpert,
    build_view_net,
    demand_images,
    open_expert,
)
from vitrael.core.models.view_labels import translate_labels
from vitrael.core.models.view_learning import ViewLearning, view_learning
from vitrael.core.rng import stream, torch_stream
from vitrael.core.training.loop import fit
from vitrael.core.weights import Tensors, pack_tensors

if TYPE_CHECKING:
    from vitrael.client.site.tasks import SiteContext
    from vitrael.core.messages import Task
    from vitrael.core.records import ViewImages
    from vitrael.core.training.compute import Compute
    from vitrael.core.training.state import Checkpoints, Curve

KNOWN: Final = "known"
"""Attachment with one array of this name, uint8 ``[N, V]``: which member's expert knows a view."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class OwnViews:
    """Private pictures of one split, of those views alone that have enough patients."""

    image_BCHW: np.ndarray
    view_B: np.ndarray
    """int64: the place of the view among those of the study."""
    patient_B: np.ndarray
    sector_BHW: np.ndarray | None
    words: Mapping[str, str]
    """The site's word for a view -> the study's."""
    views: tuple[str, ...]
    """In the study's words and order."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "OwnViews(private)"

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.view_B)

    @property
    def images(self) -> torch.Tensor:
        """The pictures ``[B, 1, H, W]`` as a tensor over the same memory."""
        return torch.from_numpy(self.image_BCHW)


def read_views(
    context: SiteContext, split: Split, *, views: Collection[str] | None = None
) -> OwnViews:
    """Return a split's pictures of the views that have at least eleven patients in it.

    With ``views`` those of these, however few: for what tells nothing of a single view. Raises
    DataError for a word that the study does not map, whatever it is the word for; the sentence
    leaves the site, and says the word only where enough patients have it.
    """
    known = context.study.experts.data.views
    pictures = context.cohort.views(split)
    words = _translate(pictures, context)
    view_B = np.array([known.index(words[word]) for word in pictures.label_B], dtype=np.int64)
    patients = [len(np.unique(pictures.patient_B[view_B == n])) for n in range(len(known))]
    chosen = [
        place
        for place, view in enumerate(known)
        if (patients[place] >= SMALLEST_CLASS if views is None else view in views)
    ]
    rows = np.flatnonzero(np.isin(view_B, chosen))
    own = tuple(known[place] for place in chosen)
    sectors = pictures.sector_BHW
    return OwnViews(
        image_BCHW=pictures.image_BCHW[rows],
        view_B=view_B[rows],
        patient_B=pictures.patient_B[rows],
        sector_BHW=None if sectors is None else sectors[rows],
        words=_told_words(pictures, words, own),
        views=own,
    )


def _told_words(
    pictures: ViewImages, words: Mapping[str, str], own: Sequence[str]
) -> dict[str, str]:
    """Return the words of eleven patients each; a view that has none such goes by the study's."""
    told = {
        word: view
        for word, view in words.items()
        if view in own and _patients_of(pictures, word) >= SMALLEST_CLASS
    }
    return told | {view: view for view in own if view not in told.values()}


def _patients_of(pictures: ViewImages, word: str) -> int:
    return len(np.unique(pictures.patient_B[np.array(pictures.label_B) == word]))


def _translate(pictures: ViewImages, context: SiteContext) -> dict[str, str]:
    """Return the study's word for each of the site's; raise DataError as ``read_views``."""
    study, word_B = context.study, np.array(pictures.label_B)
    synonyms = study.roster.labels.get(context.name, {})
    words = {}
    for word in sorted(set(pictures.label_B)):
        try:
            (words[word],) = translate_labels(
                [word], site=context.name, views=study.experts.data.views, synonyms=synonyms
            )
        except DataError:
            if len(np.unique(pictures.patient_B[word_B == word])) >= SMALLEST_CLASS:
                raise
            raise DataError(
                f"{context.name} has a word for a view that the study does not map",
                why=f"fewer than {SMALLEST_CLASS} patients have it, so it is not told here",
                fix="look for it in the cohort's report.html; map it in the study, or leave these "
                "images out",
            ) from None
    return words


def read_learnable(context: SiteContext) -> OwnViews:
    """Return the pictures that a site learns from.

    Raises DataError where there are too few of them, or of one view alone.
    """
    own = read_views(context, Split.TRAINING)
    if len(own.views) < 2:  # noqa: PLR2004 - nothing to tell apart
        raise DataError(
            "the site can train no expert",
            why=f"at least two views need {SMALLEST_CLASS} patients each to learn from",
            fix="take more pictures in, or leave the site out",
        )
    demand_images(len(own))
    return own


def learn_own(
    net: ViewNet,
    own: OwnViews,
    label_B: np.ndarray,
    context: SiteContext,
    stage: str,
    *,
    device: str,
) -> ViewLearning:
    """Return by what a network learns a site's pictures, as the study says."""
    protocol = context.study.experts
    return view_learning(
        protocol.expert,
        own.image_BCHW,
        label_B,
        classes=net.classes,
        sector_NHW=own.sector_BHW,
        rng=stream(protocol.seed, "sectors", stage, context.name),
        device=device,
    )


def train_views(
    net: ViewNet,
    own: OwnViews,
    label_B: np.ndarray,
    context: SiteContext,
    *,
    task: Task,
    training: TrainingConfig,
    compute: Compute,
    checkpoints: Checkpoints,
) -> Curve:
    """Train a network in place for one round and return its loss curve."""
    learning = learn_own(net, own, label_B, context, task.stage, device=compute.device)
    length = -(-training.length_images // training.rounds)
    within = task.round if training.rounds > 1 else 0
    return fit(
        net,
        learning.objective,
        learning.draw,
        training,
        length_images=length,
        start_images=within * length,
        rng=torch_stream(context.study.protocol.seed, task.stage, task.round, context.name),
        poll=context.report,
        checkpoints=checkpoints,
        bf16=compute.bf16,
    )


def build_common(context: SiteContext) -> ViewNet:
    """Return the one network over all views of the study that experts are held against."""
    protocol = context.study.experts
    return build_view_net(protocol.expert, len(protocol.data.views), seed=protocol.seed)


def open_experts(
    inputs: Mapping[str, Tensors], context: SiteContext, *, device: str
) -> tuple[ViewExpert, ...]:
    """Return the experts that a task brings, in the order of their sites' names.

    ``expert-N`` is that of member N, counted from 0 as the names are sorted; ``known`` says which
    views it knows. Raises WeightsError where the two do not fit together.
    """
    protocol, members = context.study.experts, sorted(context.members)
    known_NV = inputs.get(KNOWN, {}).get(KNOWN)
    places = (re.fullmatch(r"expert-(\d{1,4})", name) for name in inputs)
    brought = sorted(int(place[1]) for place in places if place is not None)
    shape = (len(members), len(protocol.data.views))
    if known_NV is None or known_NV.shape != shape or not brought or brought[-1] >= shape[0]:
        raise WeightsError(
            "the task brings no experts that can be used",
            why="which views each of them knows is not said for every member",
            fix="run the same package version everywhere",
        )
    experts, views = [], protocol.data.views
    for place in brought:
        labels = [view for view, knows in zip(views, known_NV[place], strict=True) if knows]
        expert = open_expert(
            inputs[f"expert-{place}"], protocol.expert, name=members[place], labels=labels
        )
        expert.net.to(device)
        experts.append(expert)
    different = {digest_bytes(pack_tensors(inputs[f"expert-{place}"])) for place in brought}
    if len(different) < len(brought):
        raise WeightsError(
            "two of the experts that the task brings are one",
            why="what is told of it would be told under several noises",
        )
    return tuple(experts)
