"""Wrappers that turn a network's prediction into ``denoise(x_t, sigma, condition) -> x_0``."""

from __future__ import annotations

from collections.abc import Callable

import torch

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``(state of unit variance, timestep [B], condition [B, K]) -> prediction``."""


class VelocityDenoiser:
    """A Denoiser over a network that predicts ``v`` (Salimans and Ho 2022, appendix D).

    With ``alpha^2 = 1 / (1 + sigma^2)`` and ``beta^2 = 1 - alpha^2`` the network sees
    ``alpha * x_t`` and answers ``v = alpha * eps - beta * x_0``, hence
    ``x_0 = alpha * (alpha * x_t) - beta * v``.
    """

    def __init__(self, network: Network, sigmas: torch.Tensor) -> None:
        """Take the network and the rising ``[T]`` noise levels it was trained on."""
        self.network = network
        self.sigmas = sigmas

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return the estimate of ``x_0``; ``sigma`` is ``[B]``."""
        alpha, beta = signal_and_noise(sigma, x_t.ndim)
        state = alpha * x_t
        velocity = self.network(state, timestep_of(sigma, self.sigmas), condition)
        return alpha * state - beta * velocity.to(x_t.dtype)


def signal_and_noise(sigma: torch.Tensor, ndim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``alpha`` and ``beta`` of noise levels ``[B]``, shaped to scale ``ndim`` axes."""
    sigma = sigma.reshape(-1, *[1] * (ndim - 1))
    alpha = (1 + sigma**2).rsqrt()
    return alpha, sigma * alpha


def timestep_of(sigma: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Return the ``[B]`` index of the nearest trained noise level, in the logarithm."""
    levels = sigmas.to(sigma.device).log()
    return (sigma.log()[:, None] - levels[None]).abs().argmin(dim=1)
