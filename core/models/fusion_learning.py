"""Learning to fuse experts without an image: from what sites tell of classes, or of each image.

Sites run every expert on their own images. By default what leaves is, for each expert, the mean of
what it sees in each class with enough patients, and one spread for the whole site. The coordinator
draws from normals with these, class by class and expert by expert, and learns from the draws. The
covariances of few images would tell nearly for certain whose they are, and exact means of few tell
much of it to who has images of others: a site may lay noise over its means. Bransby et al. 2024
share the features of every image; that is possible where a consent names it.

Axes: B images, N experts, E features, L layers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.models.score_fusion import Readings
from vitrael.core.models.view_expert import ViewExpert
from vitrael.core.rng import stream
from vitrael.core.training.loop import Draw

SMALLEST_CLASS: Final = 11
"""Patients of a class below which nothing is told of it."""
_LARGEST_SECRET: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Outlook:
    """What one expert sees at one site: features, then discrepancies."""

    mean: Mapping[str, np.ndarray]
    """Class in the study's words -> ``[E + L]``."""
    std: np.ndarray
    """``[E + L]``: around the means as they are told, all classes together."""


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


def tell_site(
    readings: Readings,
    labels: Sequence[str],
    patients: Sequence[int],
    *,
    noise_frac: float = 0.0,
    rng: np.random.Generator | None = None,
) -> SiteOutlook:
    """Return what a site tells: of classes with fewer than eleven patients, nothing.

    ``labels`` and ``patients`` are those of the images, in the study's words and by any number. To
    each number of a mean normal noise is added, ``noise_frac`` of the number's spread at the site.
    The spread told is that of images around such a mean, ``sqrt(1 + noise_frac^2)`` of its own: the
    draws then reach as far as the truth may lie, and fusion trusts no direction that is noise.

    ``rng`` is a stream of a secret of the site: who knows it takes the noise off. The noise of a
    mean is named by one draw of it, by the class and by the mean itself. So the same mean is told
    the same again, whatever the expert is called and whatever else is told; and after a change of
    images the difference is not free of noise. Experts that differ a little have means that differ
    a little under noises that have nothing in common: whoever may send many of them averages.

    Raises DataError where no class has enough patients, for readings that are not finite, for a
    share that is negative or not finite, and for noise without a generator.
    """
    _check_noise(noise_frac, rng)
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
    secret = None if rng is None else int(rng.integers(_LARGEST_SECRET))
    experts = {}
    for name in readings.features:
        seen = torch.cat([readings.features[name], readings.discrepancy[name]], dim=1).numpy()
        finite(readings=seen)
        mean = {label: seen[row].mean(axis=0) for label, row in told.items()}
        around = np.concatenate([seen[row] - mean[label] for label, row in told.items()])
        outlook = Outlook(mean, around.std(axis=0))
        experts[name] = outlook if secret is None else _blur(outlook, noise_frac, secret)
    return SiteOutlook({label: len(row) for label, row in told.items()}, experts)


def _check_noise(noise_frac: float, rng: np.random.Generator | None) -> None:
    if not (math.isfinite(noise_frac) and noise_frac >= 0):
        raise DataError(
            "the noise over what is told cannot be used",
            why=f"its share of the spread is {noise_frac}",
            fix="give a number from 0, which is no noise",
        )
    if noise_frac and rng is None:
        raise DataError(
            "there is nothing to draw the noise over what is told from",
            why="without it the means would be told as they are",
            fix="give the site's own secret generator",
        )


def _blur(outlook: Outlook, noise_frac: float, secret: int) -> Outlook:
    """Return means under noise, and the spread of images around these."""
    std = outlook.std
    mean = {}
    for label, exact in outlook.mean.items():
        digest = hashlib.sha256(exact.tobytes()).hexdigest()
        noise = stream(secret, label, digest).standard_normal(std.shape)
        mean[label] = exact + (noise_frac * std * noise).astype(std.dtype)
    return Outlook(mean, std * std.dtype.type(math.hypot(1.0, noise_frac)))


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
    values = {}
    for expert in experts:
        width = expert.net.features + len(expert.net.layers)
        rows = np.concatenate([_draw(one, expert.name, width, rng) for one in told])
        values[expert.name] = torch.from_numpy(rows.astype(np.float32))
    return _complete(values, experts), labels


def join_readings(
    seen: Sequence[Mapping[str, np.ndarray]], experts: Sequence[ViewExpert]
) -> Readings:
    """Return the readings of single images that sites told of, site after site.

    Of each site ``[B, E + L]`` by expert: features, then discrepancies. Raises DataError for those
    of another network.
    """
    values = {}
    for expert in experts:
        width = expert.net.features + len(expert.net.layers)
        rows = [_of_width(one.get(expert.name), expert.name, width) for one in seen]
        values[expert.name] = torch.from_numpy(np.concatenate(rows))
    return _complete(values, experts)


def _of_width(rows_BW: np.ndarray | None, expert: str, width: int) -> np.ndarray:
    if rows_BW is None or rows_BW.ndim != 2 or rows_BW.shape[1] != width:  # noqa: PLR2004 - B, W
        raise DataError(
            f"what a site tells of the expert {expert} is not of its network",
            why=f"{width} numbers are expected of each image",
            fix="let the site run the expert that is registered",
        )
    finite(seen=rows_BW)
    return rows_BW.astype(np.float32)


def _complete(values: Mapping[str, torch.Tensor], experts: Sequence[ViewExpert]) -> Readings:
    """Return readings of what experts see ``[B, E + L]``: their logits follow from the features."""
    logits, features, discrepancies = {}, {}, {}
    for expert in experts:
        value = values[expert.name]
        features[expert.name] = value[:, : expert.net.features].clamp_min(0)
        discrepancies[expert.name] = value[:, expert.net.features :]
        with torch.no_grad():
            device = next(expert.net.parameters()).device
            logits[expert.name] = expert.net.classify(features[expert.name].to(device)).cpu()
    return Readings(logits, features, discrepancies)


def stack_readings(parts: Sequence[Readings]) -> Readings:
    """Return the readings of all parts, one after the other; they are of the same experts."""

    def stack(values: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.cat([value[name] for value in values]) for name in values[0]}

    return Readings(
        stack([part.logits for part in parts]),
        stack([part.features for part in parts]),
        stack([part.discrepancy for part in parts]),
    )


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
