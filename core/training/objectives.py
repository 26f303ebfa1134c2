"""What the training of a codec minimizes; an objective is a small callable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from vitrael.core.records import Loss

if TYPE_CHECKING:
    from vitrael.core.interfaces import Objective
    from vitrael.core.models.nets.autoencoder import KLCodec
    from vitrael.core.training.critic import Critic
    from vitrael.core.training.perceptual import Perceptual


class AutoencoderObjective:
    """Reconstruction, a weak pull of the latents toward a normal, and on request how it looks.

    Reconstruction is L1 and squared error. The squared error makes small dark structures, such as
    ventricles, count from the start: under L1 alone the median brain, without them, is a long
    plateau. How an image looks is judged by a perceptual distance and by a critic that learns
    meanwhile, as in Pinaya et al. 2022, section 2.1.
    """

    def __init__(
        self,
        *,
        kl_weight: float,
        square_weight: float,
        perceptual: Perceptual | None = None,
        perceptual_weight: float = 0.0,
        critic: Critic | None = None,
    ) -> None:
        """Take the weights beside L1; all terms are means over elements.

        A critic must also be given to the loop, as the companion that it trains.
        """
        self.kl_weight = kl_weight
        self.square_weight = square_weight
        self.perceptual = perceptual
        self.perceptual_weight = perceptual_weight
        self.critic = critic

    def __call__(self, model: KLCodec, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        """Return the loss of images ``[B, 1, ...]`` in [0, 1]; the critic's own loss is in it."""
        mean, std = model.posterior(batch)
        noise = torch.randn(mean.shape, generator=rng).to(mean.device)
        image = model.reconstruct(mean + std * noise).float()
        l1 = functional.l1_loss(image, batch)
        square = functional.mse_loss(image, batch)
        variance = std.float() ** 2
        kl = 0.5 * (mean.float() ** 2 + variance - variance.log() - 1).mean()
        total = l1 + self.square_weight * square + self.kl_weight * kl
        parts = {"l1": l1, "square": square, "kl": kl}
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(image, batch)
            total = total + self.perceptual_weight * parts["perceptual"]
        if self.critic is not None:
            parts["adversarial"] = self.critic.fooling(image)
            parts["critic"] = self.critic.judging(batch, image)
            total = total + self.critic.config.weight * parts["adversarial"] + parts["critic"]
        return Loss(total=total, parts=parts)


def companion_of(objective: Objective) -> Critic | None:
    """Return what the loop must train beside an objective's module; None as a rule."""
    return objective.critic if isinstance(objective, AutoencoderObjective) else None
