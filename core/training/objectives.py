"""What the training loop minimizes; each objective is a small callable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from vitrael.core.records import Loss
from vitrael.core.sampling.denoisers import signal_and_noise

if TYPE_CHECKING:
    from vitrael.core.models.nets.autoencoder import KLCodec
    from vitrael.core.models.nets.unet import HybridUNet


class AutoencoderObjective:
    """Reconstruction by L1 and squared error, and a weak pull of the latents toward a normal.

    The squared error makes small dark structures, such as ventricles, count from the start:
    under L1 alone the median brain, without them, is a long plateau.
    """

    def __init__(self, *, kl_weight: float, square_weight: float) -> None:
        """Take the weights beside L1; all three terms are means over elements."""
        self.kl_weight = kl_weight
        self.square_weight = square_weight

    def __call__(self, model: KLCodec, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        """Return the loss of images ``[B, 1, D, H, W]`` in [0, 1]."""
        mean, std = model.posterior(batch)
        noise = torch.randn(mean.shape, generator=rng).to(mean.device)
        image = model.reconstruct(mean + std * noise).float()
        l1 = functional.l1_loss(image, batch)
        square = functional.mse_loss(image, batch)
        variance = std.float() ** 2
        kl = 0.5 * (mean.float() ** 2 + variance - variance.log() - 1).mean()
        total = l1 + self.square_weight * square + self.kl_weight * kl
        return Loss(total=total, parts={"l1": l1, "square": square, "kl": kl})


class VelocityObjective:
    """Mean squared error of the predicted ``v`` (Salimans and Ho 2022), timesteps uniform."""

    def __init__(self, sigmas: torch.Tensor) -> None:
        """Take the rising ``[T]`` noise levels of the forward process."""
        self.sigmas = sigmas

    def __call__(
        self,
        model: HybridUNet,
        batch: tuple[torch.Tensor, torch.Tensor],
        rng: torch.Generator,
    ) -> Loss:
        """Return the loss of scaled latents ``[B, C, d, h, w]`` with conditions ``[B, K]``."""
        z_0, condition = batch
        step = torch.randint(len(self.sigmas), (len(z_0),), generator=rng).to(z_0.device)
        alpha, beta = signal_and_noise(self.sigmas.to(z_0.device)[step], z_0.ndim)
        noise = torch.randn(z_0.shape, generator=rng).to(z_0.device)
        velocity = model(alpha * z_0 + beta * noise, step, condition)
        mse = functional.mse_loss(velocity.float(), alpha * noise - beta * z_0)
        return Loss(total=mse, parts={})
