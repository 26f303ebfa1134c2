"""Learning to know a patient again: pairs of visits, their distortions, and the loss on them.

With a dozen patients a network would learn these patients and no others, so each batch also
holds people who do not exist: both visits of a patient are bent by one smooth random deformation
and mixed with both visits of another in one proportion. What differs within a pair (pose, noise,
gain, mirror image, a weak blend with a stranger) is what the encoder must ignore.

Axes: P pairs, D H W space. Images are ``[P, 1, D, H, W]`` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.records import Loss, PatientImages
from vitrael.core.training.warps import Pose, bend, coins, poses, resample, shuffled, stay, uniform

Pair = tuple[torch.Tensor, torch.Tensor]
"""Two views of each of P identities."""

View = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Moves images apart that the encoder is to know as one; the strangers are within the batch."""

_POSE: Final = Pose(rotation_rad=0.14, stretch_frac=0.08, shift_frac=0.10)


@dataclass(frozen=True, slots=True)
class Distortion:
    """How far two views of one identity are moved apart; uniform unless said otherwise."""

    pose: Pose = _POSE
    noise: float = 0.04
    """Largest standard deviation."""
    gain: float = 0.15
    blend: float = 0.25
    """Largest share of a stranger."""
    blur_share: float = 0.5
    """Share of views that are smoothed, as an autoencoder does."""


DISTORTION: Final = Distortion()


def distorted(image: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return the view of volumes: each is distorted as two scans of a patient may differ."""
    return distort(image, DISTORTION, rng)


class VisitPairs:
    """Draws batches of identity pairs from the images of split F."""

    def __init__(
        self, images: PatientImages, *, view: View = distorted, device: str = "cpu"
    ) -> None:
        """Keep the images on a device; raise DataError for fewer than two patients."""
        patients = np.unique(images.patient_B)
        if len(patients) < 2:  # noqa: PLR2004 - telling apart needs two
            raise DataError("an encoder needs the scans of at least two patients")
        image = np.ascontiguousarray(images.image_BCDHW, dtype=np.float32)
        self.image = torch.from_numpy(image).to(device)
        self.rows = [np.flatnonzero(images.patient_B == patient) for patient in patients]
        self.view = view

    def __call__(self, batch_images: int, rng: torch.Generator) -> Pair:
        """Return ``batch_images / 2`` pairs of distorted views, of as many identities."""
        pairs = max(2, batch_images // 2)
        first, second = self._visits(pairs, rng)
        other_first, other_second = self._visits(pairs, rng)
        share = uniform((pairs, 1, 1, 1, 1), 0.0, 0.5, rng)
        share = share * coins(pairs, 0.5, rng)
        field = bend(pairs, rng)
        mixed = [
            resample(a + share * (b - a), stay(pairs, rng), field)
            for a, b in ((first, other_first), (second, other_second))
        ]
        one, two = (self.view(image, rng) for image in mixed)
        return one, two

    def _visits(self, pairs: int, rng: torch.Generator) -> Pair:
        """Return two different scans of each patient, or one twice where there is only one."""
        chosen = np.empty((pairs, 2), dtype=np.int64)
        order: list[int] = []
        for place in range(pairs):
            order = order or shuffled(len(self.rows), rng)
            rows = self.rows[order.pop()]
            pick = shuffled(len(rows), rng)
            chosen[place] = rows[pick[0]], rows[pick[min(1, len(rows) - 1)]]
        return self.image[chosen[:, 0]], self.image[chosen[:, 1]]


def distort(image: torch.Tensor, by: Distortion, rng: torch.Generator) -> torch.Tensor:
    """Return another view of each image: pose, mirror image, blur, blend, gain, noise."""
    count = len(image)
    view = resample(image, poses(count, by.pose, rng))
    mirrored = coins(count, 0.5, rng)
    view = torch.where(mirrored, view.flip(2), view)
    blurred = coins(count, by.blur_share, rng)
    view = torch.where(blurred, functional.avg_pool3d(view, 3, stride=1, padding=1), view)
    share = uniform((count, 1, 1, 1, 1), 0.0, by.blend, rng)
    view = view + share * (view.roll(1, 0) - view)
    gain = uniform((count, 1, 1, 1, 1), 1 - by.gain, 1 + by.gain, rng)
    level = uniform((count, 1, 1, 1, 1), 0.0, by.noise, rng)
    return view * gain + level * torch.randn(view.shape, generator=rng, device=rng.device)


class ContrastiveObjective:
    """NT-Xent (Chen et al. 2020, equation 1): of all views in the batch, find the other visit."""

    def __init__(self, temperature: float) -> None:
        """Take the temperature of the softmax over cosine similarities."""
        self.temperature = temperature

    def __call__(self, model: nn.Module, batch: Pair, rng: torch.Generator) -> Loss:
        """Return the loss of a batch of pairs; ``rng`` is not used."""
        del rng
        embedding = model(torch.cat(batch))
        similarity = (embedding @ embedding.T) / self.temperature
        itself = torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
        similarity = similarity.masked_fill(itself, -1e9)
        pairs = len(batch[0])
        partner = torch.arange(2 * pairs, device=embedding.device).roll(pairs)
        loss = functional.cross_entropy(similarity, partner)
        found = (similarity.argmax(1) == partner).float().mean()
        return Loss(total=loss, parts={"found_frac": found})
