"""Samplers as functions over one Denoiser, and the table that names them all.

Every sampler is ``(denoiser, x_t, sigmas, condition, noise=...) -> x_0``. ``sigmas`` falls and
ends at 0; ``x_t`` ``[B, C, ...]`` holds noise of level ``sigmas[0]``, which may be any: a partly
noised image is a start like another. ``condition`` is ``[B, K]``. Steps are reckoned in float64 and
states keep their dtype. What stands here looks at one level at a time; ``multistep`` remembers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Protocol

import torch

from vitrael.core.configs import SamplerName
from vitrael.core.errors import UsageError
from vitrael.core.sampling.denoisers import estimate
from vitrael.core.sampling.multistep import dpm_solver, plms, unipc
from vitrael.core.sampling.noise import NoiseSource
from vitrael.core.sampling.schedules import falling_levels

if TYPE_CHECKING:
    from vitrael.core.interfaces import Denoiser


class Sampler(Protocol):
    """Leads noise to data."""

    def __call__(
        self,
        denoiser: Denoiser,
        x_t: torch.Tensor,
        sigmas: torch.Tensor,
        condition: torch.Tensor,
        *,
        noise: NoiseSource | None = None,
    ) -> torch.Tensor:
        """Return ``x_0``, shaped like ``x_t``."""


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """What a sampler is: its function and its price."""

    sample: Sampler
    evaluations: Callable[[int], int]
    """Calls of the denoiser in so many steps."""
    steps_within: Callable[[int], int]
    """The most steps that so many calls, at least one, allow."""
    stochastic: bool
    """Whether it needs a source of noise."""
    order: int
    """Power of the step's length that its error falls with; 1 in distribution if stochastic."""


def ddim(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigmas: torch.Tensor,
    condition: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
    eta: float = 0.0,
) -> torch.Tensor:
    """Return ``x_0`` by DDIM (Song et al. 2021, equations 12 and 16), n evaluations.

    ``eta`` 0 is deterministic and differentiable; 1 is ``ddpm``; what lies above 0 needs ``noise``.
    In the noise-to-signal coordinate the step is linear between the state and the estimate.
    """
    levels = falling_levels(sigmas)
    draw = _demand_noise(noise) if eta > 0 else None
    for sigma, following in pairwise(levels):
        x_0 = estimate(denoiser, x_t, sigma, condition)
        fresh = eta * following * math.sqrt(1 - (following / sigma) ** 2)
        kept = math.sqrt(max(0.0, following**2 - fresh**2)) / sigma
        x_t = x_0 + kept * (x_t - x_0)
        if draw is not None and following > 0:
            x_t = x_t + fresh * draw()
    return x_t


def ddpm(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigmas: torch.Tensor,
    condition: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
) -> torch.Tensor:
    """Return ``x_0`` by ancestral sampling (Ho et al. 2020, equation 7), n evaluations.

    Each step draws from the posterior ``q(x_s | x_t, x_0)`` at the estimate, with its own, the
    smaller, variance. Raises UsageError without ``noise``.
    """
    return ddim(denoiser, x_t, sigmas, condition, noise=noise, eta=1.0)


def heun(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigmas: torch.Tensor,
    condition: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
) -> torch.Tensor:
    """Return ``x_0`` by Heun's method (Karras et al. 2022, algorithm 2), 2n - 1 evaluations.

    The last step, to 0, is Euler's. ``churn`` is their S_churn, at 0 deterministic. Above 0, the
    levels in ``churn_range`` (S_tmin, S_tmax) are first raised by noise of scale ``churn_noise``
    (S_noise), the highest too; ``noise`` is then needed.
    """
    levels = falling_levels(sigmas)
    draw = _demand_noise(noise) if churn > 0 else None
    most = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    for level, following in pairwise(levels):
        sigma = level
        if draw is not None and churn_range[0] <= level <= churn_range[1]:
            sigma = level * (1 + most)
            x_t = x_t + churn_noise * math.sqrt(sigma**2 - level**2) * draw()
        x_0 = estimate(denoiser, x_t, sigma, condition)
        if following == 0:
            return x_0
        slope = (x_t - x_0) / sigma
        ahead = x_t + (following - sigma) * slope
        ahead_0 = estimate(denoiser, ahead, following, condition)
        x_t = x_t + (following - sigma) / 2 * (slope + (ahead - ahead_0) / following)
    return x_t


SAMPLERS: Final[Mapping[SamplerName, SamplerSpec]] = {
    "ddpm": SamplerSpec(ddpm, lambda n: n, lambda calls: calls, stochastic=True, order=1),
    "ddim": SamplerSpec(ddim, lambda n: n, lambda calls: calls, stochastic=False, order=1),
    "plms": SamplerSpec(
        plms,
        lambda n: n + 1 if n > 1 else 1,
        lambda calls: max(1, calls - 1),
        stochastic=False,
        order=2,
    ),
    "heun": SamplerSpec(
        heun,
        lambda n: 2 * n - 1,
        lambda calls: (calls + 1) // 2,
        stochastic=False,
        order=2,
    ),
    "dpm_solver": SamplerSpec(
        dpm_solver, lambda n: n, lambda calls: calls, stochastic=False, order=2
    ),
    "unipc": SamplerSpec(unipc, lambda n: n, lambda calls: calls, stochastic=False, order=3),
}
"""Name of a sampler to what it is; ``sampling_levels`` gives each the levels that suit it."""


def _demand_noise(noise: NoiseSource | None) -> NoiseSource:
    if noise is None:
        raise UsageError(
            "a stochastic sampler has nothing to draw from",
            why="its noise must come from the generators of its rows",
            fix="give noise=RowNoise(...), or use a deterministic sampler",
        )
    return noise
