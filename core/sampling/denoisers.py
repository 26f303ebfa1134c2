"""Wrappers that turn a network's prediction into ``denoise(x_t, sigma, condition) -> x_0``.

All noise levels are those of ``core.sampling.schedules``: ``x_t = x_0 + sigma * eps``. What the
network itself sees is scaled to about unit variance. Axes: B batch, C channels, K conditions; the
axes of space from 2 on are as many as there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal

import torch

from vitrael.core.configs import Prediction
from vitrael.core.errors import UsageError

if TYPE_CHECKING:
    from vitrael.core.interfaces import Denoiser

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``(state of unit variance, timestep [B], may be a fraction, condition [B, K]) -> prediction``."""

NULL_CONDITION: Final = -1.0
"""Every entry of the condition that says nothing; asked values are scaled to [0, 1]."""

TIMESTEPS: Final = 1000
"""Flow and EDM networks are told times of this scale, since embeddings are made for it."""

_SNAP_STEPS: Final = 1e-3

DiscretePrediction = Literal["noise", "velocity", "image"]
"""What a network over trained levels answers with."""


class DiscreteDenoiser:
    """A Denoiser over a network of a variance-preserving process with T trained levels.

    With ``alpha^2 = 1 / (1 + sigma^2)`` and ``beta^2 = 1 - alpha^2`` the network sees
    ``alpha * x_t`` and answers, by ``prediction``,

    - ``noise``: ``eps``, hence ``x_0 = x_t - sigma * eps`` (Ho et al. 2020);
    - ``velocity``: ``v = alpha * eps - beta * x_0``, hence ``x_0 = alpha^2 * x_t - beta * v``
      (Salimans and Ho 2022, appendix D);
    - ``image``: ``x_0`` itself.

    An error of the noise is multiplied by ``sigma``, that of a velocity by ``beta < 1``. This is
    the nature of the noise prediction; what can be kept is kept: the difference is taken in
    float32 at least, from ``x_t`` as it is and not from ``alpha * x_t``, whose rounding would grow.
    """

    def __init__(
        self, network: Network, sigmas: torch.Tensor, *, prediction: DiscretePrediction
    ) -> None:
        """Take the network and the rising ``[T]`` noise levels it was trained on."""
        if prediction not in _CLEAN:
            raise UsageError(
                f"a network over trained levels cannot predict {prediction!r}",
                fix=f"use one of {', '.join(_CLEAN)}, or make_denoiser for the others",
            )
        self.network = network
        self.sigmas = sigmas
        self.prediction = prediction

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return the estimate of ``x_0`` in the dtype of ``x_t``; ``sigma`` is ``[B]``."""
        self.sigmas = self.sigmas.to(sigma.device)  # once: a later call finds them there
        alpha, _ = signal_and_noise(sigma, x_t.ndim)
        state = (alpha * x_t).to(x_t.dtype)
        answer = self.network(state, timestep_of(sigma, self.sigmas), condition)
        return _CLEAN[self.prediction](x_t, sigma, _at_least_float32(answer)).to(x_t.dtype)


class EDMDenoiser:
    """A Denoiser over a preconditioned network (Karras et al. 2022, equation 7 and table 1).

    The network sees ``x_t / sqrt(sigma^2 + sigma_data^2)``, is told the time
    ``1000 * ln(sigma) / 4`` and answers what is missing from the weighted state.
    """

    def __init__(self, network: Network, *, sigma_data: float = 1.0) -> None:
        """Take the network and the standard deviation of its clean data."""
        self.network = network
        self.sigma_data = sigma_data

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return the estimate of ``x_0`` in the dtype of ``x_t``; ``sigma`` is ``[B]``."""
        level = _spread(sigma, x_t.ndim)
        variance = level**2 + self.sigma_data**2
        c_in, c_skip = variance.rsqrt(), self.sigma_data**2 / variance
        c_out = level * self.sigma_data * c_in
        state = (c_in * x_t).to(x_t.dtype)
        answer = self.network(state, sigma.log() / 4 * TIMESTEPS, condition)
        return (c_skip * x_t + c_out * _at_least_float32(answer)).to(x_t.dtype)


