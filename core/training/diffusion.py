"""What a diffusion network learns, for each of the five things that it may answer with.

Noise levels are ``sigma`` of ``x_t = x_0 + sigma * eps``; ``alpha^2 = 1 / (1 + sigma^2)``,
``beta^2 = 1 - alpha^2``, ``t = sigma / (1 + sigma)``. The network is shown a state and told a
timestep, as the denoisers of ``core.sampling.denoisers`` do:

========== =============================== ================== ===================== =========
prediction state                           timestep           answer                gain
========== =============================== ================== ===================== =========
noise      ``alpha x_0 + beta eps``        index of sigma     ``eps``               sigma
velocity   the same                        the same           ``alpha eps - beta x_0`` beta
image      the same                        the same           ``x_0``               1
edm        the same (``c_in x_t``)         250 ln(sigma)      ``beta x_0 - alpha eps`` beta
flow       ``(1 - t) x_0 + t eps``         1000 t             ``eps - x_0``         t
========== =============================== ================== ===================== =========

The gain is how far an error of the answer moves the estimate of ``x_0``.

Axes: B batch, C channels, d h w or h w space, K conditions, T timesteps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch
from torch.nn import functional

from vitrael.core.configs import Prediction
from vitrael.core.records import Loss
from vitrael.core.sampling.denoisers import NULL_CONDITION, TIMESTEPS, signal_and_noise

if TYPE_CHECKING:
    from vitrael.core.sampling.denoisers import Network

FlowTimes = Literal["logit_normal", "uniform"]
"""How the times of rectified flow are drawn: most in the middle (Esser et al. 2024, equation 19,
location 0 and scale 1), or evenly."""

_EDM_MEAN: Final = -1.2
_EDM_SPREAD: Final = 1.2
"""Of ``ln(sigma)`` (Karras et al. 2022, table 1, training)."""


class _Question(NamedTuple):
    """What the network is asked about one batch, and what it should answer."""

    state: torch.Tensor
    timestep: torch.Tensor
    answer: torch.Tensor
    sigma: torch.Tensor
    gain: torch.Tensor
    """Both shaped ``[B, 1, ...]``."""


class DiffusionObjective:
    """Mean squared error of a network's answer about noisy latents, in two or three dimensions.

    Noise levels are drawn uniformly from the trained ones for ``noise``, ``velocity`` (Salimans and
    Ho 2022, appendix D) and ``image``; log-normally for ``edm`` (Karras et al. 2022, table 1, with
    sigma_data 1: its weight is then 1 on the network's own answer); by ``flow_times`` for ``flow``.
    """

    def __init__(
        self,
        sigmas: torch.Tensor,
        *,
        prediction: Prediction = "velocity",
        condition_dropout: float = 0.0,
        min_snr_gamma: float | None = None,
        flow_times: FlowTimes = "logit_normal",
    ) -> None:
        """Take the rising ``[T]`` noise levels of the forward process; edm and flow use none.

        ``condition_dropout`` is the share of images whose condition is null. ``min_snr_gamma``
        weighs the error of ``x_0`` by ``min(snr, gamma)`` (Hang et al. 2023, section 3.4), None
        the error of the answer by 1.
        """
        self.sigmas = sigmas
        self.prediction = prediction
        self.condition_dropout = condition_dropout
        self.min_snr_gamma = min_snr_gamma
        self.flow_times = flow_times

    def __call__(
        self, model: Network, batch: tuple[torch.Tensor, torch.Tensor], rng: torch.Generator
    ) -> Loss:
        """Return the loss of scaled latents ``[B, C, ...]`` with conditions ``[B, K]``."""
        z_0, condition = batch
        asked = self._ask(z_0, rng)
        told = self._drop(condition, rng)
        answer = model(asked.state, asked.timestep, told).float()
        if self.min_snr_gamma is None:
            return Loss(total=functional.mse_loss(answer, asked.answer), parts={})
        weight = asked.gain**2 * (asked.sigma**-2).clamp(max=self.min_snr_gamma)
        return Loss(total=(weight * (answer - asked.answer) ** 2).mean(), parts={})

    def _ask(self, z_0: torch.Tensor, rng: torch.Generator) -> _Question:
        """Return a batch at drawn noise levels; levels are drawn before the noise."""
        sigma, timestep = self._levels(len(z_0), rng)
        timestep = timestep.to(z_0.device)
        noise = torch.randn(z_0.shape, generator=rng).to(z_0.device)
        alpha, beta = signal_and_noise(sigma.to(z_0.device), z_0.ndim)
        sigma = sigma.to(z_0.device).reshape(alpha.shape)
        prediction = self.prediction
        if prediction == "flow":
            t = sigma / (1 + sigma)
            return _Question((1 - t) * z_0 + t * noise, timestep, noise - z_0, sigma, t)
        state = alpha * z_0 + beta * noise
        match prediction:
            case "noise":
                answer, gain = noise, sigma
            case "velocity":
                answer, gain = alpha * noise - beta * z_0, beta
            case "image":
                answer, gain = z_0, torch.ones_like(sigma)
            case _:  # edm
                answer, gain = beta * z_0 - alpha * noise, beta
        return _Question(state, timestep, answer, sigma, gain)

    def _levels(self, count: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return drawn noise levels ``[B]`` and the timesteps that the network is told."""
        if self.prediction == "edm":
            log = _EDM_MEAN + _EDM_SPREAD * torch.randn(count, generator=rng)
            return log.exp(), log / 4 * TIMESTEPS
        if self.prediction == "flow":
            # Never quite 0 or 1, where sigma has no logarithm.
            t = (
                torch.randn(count, generator=rng).sigmoid()
                if self.flow_times == "logit_normal"
                else torch.rand(count, generator=rng).clamp(1e-4, 1 - 1e-4)
            )
            return t / (1 - t), t * TIMESTEPS
        step = torch.randint(len(self.sigmas), (count,), generator=rng)
        return self.sigmas.to(step.device)[step], step

    def _drop(self, condition: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return conditions of which some rows are null; nothing is drawn when none may be."""
        if not self.condition_dropout:
            return condition
        lost = torch.rand(len(condition), generator=rng) < self.condition_dropout
        return condition.masked_fill(lost.to(condition.device)[:, None], NULL_CONDITION)
