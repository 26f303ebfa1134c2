"""Learning that a disguised scan is that scan: two disguises of one image, and the loss on them.

Copies are disguised in more ways than visits differ: mixed with a stranger, cut, half replaced,
bent, brightened unevenly, smoothed, noisy. Two views of one image go through independent disguises
and must find each other among those of other images (self-supervised copy detection after Pizzi et
al. 2022, SSCD, and Dar et al. 2024). As among ``VisitPairs`` many images are of people who do not
exist, so that a dozen patients suffice. No label is needed, and no second visit.

Axes: P pairs, D H W space. Images are ``[P, 1, D, H, W]`` in [0, 1], laid onto a template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.core.training.contrastive import Pair
from vitrael.core.training.warps import Pose, bend, coins, poses, resample, shuffled, stay, uniform

_POSE: Final = Pose(rotation_rad=0.10, stretch_frac=0.06, shift_frac=0.06)


@dataclass(frozen=True, slots=True)
class Disguise:
    """How far a copy is disguised; uniform unless said otherwise. Shares are of views."""

    pose: Pose = _POSE
    bend_frac: float = 0.04
    blend_share: float = 0.3
    blend: float = 0.45
    """Largest weight of a stranger."""
    replaced_share: float = 0.2
    """Of views of which a side is a stranger's, cut by a random plane."""
    cut_share: float = 0.1
    """Of views of which a side is dark."""
    blur_share: float = 0.4
    gamma: float = 0.4
    """Largest logarithm of the exponent."""
    shade: float = 0.12
    """Standard deviation of the coefficients of a quadratic brightness, in its logarithm."""
    gain: float = 0.3
    noise: float = 0.08
    """Largest standard deviation."""


DISGUISE: Final = Disguise()


class CopyPairs:
    """Draws batches of pairs of disguised views from laid images of split F."""

    def __init__(
        self, images: PatientImages, *, disguise: Disguise = DISGUISE, device: str = "cpu"
    ) -> None:
        """Keep the images on a device; raise DataError for fewer than two."""
        if len(images) < 2:  # noqa: PLR2004 - telling apart needs two
            raise DataError("an encoder needs at least two scans")
        image = np.ascontiguousarray(images.image_BCDHW, dtype=np.float32)
        self.image = torch.from_numpy(image).to(device)
        self.disguise = disguise

    def __call__(self, batch_images: int, rng: torch.Generator) -> Pair:
        """Return ``batch_images / 2`` pairs, each of an image of its own while there are so many.

        Half of the images are mixtures of two, and all are bent: nobody has them.
        """
        pairs = max(2, batch_images // 2)
        image, other = self._images(pairs, rng), self._images(pairs, rng)
        share = uniform((pairs, 1, 1, 1, 1), 0.0, 0.5, rng) * coins(pairs, 0.5, rng)
        nobody = resample(image + share * (other - image), stay(pairs, rng), bend(pairs, rng))
        return disguise(nobody, self.disguise, rng), disguise(nobody, self.disguise, rng)

    def _images(self, count: int, rng: torch.Generator) -> torch.Tensor:
        order: list[int] = []
        while len(order) < count:
            order += shuffled(len(self.image), rng)
        return self.image[torch.tensor(order[:count], device=self.image.device)]


def disguise(image: torch.Tensor, by: Disguise, rng: torch.Generator) -> torch.Tensor:
    """Return another disguise of each image; strangers are the next images of the batch."""
    count = len(image)
    view = _mix(image, by, rng)
    view = resample(view, poses(count, by.pose, rng), bend(count, rng, most_frac=by.bend_frac))
    mirrored = 2 if image.shape[2] > 1 else 4
    view = torch.where(coins(count, 0.5, rng), view.flip(mirrored), view)
    size = [3 if axis > 1 else 1 for axis in image.shape[2:]]
    smooth = functional.avg_pool3d(view, size, stride=1, padding=[edge // 2 for edge in size])
    view = torch.where(coins(count, by.blur_share, rng), smooth, view)
    exponent = uniform((count, 1, 1, 1, 1), -by.gamma, by.gamma, rng).exp()
    view = view.clamp(1e-4, 1) ** exponent * _shade(image, by, rng)
    view = view * uniform((count, 1, 1, 1, 1), 1 - by.gain, 1 + by.gain, rng)
    level = uniform((count, 1, 1, 1, 1), 0.0, by.noise, rng)
    return view + level * torch.randn(view.shape, generator=rng, device=rng.device)


def _mix(image: torch.Tensor, by: Disguise, rng: torch.Generator) -> torch.Tensor:
    """Return images mixed with a stranger, half replaced by one, cut, or as they are."""
    count, stranger = len(image), image.roll(1, 0)
    kind = uniform((count, 1, 1, 1, 1), 0.0, 1.0, rng)
    blended = image + uniform((count, 1, 1, 1, 1), 0.0, by.blend, rng) * (stranger - image)
    normal = torch.randn((count, 3), generator=rng, device=rng.device)
    beyond = torch.einsum("pc,cdhw->pdhw", functional.normalize(normal, dim=1), _axes(image))
    away = beyond[:, None] > uniform((count, 1, 1, 1, 1), 0.0, 0.3, rng)
    edges = np.cumsum([by.blend_share, by.replaced_share, by.cut_share]).tolist()
    view = torch.where(away & (kind < edges[2]), torch.zeros_like(image), image)
    view = torch.where(kind < edges[1], torch.where(away, stranger, image), view)
    return torch.where(kind < edges[0], blended, view)


def _shade(image: torch.Tensor, by: Disguise, rng: torch.Generator) -> torch.Tensor:
    """Return a smooth brightness, ``[P, 1, D, H, W]``, 1 in the middle."""
    axes = _axes(image)
    powers = torch.cat([axes, axes**2]).flatten(1)
    weight = torch.randn((len(image), len(powers)), generator=rng, device=rng.device)
    return (by.shade * weight @ powers).exp().reshape(len(image), 1, *image.shape[2:])


def _axes(image: torch.Tensor) -> torch.Tensor:
    """Return ``[3, D, H, W]``: the coordinates of each voxel, 0 along an axis of one voxel."""
    lines = [
        torch.linspace(-1, 1, size, device=image.device)
        if size > 1
        else torch.zeros(1, device=image.device)
        for size in image.shape[2:]
    ]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"))
