"""A mixture of normals as data: the best denoiser, the flow and the moments are known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vitrael.core.rng import torch_stream


@dataclass(frozen=True)
class Mixture:
    """K normals in D dimensions: weights ``[K]``, means ``[K, D]``, axes and variances on them."""

    weights: torch.Tensor
    means: torch.Tensor
    axes: torch.Tensor
    """``[K, D, D]``: the columns are the principal axes of each normal."""
    variances: torch.Tensor

    def denoise(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return ``E[x_0 | x_t]``, in the dtype and the shape of ``x_t`` ``[B, ...]``."""
        del condition
        x = x_t.reshape(len(x_t), -1)
        means, axes = self.means.to(x), self.axes.to(x)
        spread = self.variances.to(x) + sigma.to(x)[:, None, None] ** 2
        along = torch.einsum("bkd,kde->bke", x[:, None] - means, axes)
        log_p = self.weights.to(x).log() - 0.5 * (along**2 / spread + spread.log()).sum(-1)
        kept = torch.einsum("bke,kde->bkd", along * self.variances.to(x) / spread, axes)
        share = log_p.softmax(1)[..., None]
        return (share * (means + kept)).sum(1).reshape(x_t.shape)

    def draw(self, count: int, rng: torch.Generator) -> torch.Tensor:
        """Return ``[count, D]`` points of the mixture."""
        kind = torch.multinomial(self.weights, count, replacement=True, generator=rng)
        z = torch.randn(count, self.means.shape[1], generator=rng, dtype=torch.float64)
        scaled = z * self.variances[kind].sqrt()
        return self.means[kind] + torch.einsum("be,bde->bd", scaled, self.axes[kind])

    @property
    def mean(self) -> torch.Tensor:
        """The mean ``[D]``."""
        return (self.weights[:, None] * self.means).sum(0)

    @property
    def covariance(self) -> torch.Tensor:
        """The covariance ``[D, D]``."""
        inner = torch.einsum("kde,ke,kfe->kdf", self.axes, self.variances, self.axes)
        outer = torch.einsum("kd,kf->kdf", self.means - self.mean, self.means - self.mean)
        return (self.weights[:, None, None] * (inner + outer)).sum(0)


def draw_mixture(
    seed: int, *, kinds: int, dimensions: int, apart: float, stds: tuple[float, float]
) -> Mixture:
    """Return a mixture with means ``apart`` and deviations spread over ``stds`` in the logarithm.

    All is then scaled to a mean variance of 1, as latents are.
    """
    rng = torch_stream(seed, "mixture")

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    weights = normal(kinds).softmax(0)
    means = apart * normal(kinds, dimensions)
    axes, _ = torch.linalg.qr(normal(kinds, dimensions, dimensions))
    share = torch.rand(kinds, dimensions, generator=rng, dtype=torch.float64)
    low, high = math.log(stds[0]), math.log(stds[1])
    raw = Mixture(weights, means, axes, (2 * (low + (high - low) * share)).exp())
    scale = raw.covariance.diagonal().mean()
    return Mixture(weights, means / scale.sqrt(), axes, raw.variances / scale)
