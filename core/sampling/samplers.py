"""Samplers as functions over one Denoiser."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vitrael.core.interfaces import Denoiser


def ddim(
    denoiser: Denoiser, x_t: torch.Tensor, sigmas: torch.Tensor, condition: torch.Tensor
) -> torch.Tensor:
    """Return ``x_0`` by deterministic DDIM (Song et al. 2021, equation 12 with eta 0).

    ``sigmas`` falls and ends at 0; ``x_t`` holds noise of level ``sigmas[0]``. In the
    noise-to-signal coordinate the step is linear between the state and the estimate.
    """
    for sigma, following in pairwise(sigmas):
        x_0 = denoiser(x_t, sigma.expand(len(x_t)), condition)
        x_t = x_0 + (following / sigma) * (x_t - x_0)
    return x_t
