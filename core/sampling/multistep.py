"""Samplers that remember: each step also uses estimates of the steps before.

The history lives in the call and nowhere else: two calls know nothing of each other. All use
``x_t = x_0 + sigma * eps``, where the probability flow is ``dx = eps dsigma`` (Karras et al. 2022,
equation 1 with ``s = 1``) with ``eps = (x - x_0) / sigma``.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch

from vitrael.core.sampling.denoisers import estimate
from vitrael.core.sampling.schedules import falling_levels

if TYPE_CHECKING:
    from vitrael.core.interfaces import Denoiser
    from vitrael.core.sampling.noise import NoiseSource

_ADAMS: Final = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights of the latest slopes, newest first."""


def plms(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigmas: torch.Tensor,
    condition: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
) -> torch.Tensor:
    """Return ``x_0`` by the pseudo linear multistep method (Liu et al. 2022, equation 12).

    The first step is an improved Euler step (their equation 13), which looks at the second level
    twice; each later transition is made once, none is left out. n steps take n + 1 evaluations,
    one step takes one. Slopes count as evenly spaced whatever the levels are, which makes the
    method of second order for levels that are smooth in their index; the last step, to 0, takes
    the estimate as it is. ``noise`` is not used.
    """
    del noise
    levels = falling_levels(sigmas)
    slopes: deque[torch.Tensor] = deque(maxlen=len(_ADAMS))
    for index, (sigma, following) in enumerate(pairwise(levels)):
        x_0 = estimate(denoiser, x_t, sigma, condition)
        if following == 0:
            return x_0
        slopes.appendleft((x_t - x_0) / sigma)
        slope = slopes[0]
        if index == 0:
            ahead = x_t + (following - sigma) * slope
            ahead_0 = estimate(denoiser, ahead, following, condition)
            slope = (slope + (ahead - ahead_0) / following) / 2
        else:
            weights = _ADAMS[len(slopes) - 1]
            slope = torch.stack([w * s for w, s in zip(weights, slopes, strict=True)]).sum(0)
        x_t = x_t + (following - sigma) * slope
    return x_t


def dpm_solver(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigmas: torch.Tensor,
    condition: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
) -> torch.Tensor:
    """Return ``x_0`` by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), n evaluations.

    The estimate is linear in ``lambda = -log sigma`` through the last two; the first step and the
    last, which is infinitely long in lambda, are of first order. ``noise`` is not used.
    """
    del noise
    levels = falling_levels(sigmas)
    earlier: tuple[float, torch.Tensor] | None = None
    for sigma, following in pairwise(levels):
        x_0 = estimate(denoiser, x_t, sigma, condition)
        toward = x_0
        if earlier is not None and following > 0:
            ratio = math.log(earlier[0] / sigma) / math.log(sigma / following)
            toward = x_0 + (x_0 - earlier[1]) / (2 * ratio)
        x_t = toward + following / sigma * (x_t - toward)
        earlier = sigma, x_0
    return x_t


def unipc(
    denoiser: Denoiser,
    x_t: torch.Tensor,
    sigmas: torch.Tensor,
    condition: torch.Tensor,
    *,
    noise: NoiseSource | None = None,
) -> torch.Tensor:
    """Return ``x_0`` by UniPC (Zhao et al. 2023) of order 2, B2(h), on data, n evaluations.

    Their algorithms 5 and 6: the predictor proposes a state, the estimate there corrects it and
    then serves the next step, so that a correction costs no evaluation and lifts the order to 3.
    The first step is one order lower; the last goes to 0 by the estimate. ``noise`` is not used.
    """
    del noise
    levels = falling_levels(sigmas)
    x_0 = estimate(denoiser, x_t, levels[0], condition)
    earlier: tuple[float, torch.Tensor] | None = None
    for sigma, following in pairwise(levels):
        if following == 0:
            return x_0
        step = math.log(sigma / following)
        share = -math.expm1(-step)
        euler = x_t + share * (x_0 - x_t)
        if earlier is None:
            ahead_0 = estimate(denoiser, euler, following, condition)
            x_t = euler + share / 2 * (ahead_0 - x_0)
        else:
            back = math.log(sigma / earlier[0]) / step
            bend = (earlier[1] - x_0) / back
            ahead_0 = estimate(denoiser, euler + share / 2 * bend, following, condition)
            past, ahead = _corrector_weights(step, back)
            x_t = euler + share * (past * bend + ahead * (ahead_0 - x_0))
        earlier, x_0 = (sigma, x_0), ahead_0
    return x_0


def _corrector_weights(step: float, back: float) -> tuple[float, float]:
    """Return the weights of the two differences of UniC-2 (Zhao et al. 2023, equation 6).

    ``step`` is the length of the step in lambda, ``back`` the place of the earlier estimate in
    steps, below 0. With ``h = -step`` and ``B(h) = e^h - 1`` they solve ``p + q = b_1`` and
    ``back * p + q = b_2``.
    """
    first = math.expm1(-step) / -step - 1
    second = first / -step - 0.5
    b_1, b_2 = first / math.expm1(-step), 2 * second / math.expm1(-step)
    past = (b_1 - b_2) / (1 - back)
    return past, b_1 - past
