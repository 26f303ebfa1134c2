"""What a script does that registers scans with MONAI's losses and torch's optimizer."""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional

STEPS: Final = 25
RATE: Final = 0.03


def register_affinely(moving_PDHW: torch.Tensor, fixed_PDHW: torch.Tensor) -> torch.Tensor:
    """Return the images, each laid onto its pair by Adam on local cross-correlation."""
    from monai.losses import LocalNormalizedCrossCorrelationLoss

    loss = LocalNormalizedCrossCorrelationLoss(kernel_size=7)
    moving, fixed = moving_PDHW[:, None], fixed_PDHW[:, None]
    start = torch.eye(3, 4).repeat(len(moving), 1, 1)
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        grid = functional.affine_grid(theta, list(moving.shape), align_corners=False)
        laid = functional.grid_sample(moving, grid, align_corners=False)
        loss(laid, fixed).backward()
        optimizer.step()
    with torch.no_grad():
        grid = functional.affine_grid(theta, list(moving.shape), align_corners=False)
        return functional.grid_sample(moving, grid, align_corners=False)[:, 0]


def correlate(one_PDHW: torch.Tensor, other_PDHW: torch.Tensor) -> torch.Tensor:
    """Return ``[P]``: the normalized cross-correlation of whole images."""
    first, second = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in
                     (one_PDHW, other_PDHW))  # fmt: skip
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1)).clamp_min(1e-8)
