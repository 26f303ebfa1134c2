"""The descent that inversion stands on: variables of a frozen generator, each row on its own.

Adam moves every number by itself and the losses of rows are only added, so rows that are searched
together do not touch each other where the generator does not mix them.

Axes: B images, C channels, K conditions, R restarts, I iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch

from vitrael.core.errors import DataError, UsageError
from vitrael.core.sampling.edges import edge_distance

if TYPE_CHECKING:
    from vitrael.core.sampling.operators import Operator

Variables = tuple[torch.Tensor, ...]
"""The latent or noise ``[B, C, ...]`` and, where it is searched, the condition ``[B, K]``."""
Progress = Callable[[int, int], None]
"""Called with the iterations done and those of the whole call at most."""

_WARM_UP_FRAC: Final = 0.05
_MOST_RESTARTS: Final = 64
_MOST_ITERATIONS: Final = 100_000


class Distance(Protocol):
    """A distance beside that of single voxels; ``name`` goes into the record."""

    @property
    def name(self) -> str:
        """Return what a report calls it."""

    def __call__(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return ``[B]`` distances between what is generated and what was measured."""


@dataclass(frozen=True, slots=True)
class GradientDistance:
    """Mean absolute difference of gradients over scales that halve: needs no weights.

    The declared fallback where no perceptual network is at hand; ``core.sampling.edges`` has it.
    """

    scales: int = 3

    @property
    def name(self) -> str:
        """Return what a report calls it."""
        return f"gradients over {self.scales} scales (fallback: no perceptual weights)"

    def __call__(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return ``[B]`` distances, the mean over scales and axes."""
        return edge_distance(image - target, scales=self.scales)


@dataclass(frozen=True, slots=True)
class InversionSettings:
    """How long and how a search goes; every loop of it ends."""

    iterations: int = 200
    """At most, for each restart. The paper takes 601."""
    learning_rate: float = 0.07
    """Of Adam, for latents or noise of unit variance and for conditions in [0, 1]."""
    restarts: int = 1
    patience: int = 50
    """Iterations without progress after which a row stops."""
    tolerance: float = 0.01
    """Relative fall of the loss that counts as progress."""
    distance_weight: float = 0.5
    """Of the Distance, beside the mean absolute difference of what was measured."""
    prior_weight: float = 0.1
    """Of half the mean square of the latent's way from its start, or of the noise."""
    jitter: float = 0.5
    """Standard deviation added to the given start of ``invert_latent`` from the second restart."""
    consistent: bool = False
    """Whether the result is projected onto the images that agree with the measurement."""
    checkpointed: bool = True
    """Whether ``invert_noise`` keeps one state a step and computes each step twice."""
    bf16: bool = False
    """Whether the generator runs in mixed precision; losses and variables stay float32."""

    def __post_init__(self) -> None:
        """Raise UsageError for a search that cannot be run or would not end."""
        _demand(1 <= self.iterations <= _MOST_ITERATIONS, "iterations", f"1 to {_MOST_ITERATIONS}")
        _demand(1 <= self.restarts <= _MOST_RESTARTS, "restarts", f"1 to {_MOST_RESTARTS}")
        _demand(self.patience >= 1, "patience", "1 or more")
        _demand(0 < self.learning_rate < math.inf, "learning_rate", "a number above 0")
        _demand(0 <= self.tolerance < 1, "tolerance", "0 or more and below 1")
        for name in ("distance_weight", "prior_weight", "jitter"):
            _demand(0 <= getattr(self, name) < math.inf, name, "a number of 0 or more")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Inversion:
    """What a search found for each row; of several restarts, the one with the least data loss."""

    image: torch.Tensor
    """``[B, 1, ...]`` on the full grid, as the generator made it: not clipped here."""
    condition: torch.Tensor | None
    """``[B, K]``; None where no condition was searched."""
    latent: torch.Tensor
    """``[B, C, ...]``: the latent, or the noise of unit variance."""
    curve: torch.Tensor
    """``[R, I, B]`` data losses; a row that has stopped repeats the one that it keeps."""
    restarts: torch.Tensor
    """``[R, B]`` data losses that are kept."""
    spread: torch.Tensor | None
    """Standard deviation of each voxel over restarts; None of a single one, which cannot tell."""
    loss_name: str


@dataclass(frozen=True, slots=True)
class Search:
    """A generator, what was measured, and how to bring them together."""

    generate: Callable[[Variables], torch.Tensor]
    operator: Operator
    low: torch.Tensor
    distance: Distance
    settings: InversionSettings
    progress: Progress | None = None
    center: torch.Tensor | None = None
    """``[B, C, ...]``: where the prior pulls the first variable to; None is 0."""
    free: torch.Tensor | None = None
    """``[K]`` bool: entries of the second variable that move, within [0, 1]."""

    def run(self, begin: Callable[[int], Variables]) -> Inversion:
        """Return the best of all restarts for each row; ``begin`` gives each its variables.

        Memory does not grow with restarts. Raises DataError where a row never has a finite loss.
        """
        best: _Found | None = None
        images, curves, losses = _Moments(), [], []
        for restart in range(self.settings.restarts):
            found, curve = self._descend(begin(restart), restart)
            best = found if best is None else best.replaced(found.data < best.data, found)
            images.add(found.image)
            curves.append(curve)
            losses.append(found.data)
        assert best is not None  # noqa: S101 - settings ask for one restart or more
        weight, name = self.settings.distance_weight, self.distance.name
        return Inversion(
            image=best.image,
            condition=best.variables[1] if len(best.variables) > 1 else None,
            latent=best.variables[0],
            curve=torch.stack(curves),
            restarts=torch.stack(losses),
            spread=images.deviation(),
            loss_name=f"mean absolute difference + {weight:g} x {name}",
        )

    def _descend(self, variables: Variables, restart: int) -> tuple[_Found, torch.Tensor]:
        """Return what one start leads to, with its curve ``[I, B]``."""
        settings = self.settings
        for variable in variables:
            variable.requires_grad_()
        optimizer = torch.optim.Adam(variables)
        rows = _Rows(variables, len(self.low))
        curve = self.low.new_empty(settings.iterations, len(self.low))
        for iteration in range(settings.iterations):
            with torch.enable_grad():
                data, total = self._losses(self._image(variables), variables[0])
                gradients = torch.autograd.grad(total.sum(), variables)
            rows.judge(variables, data.detach(), total.detach(), settings)
            curve[iteration] = rows.data
            if self.progress is not None:
                done = restart * settings.iterations + iteration + 1
                self.progress(done, settings.restarts * settings.iterations)
            if rows.all_stopped():
                curve[iteration:] = rows.data
                break
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _pace(iteration, settings.iterations)
            self._step(optimizer, variables, gradients)
        if not torch.isfinite(rows.total).all():
            raise DataError(
                "no iteration gave a finite loss",
                why="the generator left the numbers that it can work with",
                fix="lower learning_rate or switch bf16 off",
            )
        with torch.no_grad():
            image = self._image(rows.variables)
            if settings.consistent:
                image = self.operator.project(image, self.low)
        return _Found(rows.variables, image, rows.data), curve

    def _step(
        self, optimizer: torch.optim.Optimizer, variables: Variables, gradients: Variables
    ) -> None:
        if self.free is not None:
            gradients = gradients[0], gradients[1] * self.free
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        optimizer.step()
        if self.free is not None:
            with torch.no_grad():
                moved = variables[1].clamp(0, 1)
                variables[1].copy_(torch.where(self.free, moved, variables[1]))

    def _image(self, variables: Variables) -> torch.Tensor:
        with torch.autocast(self.low.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16):
            image = self.generate(variables)
        return image.float()

    def _losses(
        self, image: torch.Tensor, latent: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``[B]`` data losses over what was observed, and ``[B]`` losses to descend."""
        made = self.operator(image)
        if made.shape != self.low.shape:
            raise DataError(
                "the generator's images are not on the grid of the measurement",
                why=f"it measures {tuple(made.shape)} of them, not {tuple(self.low.shape)}",
                fix="resample the image, or choose the operator that fits it",
            )
        seen = self.operator.observed(self.low)
        channels = self.low.shape[1]
        data = ((made - self.low).abs() * seen).flatten(1).sum(1) / (seen.sum() * channels)
        total = data
        if self.settings.distance_weight:
            total = total + self.settings.distance_weight * self.distance(made, self.low)
        if self.settings.prior_weight:
            away = latent if self.center is None else latent - self.center
            prior = away.square().flatten(1).mean(1) / 2
            total = total + self.settings.prior_weight * prior
        return data, total


@dataclass(frozen=True, slots=True)
class _Found:
    variables: Variables
    image: torch.Tensor
    data: torch.Tensor

    def replaced(self, rows_B: torch.Tensor, other: _Found) -> _Found:
        """Return this with some rows of another."""
        return _Found(
            tuple(
                _choose(rows_B, theirs, ours)
                for ours, theirs in zip(self.variables, other.variables, strict=True)
            ),
            _choose(rows_B, other.image, self.image),
            _choose(rows_B, other.data, self.data),
        )


class _Rows:
    """The best that each row has met, and whether it has stopped: it then meets nothing more."""

    def __init__(self, variables: Variables, count: int) -> None:
        self.variables = tuple(variable.detach().clone() for variable in variables)
        self.total = variables[0].new_full((count,), math.inf).detach()
        self.data = self.total.clone()
        self.mark = self.total.clone()
        """The loss from which progress is counted."""
        self.idle = torch.zeros_like(self.total, dtype=torch.long)
        self.stopped = torch.zeros_like(self.total, dtype=torch.bool)

    def judge(
        self,
        variables: Variables,
        data: torch.Tensor,
        total: torch.Tensor,
        settings: InversionSettings,
    ) -> None:
        """Take note of the losses of the variables as they are."""
        better = (total < self.total) & ~self.stopped
        self.total = torch.where(better, total, self.total)
        self.data = torch.where(better, data, self.data)
        self.variables = tuple(
            _choose(better, now.detach(), kept)
            for now, kept in zip(variables, self.variables, strict=True)
        )
        advanced = self.total < (1 - settings.tolerance) * self.mark
        self.mark = torch.where(advanced, self.total, self.mark)
        self.idle = torch.where(advanced, 0, self.idle + 1)
        self.stopped |= self.idle >= settings.patience

    def all_stopped(self) -> bool:
        return bool(self.stopped.all())


class _Moments:
    """Mean and squares of images that come one after the other (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.square = torch.zeros(())

    def add(self, image: torch.Tensor) -> None:
        self.count += 1
        away = image - self.mean.to(image.device)
        self.mean = self.mean.to(image.device) + away / self.count
        self.square = self.square.to(image.device) + away * (image - self.mean)

    def deviation(self) -> torch.Tensor | None:
        return (self.square / (self.count - 1)).sqrt() if self.count > 1 else None


def _choose(rows_B: torch.Tensor, there: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    return torch.where(rows_B.reshape(-1, *[1] * (there.ndim - 1)), there, otherwise)


def _pace(iteration: int, iterations: int) -> float:
    """Return the share of the learning rate: a short warm-up, then half a cosine."""
    done = iteration / iterations
    warm = (iteration + 1) / max(1.0, _WARM_UP_FRAC * iterations)
    return min(1.0, warm) * 0.5 * (1 + math.cos(math.pi * done))


def _demand(holds: bool, name: str, allowed: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise UsageError(f"{name} of an inversion is out of range", fix=f"choose {allowed}")
