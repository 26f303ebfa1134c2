"""Learning that a disguised scan is that scan: two disguises of one image, and the loss on them.

Copies are disguised in more ways than visits differ: mixed with a stranger, cut, half replaced,
bent, brightened unevenly, smoothed, noisy. Two views of one image go through independent disguises
and must find each other among those of other images (self-supervised copy detection after Pizzi et
al. 2022, SSCD, and Dar et al. 2024). As among ``VisitPairs`` many images are of people who do not
exist, so that a dozen patients suffice. No label is needed, and no second visit: only whose a scan
is, since another visit, or the same scan after an autoencoder, is nobody else.

A clip is disguised as a picture whose channels are its frames, so that all of them move, fade and
bend alike. Then its time is: it begins elsewhere, runs backward, slower, faster, or in jerks.

Axes: P pairs, C channels, D H W space, T frames. Images are ``[P, 1, D, H, W]`` in [0, 1], laid
onto a template; in clips D is time.
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
from vitrael.core.training.warps import (
    Along,
    Pose,
    bend,
    coins,
    mirrored_axis,
    poses,
    resample,
    shuffled,
    stay,
    uniform,
)

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
_MOST_SPEED: Final = 2.0
_HELD_SHARE: Final = 0.25
"""Of views whose frames are shown twice each."""
_FEWEST_PAIRS: Final = 3
"""With fewer the two views of a pair could not be mixed with two strangers."""


class CopyPairs:
    """Draws batches of pairs of disguised views from laid images of split F."""

    def __init__(
        self,
        images: PatientImages,
        *,
        along: Along = "space",
        disguise: Disguise = DISGUISE,
        device: str = "cpu",
    ) -> None:
        """Keep the images on a device; raise DataError for fewer than two."""
        if len(images) < 2:  # noqa: PLR2004 - telling apart needs two
            raise DataError("an encoder needs at least two scans")
        image = torch.from_numpy(np.ascontiguousarray(images.image_BCDHW, dtype=np.float32))
        self.along = along
        self.image = (image if along == "space" else as_channels(image)).to(device)
        self.rows = [np.flatnonzero(images.patient_B == one) for one in np.unique(images.patient_B)]
        self.disguise = disguise

    def __call__(self, batch_images: int, rng: torch.Generator) -> Pair:
        """Return ``batch_images / 2`` pairs, each of a patient of its own while there are so many.

        Half of the images are mixtures of two patients, and all are bent: nobody has them. The two
        views of a pair are mixed with two strangers.
        """
        pairs = max(_FEWEST_PAIRS, batch_images // 2)
        row_P, other_P = self.draw_rows(pairs, rng)
        image, other = self.image[row_P], self.image[other_P]
        share = uniform((pairs, 1, 1, 1, 1), 0.0, 0.5, rng) * coins(pairs, 0.5, rng)
        nobody = resample(image + share * (other - image), stay(pairs, rng), bend(pairs, rng))
        views = [disguise(nobody, self.disguise, rng, stranger=step) for step in (1, -1)]
        if self.along == "time":
            views = [as_channels(retime(view, rng)) for view in views]
        return views[0], views[1]

    def draw_rows(self, count: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a scan of each of so many patients, and for each one of another patient.

        No two neighbors in the circle are of one patient, if there are three patients.
        """
        order = shuffled(len(self.rows), rng)
        patients = [order[place % len(order)] for place in range(count)]
        if patients[-1] == patients[0] and len(order) > 1:
            patients[-1] = order[1]
        steps = [1 + _below(max(1, len(self.rows) - 1), rng) for _ in patients]
        others = [(one + step) % len(order) for one, step in zip(patients, steps, strict=True)]
        row_P, other_P = (
            torch.tensor([int(self.rows[who][_below(len(self.rows[who]), rng)]) for who in side])
            for side in (patients, others)
        )
        return row_P.to(self.image.device), other_P.to(self.image.device)


def as_channels(clip: torch.Tensor) -> torch.Tensor:
    """Return clips ``[P, 1, T, H, W]`` as pictures ``[P, T, 1, H, W]``, or the other way round."""
    return clip.transpose(1, 2).contiguous()


def disguise(
    image: torch.Tensor, by: Disguise, rng: torch.Generator, *, stranger: int | None = None
) -> torch.Tensor:
    """Return another disguise of each image, ``[P, C, D, H, W]``.

    The stranger of an image is so many places before it in the batch; unless it is said, as many
    as are drawn, so that the next call rarely takes the same.
    """
    count = len(image)
    if stranger is None:
        stranger = 1 + _below(max(1, count - 1), rng)
    view = _mix(image, image.roll(stranger, 0), by, rng)
    view = resample(view, poses(count, by.pose, rng), bend(count, rng, most_frac=by.bend_frac))
    view = torch.where(coins(count, 0.5, rng), view.flip(mirrored_axis(image.shape[2])), view)
    size = [3 if axis > 1 else 1 for axis in image.shape[2:]]
    smooth = functional.avg_pool3d(view, size, stride=1, padding=[edge // 2 for edge in size])
    view = torch.where(coins(count, by.blur_share, rng), smooth, view)
    exponent = uniform((count, 1, 1, 1, 1), -by.gamma, by.gamma, rng).exp()
    view = view.clamp(1e-4, 1) ** exponent * _shade(image, by, rng)
    view = view * uniform((count, 1, 1, 1, 1), 1 - by.gain, 1 + by.gain, rng)
    level = uniform((count, 1, 1, 1, 1), 0.0, by.noise, rng)
    return view + level * torch.randn(view.shape, generator=rng, device=rng.device)


def retime(clip_PTDHW: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return clips, frames second, begun at any frame and run at another speed, either way.

    After the last frame follows the first one. Of some clips each frame is shown twice.
    """
    count, frames = clip_PTDHW.shape[:2]
    first, power, way = uniform((3, count, 1), 0.0, 1.0, rng)
    speed = _MOST_SPEED ** (2 * power - 1) * torch.where(way < 1 / 2, -1.0, 1.0)
    time = torch.arange(frames, device=rng.device)
    held = coins(count, _HELD_SHARE, rng).reshape(count, 1)
    line = (first * frames + speed * torch.where(held, time // 2 * 2, time)).floor().long() % frames
    return clip_PTDHW[torch.arange(count, device=rng.device)[:, None], line]


def _below(most: int, rng: torch.Generator) -> int:
    return int(torch.randint(most, (1,), generator=rng, device=rng.device))


def _mix(
    image: torch.Tensor, stranger: torch.Tensor, by: Disguise, rng: torch.Generator
) -> torch.Tensor:
    """Return images mixed with a stranger, half replaced by one, cut, or as they are."""
    count = len(image)
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
