"""Adversarial plants: steps that no eye can see, taken to lead one embedding away from its patient.

Projected gradient descent (Madry et al. 2018, section 2.1) inside a box about the scan. They are
made against one member of a filter; what the ensemble does with them is what is measured.
Axes: P images, E embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from vitrael.core.errors import DataError

if TYPE_CHECKING:
    from vitrael.core.interfaces import Embedder

EPS: Final = 2 / 255
STEPS: Final = 20

_STEP_FRAC: Final = 2.5
"""Of the box's radius over the number of steps: every corner can be reached, and left again."""
_CHUNK: Final = 16


def lead_away(
    image_PCDHW: np.ndarray,
    embedder: Embedder,
    *,
    rng: np.random.Generator,
    eps: float = EPS,
    steps: int = STEPS,
) -> np.ndarray:
    """Return images within ``eps`` of each voxel whose embeddings are far from the scans' own.

    Of all steps each image keeps the one with the lowest cosine to its scan. The embedder's
    weights stay as they are. Raises DataError where no gradient passes through the embedder, and
    where it lives on no torch device.
    """
    device = _device_of(embedder)
    parts = []
    for at in range(0, len(image_PCDHW), _CHUNK):
        source = np.array(image_PCDHW[at : at + _CHUNK], dtype=np.float32, order="C")
        start = rng.uniform(-eps, eps, source.shape).astype(np.float32)
        led = _ascend(
            torch.from_numpy(source).to(device),
            torch.from_numpy(start).to(device),
            embedder,
            eps=eps,
            steps=steps,
        )
        parts.append(led.cpu().numpy())
    return np.concatenate(parts) if parts else image_PCDHW.copy()


def _ascend(
    source: torch.Tensor, start: torch.Tensor, embedder: Embedder, *, eps: float, steps: int
) -> torch.Tensor:
    with torch.no_grad():
        own = embedder.embed(source)
    low, high = (source - eps).clamp(min=0), (source + eps).clamp(max=1)
    # The scan itself is where the gradient is zero: the walk begins beside it.
    moved = (source + start).clamp(0, 1)
    best, farthest = moved, torch.full((len(source),), torch.inf, device=source.device)
    for step in range(steps + 1):
        moved = moved.detach().requires_grad_()
        with torch.enable_grad():
            cosine = (embedder.embed(moved) * own).sum(1)
            if not cosine.requires_grad:
                raise DataError(
                    "no adversarial copies can be made",
                    why="no gradient passes through the embedder",
                    fix="give a member of the filter that torch can differentiate",
                )
            (slope,) = torch.autograd.grad(cosine.sum(), moved)
        with torch.no_grad():
            farther = cosine < farthest
            farthest = torch.where(farther, cosine, farthest)
            best = torch.where(farther.reshape(-1, *[1] * (moved.ndim - 1)), moved, best)
            if step < steps:
                moved = moved - _STEP_FRAC * eps / steps * slope.sign()
                moved = torch.minimum(torch.maximum(moved, low), high)
    return best.detach()


def _device_of(embedder: Embedder) -> torch.device:
    """Return where a network lives; an embedder that is none is asked on the processor."""
    if isinstance(embedder, torch.nn.Module):
        first = next(embedder.parameters(), None)
        if first is not None:
            return first.device
    return torch.device("cpu")
