"""The one training loop: draw a batch, ask the objective, take a step, keep the average, report.

Federated and centralized training are the same loop: a federated round is a part of the whole
length that starts at ``start_images``, so that the learning rate follows one schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch

from vitrael.core.errors import DataError
from vitrael.core.training.state import MovingAverage

if TYPE_CHECKING:
    from torch import nn

    from vitrael.core.configs import TrainingConfig
    from vitrael.core.interfaces import Objective

Batch = TypeVar("Batch")
Draw = Callable[[int, torch.Generator], Batch]
"""Given a number of images and a generator, the batch to learn from."""
Progress = Callable[[int, int], None]
"""Called with the images done and the images of this call."""

_CURVE_POINTS = 50


@dataclass(slots=True)
class Curve:
    """The course of the losses: each point is the mean since the one before."""

    images: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)


def fit(
    model: nn.Module,
    objective: Objective,
    draw: Draw[Batch],
    config: TrainingConfig,
    *,
    length_images: int,
    rng: torch.Generator,
    start_images: int = 0,
    progress: Progress | None = None,
    bf16: bool = False,
) -> Curve:
    """Train a module in place for ``length_images`` images and return the loss curve.

    On return the module holds the exponential moving average of its weights when the config asks
    for one. Adam starts afresh with each call. The learning rate warms up linearly and falls as a
    half cosine over ``config.length_images``. Equal inputs, threads and machine give equal weights.

    Raises DataError when a loss is not finite.
    """
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    halflife = config.ema_halflife_images
    average = MovingAverage(model, halflife) if halflife else None
    steps = max(1, math.ceil(length_images / config.batch_images))
    device_type = next(model.parameters()).device.type
    curve, window = Curve(), _Window()
    for step in range(steps):
        done = step * config.batch_images
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, start_images + done)
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=bf16):
            loss = objective(model, draw(config.batch_images, rng), rng)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        if average is not None:
            average.follow(model, config.batch_images)
        window.add({"total": loss.total, **loss.parts})
        if (step + 1) * _CURVE_POINTS // steps > step * _CURVE_POINTS // steps:
            window.close(curve, start_images + done + config.batch_images)
            if progress is not None:
                progress(min(done + config.batch_images, length_images), length_images)
    if average is not None:
        average.copy_to(model)
    model.eval()
    return curve


def learning_rate(config: TrainingConfig, images: int) -> float:
    """Return the learning rate after a number of images: linear warm-up, then half a cosine."""
    if images < config.warmup_images:
        return (
            config.learning_rate
            * (images + config.batch_images)
            / (config.warmup_images + config.batch_images)
        )
    share = min(1.0, images / config.length_images)
    return config.learning_rate * max(0.02, 0.5 * (1 + math.cos(math.pi * share)))


class _Window:
    """Sums of losses since the last point of the curve, kept on the device."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        for name, value in parts.items():
            loss = value.detach().float()
            self.sums[name] = self.sums[name] + loss if name in self.sums else loss
        self.count += 1

    def close(self, curve: Curve, images: int) -> None:
        curve.images.append(images)
        for name, total in self.sums.items():
            mean = float(total) / self.count
            if not math.isfinite(mean):
                raise DataError(
                    "training stopped: a loss is not finite",
                    why=f"{name} after {images} images",
                    fix="lower learning_rate or set performance.bf16 to off",
                )
            curve.losses.setdefault(name, []).append(mean)
        self.sums, self.count = {}, 0
