"""Noise levels. ``sigma`` is the noise-to-signal ratio: ``x_t = x_0 + sigma * eps``.

A variance-preserving process with cumulative signal ``alpha_bar`` has
``sigma = sqrt((1 - alpha_bar) / alpha_bar)`` once its state is divided by ``sqrt(alpha_bar)``
(Song et al. 2021, DDIM, equation 13).
"""

from __future__ import annotations

import torch


def scaled_linear_sigmas(timesteps: int, *, beta_start: float, beta_end: float) -> torch.Tensor:
    """Return the ``[T]`` rising noise levels of betas that are linear in their square root.

    This is the schedule of Rombach et al. 2022 and, with 0.0015 and 0.0205, of Pinaya et al. 2022.
    """
    beta = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - beta, dim=0)
    return ((1 - alpha_bar) / alpha_bar).sqrt().float()


def sampling_sigmas(sigmas: torch.Tensor, steps: int) -> torch.Tensor:
    """Return ``steps`` falling noise levels, evenly spaced in time from the last, then 0."""
    index = torch.linspace(len(sigmas) - 1, 0, steps, dtype=torch.float64).round().long()
    return torch.cat([sigmas[index], sigmas.new_zeros(1)])
