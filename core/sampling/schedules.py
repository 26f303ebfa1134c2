"""Noise levels. ``sigma`` is the noise-to-signal ratio: ``x_t = x_0 + sigma * eps``.

A variance-preserving process with cumulative signal ``alpha_bar`` has
``sigma = sqrt((1 - alpha_bar) / alpha_bar)`` once its state is divided by ``sqrt(alpha_bar)``
(Song et al. 2021, DDIM, equation 13). *Trained* levels rise, ``[T]``; *sampling* levels fall and
end with 0, one more than there are steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final, Literal

import torch

from vitrael.core.configs import Prediction, SamplerName
from vitrael.core.errors import DataError, UsageError

Spacing = Literal["time", "karras", "log_snr"]
"""In what sampling levels are even."""
_Process = Literal["discrete", "edm", "flow"]

SPACINGS: Final[Mapping[SamplerName, Mapping[_Process, Spacing]]] = {
    "ddpm": {"discrete": "time", "edm": "karras", "flow": "time"},
    "ddim": {"discrete": "time", "edm": "karras", "flow": "time"},
    "plms": {"discrete": "log_snr", "edm": "log_snr", "flow": "log_snr"},
    "heun": {"discrete": "log_snr", "edm": "karras", "flow": "log_snr"},
    "dpm_solver": {"discrete": "log_snr", "edm": "log_snr", "flow": "time"},
    "unipc": {"discrete": "log_snr", "edm": "log_snr", "flow": "time"},
}
"""The spacing of each sampler on each process, as measured on mixtures of normals."""

_PROCESSES: Final[Mapping[Prediction, _Process]] = {
    "noise": "discrete",
    "velocity": "discrete",
    "image": "discrete",
    "edm": "edm",
    "flow": "flow",
}

EDM_RANGE: Final = (0.002, 80.0)
"""Lowest and highest level of an EDM network (Karras et al. 2022, table 1)."""
FLOW_START: Final = 0.999
"""Where a flow begins: at time 1 there is no signal left, and sigma has no end."""


def scaled_linear_sigmas(timesteps: int, *, beta_start: float, beta_end: float) -> torch.Tensor:
    """Return the ``[T]`` rising noise levels of betas that are linear in their square root.

    This is the schedule of Rombach et al. 2022 and, with 0.0015 and 0.0205, of Pinaya et al. 2022.
    """
    beta = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
    return _sigmas_of(torch.cumprod(1 - beta, dim=0))


def linear_sigmas(timesteps: int, *, beta_start: float, beta_end: float) -> torch.Tensor:
    """Return the ``[T]`` rising noise levels of linear betas (Ho et al. 2020: 0.0001 to 0.02)."""
    beta = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    return _sigmas_of(torch.cumprod(1 - beta, dim=0))


def cosine_sigmas(
    timesteps: int, *, offset: float = 0.008, most_beta: float = 0.999
) -> torch.Tensor:
    """Return the ``[T]`` rising noise levels of the cosine schedule.

    Nichol and Dhariwal 2021, equation 17, with their bound on each beta.
    """
    time = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    signal = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    beta = (1 - signal[1:] / signal[:-1]).clamp(max=most_beta)
    return _sigmas_of(torch.cumprod(1 - beta, dim=0))


def sampling_sigmas(sigmas: torch.Tensor, steps: int) -> torch.Tensor:
    """Return ``steps`` falling noise levels, evenly spaced in time from the last, then 0.

    All are trained levels; raises DataError for fewer than one step or more than there are levels.
    """
    _demand_steps(steps)
    if steps > len(sigmas):
        raise DataError(
            f"{steps} steps cannot be spread over {len(sigmas)} trained noise levels",
            fix=f"use at most {len(sigmas)} steps",
        )
    index = torch.linspace(len(sigmas) - 1, 0, steps, dtype=torch.float64).round().long()
    return torch.cat([sigmas[index], sigmas.new_zeros(1)])


def karras_sigmas(low: float, high: float, *, steps: int, rho: float = 7.0) -> torch.Tensor:
    """Return ``steps`` levels from ``high`` to ``low``, then 0, as float64.

    Karras et al. 2022, equation 5: evenly spaced in ``sigma ** (1 / rho)``.
    """
    return _spaced(low, high, steps, lambda s: s ** (1 / rho), lambda u: u**rho)


def log_snr_sigmas(low: float, high: float, *, steps: int) -> torch.Tensor:
    """Return ``steps`` levels from ``high`` to ``low``, then 0, even in log-SNR, as float64.

    Lu et al. 2022, DPM-Solver, section 3.3: the log-SNR is ``-2 log sigma``.
    """
    return _spaced(low, high, steps, torch.log, torch.exp)


def flow_sigmas(steps: int, *, start: float = FLOW_START) -> torch.Tensor:
    """Return ``steps`` levels of a rectified flow, even in its time from ``start``, then 0.

    ``sigma = t / (1 - t)``, as float64. Raises DataError unless ``start`` lies in (0, 1).
    """
    _demand_steps(steps)
    if not 0 < start < 1:
        raise DataError(
            f"a flow cannot be sampled from time {start}",
            why="at 1 and beyond there is no signal, at 0 no noise",
            fix=f"begin between 0 and 1, for example at {FLOW_START}",
        )
    time = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
    return time / (1 - time)


def sampling_levels(
    prediction: Prediction,
    sigmas: torch.Tensor | None,
    *,
    steps: int,
    sampler: SamplerName = "ddim",
) -> torch.Tensor:
    """Return the levels of ``steps`` steps that suit a prediction and a sampler, ending with 0.

    See SPACINGS: ddpm and ddim get the levels of the process they belong to, the others those
    that were measured best, which for trained levels are even in log-SNR. ``sigmas`` are the
    trained levels ``[T]``; ``edm`` and ``flow`` need none. Raises UsageError where they are needed
    and missing.
    """
    spacing = SPACINGS[sampler][_PROCESSES[prediction]]
    if prediction == "flow":
        low, high = (1 - FLOW_START) / FLOW_START, FLOW_START / (1 - FLOW_START)
    elif prediction == "edm":
        low, high = EDM_RANGE
    elif sigmas is None:
        raise UsageError(
            f"a network that predicts {prediction} is sampled at its trained noise levels",
            fix="give the trained sigmas",
        )
    else:
        low, high = float(sigmas[0]), float(sigmas[-1])
        if spacing == "time":
            return sampling_sigmas(sigmas, steps)
    if spacing == "time":
        return flow_sigmas(steps)
    if spacing == "karras":
        return karras_sigmas(low, high, steps=steps)
    return log_snr_sigmas(low, high, steps=steps)


def partial_levels(levels: torch.Tensor, start: float) -> torch.Tensor:
    """Return the sampling levels that lead from noise of level ``start`` to 0.

    The first is ``start``, the others are those of ``levels`` below it. Raises DataError unless
    ``start`` is positive and finite.
    """
    if not 0 < start < math.inf:
        raise DataError(f"{start} is no noise level to begin from", fix="give a positive sigma")
    # A level within rounding of the start is the start: a step of no length helps nobody.
    return torch.cat([levels.new_tensor([start]), levels[levels < start * (1 - 1e-6)]])


def falling_levels(sigmas: torch.Tensor) -> list[float]:
    """Return sampling levels as numbers; raises DataError unless they fall to 0 and are finite."""
    levels = [float(level) for level in sigmas.tolist()]
    falls = all(high > low for high, low in pairwise(levels))
    if not levels[1:] or levels[-1] != 0 or not falls or not math.isfinite(levels[0]):
        raise DataError(
            "the noise levels to sample at are not usable",
            why="they must be finite, fall at each step and end with 0",
            fix="make them with core.sampling.schedules",
        )
    return levels


def _sigmas_of(alpha_bar: torch.Tensor) -> torch.Tensor:
    return ((1 - alpha_bar) / alpha_bar).sqrt().float()


def _spaced(
    low: float,
    high: float,
    steps: int,
    there: Callable[[torch.Tensor], torch.Tensor],
    back: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return levels that are even after the map ``there``; the ends are kept to the last bit."""
    _demand_steps(steps)
    if not 0 < low < high < math.inf:
        raise DataError(
            f"noise levels cannot be spread between {low} and {high}",
            fix="give 0 < low < high, both finite",
        )
    ends = torch.tensor([high, low], dtype=torch.float64)
    high_there, low_there = there(ends).tolist()
    levels = back(torch.linspace(high_there, low_there, steps, dtype=torch.float64))
    levels[-1], levels[0] = low, high
    return torch.cat([levels, levels.new_zeros(1)])


def _demand_steps(steps: int) -> None:
    if steps < 1:
        raise DataError(f"{steps} steps make no sample", fix="use at least one step")