class FlowDenoiser:
    """A Denoiser over a rectified flow (Liu et al. 2023): ``(1 - t) x_0 + t eps``.

    The network is told ``1000 * t`` and answers the velocity ``eps - x_0``. In our coordinate
    ``sigma = t / (1 - t)``.
    """

    def __init__(self, network: Network) -> None:
        """Take the network."""
        self.network = network

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return the estimate of ``x_0`` in the dtype of ``x_t``; ``sigma`` is ``[B]``."""
        time = sigma / (1 + sigma)
        state = (x_t / (1 + _spread(sigma, x_t.ndim))).to(x_t.dtype)
        answer = self.network(state, time * TIMESTEPS, condition)
        return (state - _spread(time, x_t.ndim) * _at_least_float32(answer)).to(x_t.dtype)


class GuidedDenoiser:
    """A Denoiser that leans toward its condition (Ho and Salimans 2021), in ``x_0``.

    ``x_0 = unconditional + weight * (conditional - unconditional)``: 0 forgets the condition, 1 is
    the conditional answer, more exaggerates it. Both come from one call on a doubled batch. Rows
    outside ``interval``, a lowest and a highest sigma, keep the conditional answer (Kynkäänniemi
    et al. 2024); where all rows do, and at weights 0 and 1, the batch is not doubled.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        weight: float,
        interval: tuple[float, float] | None = None,
    ) -> None:
        """Take a Denoiser that was trained with dropped conditions.

        Raises UsageError for a weight that is not finite, and for an interval without a level.
        """
        if not math.isfinite(weight):
            raise UsageError(f"a guidance of weight {weight} leads nowhere", fix="give a number")
        if interval is not None and not 0 <= interval[0] <= interval[1]:
            raise UsageError(
                f"the interval of guidance, {interval[0]} to {interval[1]}, holds no noise level",
                fix="give its lowest sigma, 0 or more, and then its highest",
            )
        self.denoiser = denoiser
        self.weight = weight
        self.interval = interval

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return the guided estimate of ``x_0``; ``sigma`` is ``[B]``."""
        weight = torch.full_like(sigma, self.weight)
        if self.interval is not None:
            low, high = self.interval
            weight = torch.where((low <= sigma) & (sigma <= high), weight, 1.0)
        if self.weight == 1 or (self.interval is not None and bool((weight == 1).all())):
            return self.denoiser(x_t, sigma, condition)
        nothing = torch.full_like(condition, NULL_CONDITION)
        if self.weight == 0 and self.interval is None:
            return self.denoiser(x_t, sigma, nothing)
        both = self.denoiser(
            torch.cat([x_t, x_t]), torch.cat([sigma, sigma]), torch.cat([condition, nothing])
        )
        conditional, unconditional = both.chunk(2)
        leaning = _spread(weight, x_t.ndim).to(x_t.dtype) * (conditional - unconditional)
        return unconditional + leaning


DENOISERS: Final[Mapping[Prediction, Callable[[Network, torch.Tensor | None], Denoiser]]] = {
    "noise": lambda network, sigmas: DiscreteDenoiser(
        network, _trained(sigmas), prediction="noise"
    ),
    "velocity": lambda network, sigmas: DiscreteDenoiser(
        network, _trained(sigmas), prediction="velocity"
    ),
    "image": lambda network, sigmas: DiscreteDenoiser(
        network, _trained(sigmas), prediction="image"
    ),
    "edm": lambda network, _: EDMDenoiser(network),
    "flow": lambda network, _: FlowDenoiser(network),
}
"""What a network predicts to the wrapper that reads it."""


def make_denoiser(
    network: Network, prediction: Prediction, *, sigmas: torch.Tensor | None = None
) -> Denoiser:
    """Return the Denoiser over a network by what it predicts.

    ``sigmas`` are the rising ``[T]`` trained levels; ``edm`` and ``flow`` have none. Raises
    UsageError where they are needed and missing.
    """
    return DENOISERS[prediction](network, sigmas)


def estimate(
    denoiser: Denoiser, x_t: torch.Tensor, sigma: float, condition: torch.Tensor
) -> torch.Tensor:
    """Return the estimate of ``x_0`` where all rows share one noise level.

    The level is told in float32 at least: in half precision it would name another timestep.
    """
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    told = torch.full((len(x_t),), sigma, dtype=dtype, device=x_t.device)
    return denoiser(x_t, told, condition)


def signal_and_noise(sigma: torch.Tensor, ndim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``alpha`` and ``beta`` of noise levels ``[B]``, shaped to scale ``ndim`` axes."""
    sigma = _spread(sigma, ndim)
    alpha = (1 + sigma**2).rsqrt()
    return alpha, sigma * alpha


def timestep_of(sigma: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Return the ``[B]`` times of noise levels among the trained ``[T]``, as floating point.

    Between two trained levels the time is linear in ``log sigma``; a trained level gives its whole
    number even after rounding; below the first it is 0, above the last T - 1.
    """
    levels = sigmas.to(sigma.device, torch.float64).log()
    asked = sigma.to(torch.float64).log().clamp(levels[0], levels[-1])
    above = torch.searchsorted(levels, asked).clamp(1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    time = above - 1 + (asked - low) / (high - low)
    whole = time.round()
    time = torch.where((time - whole).abs() < _SNAP_STEPS, whole, time)
    return time.to(torch.promote_types(sigma.dtype, torch.float32))


def _spread(values: torch.Tensor, ndim: int) -> torch.Tensor:
    return values.reshape(-1, *[1] * (ndim - 1))


def _at_least_float32(answer: torch.Tensor) -> torch.Tensor:
    return answer.to(torch.promote_types(answer.dtype, torch.float32))


def _trained(sigmas: torch.Tensor | None) -> torch.Tensor:
    if sigmas is None:
        raise UsageError(
            "a network over trained levels needs them",
            why="its timesteps are their places",
            fix="give the trained sigmas",
        )
    return sigmas


def _of_noise(x_t: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return x_t - _spread(sigma, x_t.ndim) * noise


def _of_velocity(x_t: torch.Tensor, sigma: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    alpha, beta = signal_and_noise(sigma, x_t.ndim)
    return alpha**2 * x_t - beta * velocity


def _of_image(x_t: torch.Tensor, sigma: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    del x_t, sigma
    return image


_CLEAN: Final = {"noise": _of_noise, "velocity": _of_velocity, "image": _of_image}
