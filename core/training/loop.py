"""The one training loop: draw a batch, ask the objective, take a step, keep the average, report.

Federated and centralized training are the same loop: a federated round is a part of the whole
length that starts at ``start_images``, so that the learning rate follows one schedule. With
checkpoints, a training that was stopped or killed goes on to the same weights, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch

from vitrael.core.errors import DataError, TaskStopped, WeightsError
from vitrael.core.training.state import Checkpoints, Curve, MovingAverage, State

if TYPE_CHECKING:
    from torch import nn

    from vitrael.core.configs import TrainingConfig
    from vitrael.core.interfaces import Objective
    from vitrael.core.records import Loss

Batch = TypeVar("Batch")
Draw = Callable[[int, torch.Generator], Batch]
"""Given a number of images and a generator, the batch to learn from."""
Progress = Callable[[int, int], None]
"""Called with the images done and the images of this call."""

_CURVE_POINTS = 50


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
    poll: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    bf16: bool = False,
) -> Curve:
    """Train a module in place for ``length_images`` images and return the loss curve.

    On return the module holds the exponential moving average of its weights when the config asks
    for one. Adam starts afresh with each call. The learning rate warms up linearly and falls as a
    half cosine over ``config.length_images``. Equal inputs, threads and machine give equal weights.

    ``progress`` is called at each point of the curve, ``poll`` after every step; when one of them
    raises TaskStopped, the step is done and saved before it is raised on. What ``checkpoints``
    holds of this training is gone on from: ``model`` and ``rng`` are then those of that step.

    Raises DataError when a loss is not finite, WeightsError for a checkpoint of another network.
    """
    model.train()
    course = _Course(model, config, rng)
    kept = checkpoints or _Unkept()
    if (state := kept.load()) is not None:
        course.restore(state)
    steps = max(1, math.ceil(length_images / config.batch_images))
    device_type = next(model.parameters()).device.type
    for step in range(course.step, steps):
        done = step * config.batch_images
        for group in course.optimizer.param_groups:
            group["lr"] = learning_rate(config, start_images + done)
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=bf16):
            loss = objective(model, draw(config.batch_images, rng), rng)
        course.descend(loss)
        told = min(done + config.batch_images, length_images), length_images
        try:
            if (step + 1) * _CURVE_POINTS // steps > step * _CURVE_POINTS // steps:
                course.window.close(course.curve, start_images + done + config.batch_images)
                if progress is not None:
                    progress(*told)
            if poll is not None:
                poll(*told)
        except TaskStopped:
            kept.save(course.state())
            raise
        if kept.is_due():
            kept.save(course.state())
    if course.average is not None:
        course.average.copy_to(model)
    model.eval()
    return course.curve


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


class _Unkept:
    """Checkpoints of a training that is begun anew whenever it is lost."""

    def load(self) -> State | None:
        return None

    def is_due(self) -> bool:
        return False

    def save(self, state: State) -> None:
        """Keep nothing."""


class _Course:
    """All that changes while a module is trained."""

    def __init__(self, model: nn.Module, config: TrainingConfig, rng: torch.Generator) -> None:
        self.model = model
        self.config = config
        self.rng = rng
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        halflife = config.ema_halflife_images
        self.average = MovingAverage(model, halflife) if halflife else None
        self.curve, self.window = Curve(), _Window()
        self.step = 0

    def descend(self, loss: Loss) -> None:
        """Take the step down a loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=1.0)
        self.optimizer.step()
        if self.average is not None:
            self.average.follow(self.model, self.config.batch_images)
        self.window.add({"total": loss.total, **loss.parts})
        self.step += 1

    def state(self) -> State:
        """Return everything, as the training's own memory."""
        return State(
            dict(self._tensors()),
            step=self.step,
            average_images=self.average.images if self.average is not None else 0,
            window_steps=self.window.count,
            curve=self.curve,
        )

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Take up a State; WeightsError when its weights are not those of this module."""
        tensors = dict(state.tensors)
        wanted = {n: t for n, t in self._tensors() if not n.startswith(("adam/", "window/"))}
        for name, tensor in wanted.items():
            found = tensors.get(name)
            if found is None or (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
                raise WeightsError(
                    "a checkpoint is of another network",
                    why=f"{name} is missing or has another shape",
                    fix="remove the checkpoint; the training then begins anew",
                )
        self.rng.set_state(tensors.pop("generator"))
        for name, tensor in wanted.items():
            if name != "generator":
                tensor.copy_(tensors.pop(name))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "adam":
                number, _, part = rest.partition("/")
                moments.setdefault(int(number), {})[part] = tensor.clone()
            else:
                self.window.sums[rest] = tensor.clone().to(next(self.model.parameters()).device)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.window.count = state.window_steps
        if self.average is not None:
            self.average.images = state.average_images
        self.curve, self.step = state.curve, state.step

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield f"model/{name}", tensor
        for number, tensor in enumerate(self.average.shadow if self.average is not None else ()):
            yield f"average/{number}", tensor
        yield "generator", self.rng.get_state()
        for number, moments in self.optimizer.state_dict()["state"].items():
            for part, tensor in moments.items():
                yield f"adam/{number}/{part}", tensor
        for name, tensor in self.window.sums.items():
            yield f"window/{name}", tensor


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
