"""What a training run carries beside the weights."""

from __future__ import annotations

import torch
from torch import nn


class MovingAverage:
    """Exponential moving average of a module's parameters, its half-life counted in images."""

    def __init__(self, model: nn.Module, halflife_images: int) -> None:
        """Start the average at the module's present weights."""
        self.halflife_images = halflife_images
        self.images = 0
        self.shadow = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def follow(self, model: nn.Module, images: int) -> None:
        """Move the average toward the module after a step on so many images.

        Early on the half-life is shortened to a tenth of the images seen, so that the start
        is forgotten (Karras et al. 2024, section 3.1, use the same ramp-up).
        """
        self.images += images
        halflife = min(self.halflife_images, max(self.images / 10, 1))
        keep = 0.5 ** (images / halflife)
        for average, parameter in zip(self.shadow, model.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 - keep)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Put the averaged weights into the module."""
        for average, parameter in zip(self.shadow, model.parameters(), strict=True):
            parameter.copy_(average)
