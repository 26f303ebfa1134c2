"""A critic that learns beside a codec to tell its images from real ones, and what it says to it.

Least-squares adversarial learning (Mao et al. 2017, equation 9 with labels 0 and 1): the critic is
drawn toward 1 on real patches and 0 on the codec's, the codec toward images on which the critic
says 1. Both terms stand in one sum with one backward pass, and yet no gradient crosses over: the
codec's term sees the critic's weights as constants, the critic's term the codec's images as such.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import functional_call

if TYPE_CHECKING:
    from vitrael.core.configs import CriticConfig


class Critic(nn.Module):
    """A network that scores patches, and how it takes part in a training.

    It is a companion in the training loop: trained with its own learning rate and clipping, kept
    in checkpoints, and never handed out.
    """

    images: int
    """Images of this training that are done; the loop tells it before each step."""

    def __init__(self, network: nn.Module, config: CriticConfig) -> None:
        """Take a network from images to scores ``[B, 1, ...]`` without statistics over batches.

        Batch normalization would let one image's score depend on the others, fail on batches of
        one, and differ between processes that share a batch.
        """
        super().__init__()
        self.network = network
        self.config = config
        self.images = 0

    @property
    def learning_rate_factor(self) -> float:
        """Its learning rate over that of what it is trained beside."""
        return self.config.learning_rate_factor

    def fooling(self, image: torch.Tensor) -> torch.Tensor:
        """Return how far the critic is from taking images for real; 0 before its start.

        Its gradient reaches the images and none of the critic's weights.
        """
        if self.images < self.config.start_images:
            return image.new_zeros(())
        constants = {name: tensor.detach() for name, tensor in self.network.state_dict().items()}
        score: torch.Tensor = functional_call(self.network, constants, (image,))
        return _distance(score, 1.0)

    def judging(self, real: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Return how badly the critic tells real from made; its gradient stays with the critic."""
        score_real, score_made = self.network(torch.cat([real, image.detach()])).chunk(2)
        return 0.5 * (_distance(score_real, 1.0) + _distance(score_made, 0.0))


def _distance(score: torch.Tensor, label: float) -> torch.Tensor:
    return ((score.float() - label) ** 2).mean()
