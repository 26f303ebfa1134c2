"""Where samplers draw from: each row of a batch has a generator of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

NoiseSource = Callable[[], torch.Tensor]
"""Returns new normal noise ``[B, C, ...]``, shaped like the state, at each call."""


class RowNoise:
    """A NoiseSource whose rows depend on their own generators alone.

    What a row gets is a matter of its generator and of how often was drawn, never of its
    neighbors: a sample does not depend on batches or shards.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take one generator a row and the shape ``[C, ...]`` of a row.

        Draws are made where a generator lives and then moved, so that a generator of the
        processor gives every device the same noise.
        """
        self.generators = list(generators)
        self.shape = tuple(shape)
        self.device = device
        self.dtype = dtype

    def __call__(self) -> torch.Tensor:
        """Return the next draw ``[B, C, ...]``."""
        rows = [
            torch.randn(self.shape, generator=rng, device=rng.device, dtype=self.dtype)
            for rng in self.generators
        ]
        return torch.stack(rows).to(self.device)
