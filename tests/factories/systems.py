"""The smallest config of every system, and batches that its parts can learn from."""

from __future__ import annotations

from typing import Any

import torch

from vitrael.core.configs import BrainLDMConfig, ReidEncoderConfig, Section
from vitrael.core.models import SYSTEMS

GRID = (16, 16, 16)
_TRAINING = {"length_images": 64, "batch_images": 8}
_DIFFUSION = {
    "channels": (8, 16),
    "timesteps": 100,
    "sampling_steps": 5,
    "training": _TRAINING,
}

CONFIGS: dict[str, Section] = {
    "brain_ldm": BrainLDMConfig.model_validate(
        {
            "kind": "brain_ldm",
            "codec": {"channels": (8, 16), "latent_channels": 2, "training": _TRAINING},
            "teacher": _DIFFUSION,
            "student": {**_DIFFUSION, "channels": (8, 8)},
        }
    ),
    "reid_encoder": ReidEncoderConfig.model_validate(
        {"kind": "reid_encoder", "channels": (4, 8), "embedding": 8, "training": _TRAINING}
    ),
}
"""Kind to its config; a new system is given a line here."""


def brain_ldm() -> BrainLDMConfig:
    """Return the tiny brain LDM."""
    config = CONFIGS["brain_ldm"]
    assert isinstance(config, BrainLDMConfig)
    return config


def images(count: int, *, seed: int = 0) -> torch.Tensor:
    """Return ``[B, 1, 16, 16, 16]`` blobs in [0, 1] on black, each of another place and size."""
    rng = torch.Generator().manual_seed(seed)
    lines = torch.linspace(-1, 1, GRID[0])
    points = torch.stack(torch.meshgrid(lines, lines, lines, indexing="ij"))
    centre = 0.5 * torch.rand((count, 3, 1, 1, 1), generator=rng) - 0.25
    width = 0.2 + 0.2 * torch.rand((count, 1, 1, 1), generator=rng)
    return torch.exp(-((points - centre) ** 2).sum(1) / (2 * width**2))[:, None]


def batch(kind: str, part: str, *, count: int = 4, seed: int = 0) -> Any:
    """Return what the objective of a system's part is called with."""
    rng = torch.Generator().manual_seed(seed)
    if kind == "reid_encoder":
        return images(count, seed=seed), images(count, seed=seed) * 0.9
    if part == "codec":
        return images(count, seed=seed)
    latents = torch.randn((count, 2, 4, 4, 4), generator=rng)
    return latents, torch.rand((count, 4), generator=rng)


def parts_of(kind: str) -> tuple[str, ...]:
    """Return the names of a system's networks."""
    return tuple(SYSTEMS[kind].build(CONFIGS[kind], 1))
