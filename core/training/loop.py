"""The one training loop: draw a batch, ask the objective, take a step, keep the average, report.

Federated and centralized training are the same loop: a federated round is a part of the whole
length that starts at ``start_images``, so that the learning rate follows one schedule. With
checkpoints, a training that was stopped or killed goes on to the same weights, bit for bit.
Several processes may share it, each with its part of every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch

from vitrael.core.errors import DataError, TaskStopped, WeightsError
from vitrael.core.training.distributed import ALONE, Ranks
from vitrael.core.training.precision import autocast
from vitrael.core.training.state import Checkpoints, Curve, MovingAverage, State

if TYPE_CHECKING:
    from torch import nn

    from vitrael.core.configs import TrainingConfig
    from vitrael.core.interfaces import Objective
    from vitrael.core.training.critic import Critic

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
    companion: Critic | None = None,
    ranks: Ranks = ALONE,
) -> Curve:
    """Train a module in place for ``length_images`` images and return the loss curve.

    On return the module holds the exponential moving average of its weights when the config asks
    for one. Adam starts afresh with each call. The learning rate warms up linearly and falls as a
    half cosine over ``config.length_images``. Equal inputs, threads and machine give equal weights.

    A step learns ``config.accumulated_batches`` batches of ``config.batch_images``, of which each
    of ``ranks`` draws its part; all of them begin with the weights of the first, which alone saves.
    A ``companion`` of the objective is trained beside the module.

    ``progress`` is called at each point of the curve, ``poll`` after every step; when one of them
    raises TaskStopped, the step is done and saved before it is raised on. Of several ``ranks`` all
    must raise it at the same step: one that leaves alone lets the others wait for its gradients
    until they give up. What ``checkpoints`` holds of this training is gone on from: ``model`` and
    ``rng`` are then those of that step.

    Raises DataError when a loss or a weight is not finite, at the latest where the training would
    be saved, so that what was saved before is still good; WeightsError for a checkpoint of another
    network.
    """
    course = _Course(model, config, rng, companion=companion, ranks=ranks)
    kept = checkpoints or _Unkept()
    if (state := kept.load()) is not None:
        course.restore(state)
    course.meet()
    images = course.step_images
    steps = max(1, math.ceil(length_images / images))
    for step in range(course.step, steps):
        done = step * images
        course.set_rate(learning_rate(config, start_images + done))
        course.advance(objective, draw, bf16=bf16)
        told = min(done + images, length_images), length_images
        try:
            if (step + 1) * _CURVE_POINTS // steps > step * _CURVE_POINTS // steps:
                course.window.close(course.curve, start_images + done + images)
                if progress is not None:
                    progress(*told)
            if poll is not None:
                poll(*told)
        except TaskStopped:
            course.save(kept, start_images + done + images)
            raise
        if kept.is_due():
            course.save(kept, start_images + done + images)
    course.demand_finite(start_images + steps * images)
    if course.average is not None:
        course.average.copy_to(model)
    model.eval()
    return course.curve


def learning_rate(config: TrainingConfig, images: int) -> float:
    """Return the learning rate after a number of images: linear warm-up, then half a cosine."""
    if images < config.warmup_images:
        step = config.step_images
        return config.learning_rate * (images + step) / (config.warmup_images + step)
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

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        rng: torch.Generator,
        *,
        companion: Critic | None,
        ranks: Ranks,
    ) -> None:
        self.model = model
        self.config = config
        self.rng = rng
        self.companion = companion
        self.ranks = ranks
        self.step_images = config.step_images
        self.device = next(model.parameters()).device
        learners: list[tuple[nn.Module, float]] = [(model, 1.0)]
        if companion is not None:
            learners.append((companion.to(self.device), companion.learning_rate_factor))
        self.learners = [module.train() for module, _ in learners]
        groups = [{"params": [*m.parameters()], "factor": factor} for m, factor in learners]
        # One kernel for all weights. On a CPU only that of foreach gives, bit for bit, the weights
        # of one by one, in less time; the fused one is faster still.
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            groups, lr=config.learning_rate, fused=fused, foreach=not fused
        )
        halflife = config.ema_halflife_images
        self.average = MovingAverage(model, halflife) if halflife else None
        self.curve, self.window = Curve(), _Window()
        self.step = 0

    def meet(self) -> None:
        """Begin at the same step and weights in all processes."""
        self.ranks.agree(self.step, "the step to go on from", device=self.device)
        for module in self.learners:
            self.ranks.spread([*module.state_dict().values()])
        if self.average is not None:
            self.ranks.spread(self.average.shadow)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]

    def advance(self, objective: Objective, draw: Draw[Batch], *, bf16: bool) -> None:
        """Take the step down the mean loss of the batches that belong to it."""
        batches = self.config.accumulated_batches
        part = self.ranks.part_of(self.config.batch_images)
        rng = self.ranks.stream(self.rng)
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, torch.Tensor] = {}
        if self.companion is not None:
            self.companion.images = self.step * self.step_images
        for _ in range(batches):
            with autocast(self.learners, self.device, bf16=bf16):
                loss = objective(self.model, draw(part, rng), rng)
            (loss.total / batches).backward()
            _add({"total": loss.total, **loss.parts}, losses, share=1 / batches)
        self._descend(losses)

    def _descend(self, losses: dict[str, torch.Tensor]) -> None:
        weights = [[*module.parameters()] for module in self.learners]
        slopes = [p.grad for group in weights for p in group if p.grad is not None]
        self.ranks.average([*slopes, *losses.values()])
        for group in weights:
            torch.nn.utils.clip_grad_norm_(group, max_norm=1.0)
        self.optimizer.step()
        if self.average is not None:
            self.average.follow(self.model, self.step_images)
        self.window.add(losses)
        self.step += 1

    def demand_finite(self, images: int) -> None:
        """Raise DataError unless the losses of the open window and all weights are finite."""
        self.window.demand_finite(images)
        weights = [weight for module in self.learners for weight in module.parameters()]
        sound = torch.stack([weight.detach().isfinite().all() for weight in weights])
        if not bool(sound.all()):
            raise _spoiled("a weight", f"found after {images} images")

    def save(self, kept: Checkpoints, images: int) -> None:
        """Keep the state, once for all processes; DataError where it is not finite.

        What is not finite stays so: going on from it would fail for ever.
        """
        self.demand_finite(images)
        if self.ranks.is_first:
            kept.save(self.state())

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
                self.window.sums[rest] = tensor.clone().to(self.device)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.window.count = state.window_steps
        if self.average is not None:
            self.average.images = state.average_images
        self.curve, self.step = state.curve, state.step

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.model.state_dict().items():
            yield f"model/{name}", tensor
        if self.companion is not None:
            for name, tensor in self.companion.state_dict().items():
                yield f"companion/{name}", tensor
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

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        _add(losses, self.sums)
        self.count += 1

    def close(self, curve: Curve, images: int) -> None:
        self.demand_finite(images)
        curve.images.append(images)
        for name, total in self.sums.items():
            curve.losses.setdefault(name, []).append(float(total) / self.count)
        self.sums, self.count = {}, 0

    def demand_finite(self, images: int) -> None:
        for name, total in self.sums.items():
            if not math.isfinite(float(total)):
                raise _spoiled("a loss", f"{name} after {images} images")


def _spoiled(what: str, why: str) -> DataError:
    return DataError(
        f"training stopped: {what} is not finite",
        why=why,
        fix="lower learning_rate or set performance.bf16 to off",
    )


def _add(
    losses: Mapping[str, torch.Tensor], sums: dict[str, torch.Tensor], *, share: float = 1.0
) -> None:
    """Add a share of each loss to its sum."""
    for name, value in losses.items():
        loss = share * value.detach().float()
        sums[name] = sums[name] + loss if name in sums else loss
