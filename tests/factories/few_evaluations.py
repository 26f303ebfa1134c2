"""How many evaluations of a denoiser a sampler needs to be as good as 50 steps of DDIM.

Good is to be near what 1000 steps of DDIM make of the same noise: by the root mean square over all
samples *and* by the median of the samples, since now and then one ends at another mode and alone
decides the mean. DDIM has the levels of the published model; each fast sampler has those that
``sampling_levels`` gives it, the same everywhere. A sampler counts from the number on from which
none up to the largest is worse than DDIM-50: one lucky hit is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from vitrael.core.configs import Prediction, SamplerName
from vitrael.core.interfaces import Denoiser
from vitrael.core.sampling.samplers import SAMPLERS, ddim
from vitrael.core.sampling.schedules import sampling_levels, scaled_linear_sigmas

MOST, AIM = 15, 12
USUAL, FINE = 50, 1000
BUDGETS = range(4, 41)
FAST: tuple[SamplerName, ...] = ("plms", "heun", "dpm_solver", "unipc")
DEFAULT: SamplerName = "unipc"
TRAINED = scaled_linear_sigmas(1_000, beta_start=0.0015, beta_end=0.0205)


class Distance(NamedTuple):
    """How far samples are from the reference: over all numbers, and of the median sample."""

    rms: float
    median: float


@dataclass(frozen=True)
class Found:
    """Distances to the reference: of DDIM-50, and of a sampler by its evaluations."""

    usual: Distance
    distances: dict[int, Distance]

    def evaluations(self, *, by_median: bool = False) -> int | None:
        """Return what equals DDIM-50 by both measures or by the median; None if nothing does."""
        worse = [
            count
            for count, far in self.distances.items()
            if far.median > self.usual.median or (far.rms > self.usual.rms and not by_median)
        ]
        enough = [count for count in self.distances if count > max(worse, default=0)]
        return min(enough, default=None)


@torch.no_grad()
def smallest_evaluations(
    denoiser: Denoiser,
    noise: torch.Tensor,
    condition: torch.Tensor,
    *,
    samplers: tuple[SamplerName, ...] = FAST,
    trained: torch.Tensor = TRAINED,
    prediction: Prediction = "velocity",
) -> dict[SamplerName, Found]:
    """Return for each sampler how far it is from the reference, beside DDIM-50.

    ``noise`` is of unit variance ``[B, C, ...]``, ``condition`` is ``[B, K]``.
    """

    def levels(steps: int, sampler: SamplerName) -> torch.Tensor:
        return sampling_levels(prediction, trained, steps=steps, sampler=sampler)

    x_t = noise * levels(FINE, "ddim")[0]
    reference = ddim(denoiser, x_t, levels(FINE, "ddim"), condition)

    def distance(samples: torch.Tensor) -> Distance:
        square_B = (samples - reference).double().pow(2).flatten(1).mean(1)
        return Distance(square_B.mean().sqrt().item(), square_B.sqrt().median().item())

    usual = distance(ddim(denoiser, x_t, levels(USUAL, "ddim"), condition))
    found: dict[SamplerName, Found] = {}
    for name in samplers:
        spec, distances = SAMPLERS[name], {}
        for steps in sorted({spec.steps_within(budget) for budget in BUDGETS}):
            end = spec.sample(denoiser, x_t, levels(steps, name), condition)
            distances[spec.evaluations(steps)] = distance(end)
        found[name] = Found(usual, distances)
    return found


def describe(found: dict[SamplerName, Found]) -> str:
    """Return a line with what each sampler needed and how far it was near the aim."""
    words = []
    for name, one in found.items():
        at = min(one.distances, key=lambda count: abs(count - AIM))
        far = one.distances[at]
        needed, by_median = one.evaluations(), one.evaluations(by_median=True)
        words.append(f"{name} {needed}, {by_median} ({far.rms:.3f}/{far.median:.3f} at {at})")
    usual = next(iter(found.values())).usual
    return f"DDIM-50 rms/median {usual.rms:.3f}/{usual.median:.3f}; " + "; ".join(words)
