"""What the training of a codec or of a classifier minimizes; an objective is a small callable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.records import Loss
from vitrael.core.rng import layers_draw_from

if TYPE_CHECKING:
    from vitrael.core.data.augment import ViewBatch
    from vitrael.core.interfaces import Objective
    from vitrael.core.models.nets.autoencoder import KLCodec
    from vitrael.core.training.critic import Critic
    from vitrael.core.training.perceptual import Perceptual

_FEWEST_CLASSES: Final = 2


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


class ClassifierObjective:
    """Cross-entropy, with a weight for each class and for each picture.

    Class weights divide by their mean over the batch, as usual. Weights of pictures are those of
    ``mixing_weights``: they count while a module is trained and are one when it is evaluated, so
    that two trainings can be compared by the loss of unseen pictures.
    """

    def __init__(
        self,
        *,
        classes: int,
        class_weights: Sequence[float] | None = None,
        emphasis: float = 0.0,
        mixed_frac: float = 1.0,
    ) -> None:
        """Take the classes, their weights, and lambda and f of wBackMix; lambda 0 is BackMix.

        Raises DataError for fewer than two classes, for weights that are not one positive number
        for each, and for lambda and f as ``mixing_weights``.
        """
        if classes < _FEWEST_CLASSES:
            raise DataError("there is nothing to tell apart", why="a classifier needs two classes")
        weights = [1.0] * classes if class_weights is None else [float(w) for w in class_weights]
        if len(weights) != classes or not all(math.isfinite(w) and w > 0 for w in weights):
            raise DataError(
                "the class weights cannot be used",
                why=f"{classes} classes need as many positive numbers",
                fix="give one weight for each class, or none at all",
            )
        _check_mixing(emphasis, mixed_frac)
        self.class_weight_K = torch.tensor(weights)
        self.emphasis = emphasis
        self.mixed_frac = mixed_frac

    def __call__(self, model: nn.Module, batch: ViewBatch, rng: torch.Generator) -> Loss:
        """Return the loss of a batch; part ``cross_entropy`` is the mean without any weight.

        What a module that is trained drops out is drawn from ``rng``; one that is evaluated drops
        nothing and draws nothing. Raises DataError for a label that the network has no logit for.
        """
        device = batch.image_BCHW.device
        with layers_draw_from(rng, device=device) if model.training else nullcontext():
            logit_BK = model(batch.image_BCHW).float()
        label_B = batch.label_B
        classes = len(self.class_weight_K)
        if logit_BK.shape[1] != classes or int(label_B.min()) < 0 or int(label_B.max()) >= classes:
            raise DataError(
                "the labels are not those of the network",
                why=f"{classes} classes are learned and {logit_BK.shape[1]} logits given",
                fix="map the labels to the network's classes",
            )
        nats_B = functional.cross_entropy(logit_BK, label_B, reduction="none")
        weight_B = self.class_weight_K.to(logit_BK)[label_B]
        weighted_B = weight_B / weight_B.mean() * nats_B
        if model.training:
            weighted_B = weighted_B * mixing_weights(
                batch.is_mixed_B, emphasis=self.emphasis, mixed_frac=self.mixed_frac
            )
        return Loss(total=weighted_B.mean(), parts={"cross_entropy": nats_B.mean()})


def mixing_weights(is_mixed_B: torch.Tensor, *, emphasis: float, mixed_frac: float) -> torch.Tensor:
    """Return wBackMix's weights: ``1 + lambda (1 - f)`` for mixed pictures, ``1 - lambda f`` else.

    Their mean over all pictures is one (Bransby et al., MICCAI 2024). Raises DataError for f
    outside (0, 1] and for lambda outside [0, 1 / f), where plain pictures would count for nothing
    or less.
    """
    _check_mixing(emphasis, mixed_frac)
    mixed, plain = 1 + emphasis * (1 - mixed_frac), 1 - emphasis * mixed_frac
    return torch.where(is_mixed_B, mixed, plain)


def _check_mixing(emphasis: float, mixed_frac: float) -> None:
    if not 0 < mixed_frac <= 1:
        raise DataError("the share of mixed pictures is outside (0, 1]", fix="give f as it is")
    if not 0 <= emphasis * mixed_frac < 1:
        raise DataError(
            "the weight of mixed pictures is too large or negative",
            why=f"plain pictures would get the weight {1 - emphasis * mixed_frac:.3g}",
            fix=f"choose a lambda from 0 to below {1 / mixed_frac:.3g}",
        )


def companion_of(objective: Objective) -> Critic | None:
    """Return what the loop must train beside an objective's module; None as a rule."""
    return objective.critic if isinstance(objective, AutoencoderObjective) else None
