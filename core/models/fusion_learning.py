"""Learning to fuse experts without an image: from what sites tell of classes, or of each image.

Sites run every expert on their own images. By default what leaves is, for each expert, the mean of
what it sees in each class with enough patients, and one spread for the whole site. The coordinator
draws from normals with these, class by class and expert by expert, and learns from the draws. The
covariances of few images would tell nearly for certain whose they are. Bransby et al. 2024 share
the features of every image; that is possible where a consent names it.

Axes: B images, N experts, E features, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.models.score_fusion import Readings
from vitrael.core.models.view_expert import ViewExpert
from vitrael.core.training.loop import Draw

SMALLEST_CLASS: Final = 11
"""Patients of a class below which nothing is told of it."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Outlook:
    """What one expert sees at one site: features, then discrepancies."""

    mean: Mapping[str, np.ndarray]
    """Class in the study's words -> ``[E + L]``."""
    std: np.ndarray
    """``[E + L]``: around the means of the classes, all classes together."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SiteOutlook:
    """What a site tells of its images: no image of it, and no class of few patients."""

    images: Mapping[str, int]
    """Class -> how many."""
    experts: Mapping[str, Outlook]


def read_all(experts: Sequence[ViewExpert], image_BCHW: torch.Tensor) -> Readings:
    """Return what every expert sees in images ``[B, 1, H, W]``."""
    found = {expert.name: expert.read(image_BCHW) for expert in experts}
    return Readings(
        {name: one.logit_BK for name, one in found.items()},
        {name: one.feature_BE for name, one in found.items()},
        {name: one.discrepancy_BL for name, one in found.items()},
    )


def tell_site(readings: Readings, labels: Sequence[str], patients: Sequence[int]) -> SiteOutlook:
    """Return what a site tells: of classes with fewer than eleven patients, nothing.

    ``labels`` and ``patients`` are those of the images, in the study's words and by any number.
    Raises DataError where no class has enough patients and for readings that are not finite.
    """
    label_B, patient_B = np.array(labels), np.array(patients)
    rows = {label: np.flatnonzero(label_B == label) for label in dict.fromkeys(labels)}
    told = {
        label: row
        for label, row in rows.items()
        if len(np.unique(patient_B[row])) >= SMALLEST_CLASS
    }
    if not told:
        raise DataError(
            "the site can tell nothing of its classes",
            why=f"none has {SMALLEST_CLASS} patients",
            fix="take more images in, or leave the site out",
        )
    experts = {}
    for name in readings.features:
        seen = torch.cat([readings.features[name], readings.discrepancy[name]], dim=1).numpy()
        finite(readings=seen)
        mean = {label: seen[row].mean(axis=0) for label, row in told.items()}
        around = np.concatenate([seen[row] - mean[label] for label, row in told.items()])
        experts[name] = Outlook(mean, around.std(axis=0))
    return SiteOutlook({label: len(row) for label, row in told.items()}, experts)


def draw_readings(
    told: Sequence[SiteOutlook], experts: Sequence[ViewExpert], *, rng: np.random.Generator
) -> tuple[Readings, list[str]]:
    """Return readings of images that nobody is behind, as many as were told of, and their labels.

    What experts see is drawn apart for each and for each number. Features, which are means of what
    is cut off at 0, are cut off there too, and logits follow from them. Raises DataError when
    nothing was told, or not of every expert, and for an expert of another network.
    """
    if not told:
        raise DataError("there is nothing to learn fusion from", fix="admit a site")
    labels = [name for one in told for name, count in one.images.items() for _ in range(count)]
    logits, features, discrepancies = {}, {}, {}
    for expert in experts:
        width = expert.net.features + len(expert.net.layers)
        rows = np.concatenate([_draw(one, expert.name, width, rng) for one in told])
        value = torch.from_numpy(rows.astype(np.float32))
        features[expert.name] = value[:, : expert.net.features].clamp_min(0)
        discrepancies[expert.name] = value[:, expert.net.features :]
        with torch.no_grad():
            device = next(expert.net.parameters()).device
            logit_BK = expert.net.classify(features[expert.name].to(device))
        logits[expert.name] = logit_BK.cpu()
    return Readings(logits, features, discrepancies), labels


def pick_readings(readings: Readings, label_B: torch.Tensor) -> Draw[tuple[Readings, torch.Tensor]]:
    """Return a function that picks readings with their labels, with replacement."""

    def pick(batch_images: int, rng: torch.Generator) -> tuple[Readings, torch.Tensor]:
        rows = torch.randint(len(label_B), (batch_images,), generator=rng)
        return readings.rows(rows), label_B[rows]

    return pick


def _draw(told: SiteOutlook, expert: str, width: int, rng: np.random.Generator) -> np.ndarray:
    outlook = told.experts.get(expert)
    if outlook is None:
        raise DataError(
            f"a site does not tell what the expert {expert} sees",
            fix="let every site run every expert once",
        )
    if {outlook.std.shape, *(mean.shape for mean in outlook.mean.values())} != {(width,)}:
        raise DataError(
            f"what a site tells of the expert {expert} is not of its network",
            why=f"{width} numbers are expected",
            fix="let the site run the expert that is registered",
        )
    finite(std=outlook.std, mean=np.stack(list(outlook.mean.values())))
    return np.concatenate(
        [
            outlook.mean[label] + outlook.std * rng.standard_normal((count, width))
            for label, count in told.images.items()
        ]
    )
