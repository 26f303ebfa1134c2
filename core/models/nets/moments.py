"""Group normalization whose statistics are gathered from rows that come one slab at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own pages use
from torch import nn


@dataclass(slots=True)
class Moments:
    """Mean and variance by channel of rows that come one slab after the other.

    Merged in float64 (Chan, Golub and LeVeque 1983): no difference of two large sums.
    """

    count: int = 0
    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, rows: torch.Tensor) -> None:
        """Take in rows ``[1, C, ...]``."""
        # of bfloat16 rows the kernel would answer bfloat16
        found = torch.batch_norm_update_stats(rows.float(), None, None, 0.0)
        mean, variance = (part.double() for part in found)
        count = rows[0, 0].numel()
        total = self.count + count
        apart = mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + variance * count
        self.squares += apart.square() * (self.count * count / total)
        self.mean = self.mean.to(mean) + apart * (count / total)
        self.count = total

    def by_group(self, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and variance of the groups, repeated for their channels, float32 ``[C]``."""
        mean = self.mean.unflatten(0, (groups, -1))
        inside = (self.squares / self.count).unflatten(0, (groups, -1)).mean(1)
        between = mean.var(1, correction=0)
        size = mean.shape[1]
        return (
            mean.mean(1).repeat_interleave(size).float(),
            (inside + between).repeat_interleave(size).float(),
        )


@dataclass(frozen=True, slots=True)
class GatheredNorm:
    """A group norm whose statistics are known: a batch norm, for one sample."""

    mean: torch.Tensor
    variance: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.GroupNorm, moments: Moments) -> GatheredNorm:
        """Return a norm with the statistics of its input."""
        mean, variance = moments.by_group(norm.num_groups)
        return cls(mean, variance, norm.weight.float(), norm.bias.float(), norm.eps)

    def apply(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return new rows in a dtype; the parameters stay float32."""
        return F.batch_norm(
            rows.to(dtype), self.mean, self.variance, self.weight, self.bias, eps=self.eps
        )
