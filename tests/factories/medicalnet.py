"""Made-up weights of MedicalNet's smallest network, under its published names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vitrael.core.metrics.medicalnet import build_medicalnet
from vitrael.core.rng import stream
from vitrael.core.weights import module_tensors, pack_tensors


def medicalnet_tensors(seed: int = 1) -> dict[str, np.ndarray]:
    """Return tensors of resnet10 that keep the scale of what passes."""
    with torch.device("meta"):
        module = build_medicalnet("resnet10").to_empty(device="cpu")
    rng = stream(seed, "medicalnet")
    return {name: _draw(rng, name, like) for name, like in module_tensors(module).items()}


def write_medicalnet(path: Path, *, seed: int = 1) -> Path:
    """Write them to a file."""
    path.write_bytes(pack_tensors(medicalnet_tensors(seed)))
    return path


def _draw(rng: np.random.Generator, name: str, like: np.ndarray) -> np.ndarray:
    """Return He's normal weights, and norms that change nothing."""
    if like.ndim < 5:
        return np.full_like(like, 0 if name.endswith(("bias", "mean", "tracked")) else 1)
    scale = np.sqrt(2 / np.prod(like.shape[1:]))
    return rng.standard_normal(like.shape, np.float32) * np.float32(scale)
