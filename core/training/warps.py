"""Random poses and deformations of images, batch by batch, for learning without labels.

Images are ``[B, 1, D, H, W]``; coordinates run from -1 to 1 along each axis. The frames of a clip
are moved as one: they go through these functions as the channels of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch.nn import functional

Along = Literal["space", "time"]
"""What the first of an image's three axes is: a volume's left to right, or the frames of a clip."""

BEND_FRAC: Final = 0.16
"""Largest standard deviation of the displacements, of half the image."""
_BEND_KNOTS: Final = 4


@dataclass(frozen=True, slots=True)
class Pose:
    """How far an image is moved at most; uniform."""

    rotation_rad: float
    stretch_frac: float
    shift_frac: float
    """Of half the image."""


def mirrored_axis(depth: int, *, along: Along = "space") -> int:
    """Return the axis of ``[B, 1, D, H, W]`` from left to right: D, or W in pictures and clips."""
    return 2 if depth > 1 and along == "space" else 4


def shuffled(count: int, rng: torch.Generator) -> list[int]:
    """Return the numbers below ``count`` in random order."""
    order: list[int] = torch.randperm(count, generator=rng, device=rng.device).tolist()
    return order


def uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    """Return uniform numbers between two."""
    return low + (high - low) * torch.rand(shape, generator=rng, device=rng.device)


def coins(count: int, share: float, rng: torch.Generator) -> torch.Tensor:
    """Return ``[B, 1, 1, 1, 1]`` bool, true with probability ``share``."""
    return uniform((count, 1, 1, 1, 1), 0.0, 1.0, rng) < share


def poses(count: int, by: Pose, rng: torch.Generator) -> torch.Tensor:
    """Return ``[B, 3, 4]`` affine maps near the identity."""
    turn = uniform((count, 3), -by.rotation_rad, by.rotation_rad, rng)
    zero = torch.zeros(count, device=rng.device)
    x, y, z = turn.unbind(1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(count, 3, 3)
    stretch = 1 + uniform((count, 3), -by.stretch_frac, by.stretch_frac, rng)
    shift = uniform((count, 3, 1), -by.shift_frac, by.shift_frac, rng)
    return torch.cat([torch.linalg.matrix_exp(skew) * stretch[:, None], shift], dim=2)


def stay(count: int, rng: torch.Generator) -> torch.Tensor:
    """Return ``[B, 3, 4]`` maps that move nothing."""
    return torch.eye(3, 4, device=rng.device).repeat(count, 1, 1)


def bend(count: int, rng: torch.Generator, *, most_frac: float = BEND_FRAC) -> torch.Tensor:
    """Return ``[B, 3, k, k, k]`` displacements at the knots of a coarse lattice.

    Their standard deviation is uniform up to ``most_frac`` of half the image.
    """
    shape = (count, 3, _BEND_KNOTS, _BEND_KNOTS, _BEND_KNOTS)
    knots = torch.randn(shape, generator=rng, device=rng.device)
    return knots * uniform((count, 1, 1, 1, 1), 0.0, most_frac, rng)


def resample(
    image: torch.Tensor, pose_B34: torch.Tensor, displaced: torch.Tensor | None = None
) -> torch.Tensor:
    """Return images ``[B, C, D, H, W]`` through affine maps and displacements; zero outside."""
    lines = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in image.shape[:1:-1]]
    x, y, z = (axis.permute(2, 1, 0) for axis in torch.meshgrid(*lines, indexing="ij"))
    place_DHWA = torch.stack([x, y, z, torch.ones_like(x)], -1).to(image.device)
    points = torch.einsum("dhwa,bia->bdhwi", place_DHWA, pose_B34)
    if displaced is not None:
        size = list(image.shape[2:])
        field = functional.interpolate(displaced, size=size, mode="trilinear", align_corners=True)
        points = points + field.permute(0, 2, 3, 4, 1)
    return functional.grid_sample(image, points, align_corners=True, padding_mode="zeros")
