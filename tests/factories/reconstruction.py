"""A codec and a denoiser whose answers are known: smooth Gaussian images over a coarse grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from vitrael.core.rng import torch_stream
from vitrael.core.scoring.reconstruction import Reconstructor, StartPlan

EDGES = {2: 32, 3: 8}
"""Voxels along an axis, by how many axes of space there are."""
PLAN = StartPlan(levels=(0.3, 1.0, 3.0, 9.0), steps=6, seed=5, condition_K=(-1.0, -1.0))


class MeanCodec:
    """Latents are means over blocks of voxels, about 0.5, of unit variance; decoding is smooth."""

    SCALE = 6.0
    FACTOR = 2

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        pool = functional.avg_pool3d if x.ndim == 5 else functional.avg_pool2d
        return (pool(x, self.FACTOR) - 0.5) * self.SCALE

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        mode = "trilinear" if z.ndim == 5 else "bilinear"
        return functional.interpolate(z / self.SCALE + 0.5, scale_factor=self.FACTOR, mode=mode)


class GaussianDenoiser:
    """The best estimate behind noise if latents are normal: ``m + C (C + s^2)^-1 (x - m)``."""

    def __init__(self, latents: torch.Tensor) -> None:
        flat = latents.flatten(1).double()
        self.mean = flat.mean(0)
        self.variance, self.axes = torch.linalg.eigh(torch.cov(flat.T))

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        del condition
        along = (x_t.flatten(1).double() - self.mean) @ self.axes
        share = self.variance / (self.variance + sigma.double()[:, None] ** 2)
        return (self.mean + (share * along) @ self.axes.T).reshape(x_t.shape).to(x_t.dtype)


def draw_smooth(count: int, *name: str | int, edges: int = 2) -> torch.Tensor:
    """Return images ``[count, 1, 32, 32]`` or ``[count, 1, 8, 8, 8]`` about 0.5.

    They are broad waves, narrower along the first axis, and some grain.
    """
    rng = torch_stream(9, *name)
    coarse = torch.randn(count, 1, *[EDGES[edges] // MeanCodec.FACTOR] * edges, generator=rng)
    for axis in range(2, 2 + edges):
        for _ in range(1 if axis == 2 else 4):
            coarse = (coarse + coarse.roll(1, axis)) / 2**0.5
    coarse = coarse / 12
    mode = "trilinear" if edges == 3 else "bilinear"
    fine = functional.interpolate(coarse, scale_factor=MeanCodec.FACTOR, mode=mode)
    return 0.5 + fine + 0.01 * torch.randn(fine.shape, generator=rng)


def build_reconstructor(*, plan: StartPlan = PLAN, edges: int = 2, **changes: Any) -> Reconstructor:
    """Return a reconstructor whose denoiser knows the images of ``draw_smooth``."""
    codec = MeanCodec()
    latents = codec.encode(draw_smooth(2_000, "train", edges=edges))
    made: Mapping[str, Any] = {
        "codec": codec,
        "denoiser": GaussianDenoiser(latents),
        "plan": plan,
        "identity": {"codec": "means", "denoiser": "normal"},
    }
    return Reconstructor(**{**made, **changes})
