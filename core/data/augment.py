"""Images that are moved a little each time they are drawn, so that none is learned by heart.

Axes: B batch, C channels, D H W space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

_MIRRORED_FRAC: Final = 0.5
_GAINS: Final = (0.9, 1.1)

Draw = Callable[[int, torch.Generator], torch.Tensor]


def draw_moved(count: int, read: Callable[[torch.Tensor], torch.Tensor], *, device: str) -> Draw:
    """Return a function that draws of ``count`` images with replacement, each moved its own way.

    ``read`` gives the images ``[B, C, D, H, W]`` of rows. Half are mirrored left to right, each is
    shifted by at most one voxel along every axis (the border is background), and its intensities
    are scaled by up to a tenth and cut to [0, 1]. A codec that sees the scans themselves again and
    again decodes everything toward them, and an audit notices.
    """

    def draw(batch_images: int, rng: torch.Generator) -> torch.Tensor:
        rows = torch.randint(count, (batch_images,), generator=rng)
        mirrored = torch.rand(batch_images, generator=rng) < _MIRRORED_FRAC
        shifts = torch.randint(-1, 2, (batch_images, 3), generator=rng).tolist()
        low, high = _GAINS
        gain = torch.rand(batch_images, generator=rng) * (high - low) + low
        batch = torch.stack(
            [
                torch.roll(image.flip(1) if flip else image, shift, dims=(1, 2, 3))
                for image, flip, shift in zip(read(rows), mirrored, shifts, strict=True)
            ]
        )
        return (batch * gain.reshape(-1, 1, 1, 1, 1)).clamp(0, 1).to(device)

    return draw
