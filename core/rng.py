"""Randomness as named streams: no global seed, no order dependence.

A stream is named by a study seed and a path of words and numbers, such as
``stream(seed, "split", "north")``. Equal names give equal draws on every machine; different names
give streams that are independent for all practical purposes (SHA-256 seeds PCG64 or Philox).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from vitrael.core.digest import canonical_json

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, *name: str | int) -> int:
    """Return the 63-bit seed of a named stream."""
    state = hashlib.sha256(canonical_json([seed, *name])).digest()
    return int.from_bytes(state[:8], "big") >> 1


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """Return the NumPy generator of a named stream."""
    return np.random.Generator(np.random.PCG64(stream_seed(seed, *name)))


def torch_stream(seed: int, *name: str | int, device: str = "cpu") -> torch.Generator:
    """Return the torch generator of a named stream."""
    import torch  # noqa: PLC0415 - the researcher's install has no torch

    generator = torch.Generator(device=device)
    generator.manual_seed(stream_seed(seed, *name))
    return generator


@contextmanager
def seeded_initialization(seed: int, *name: str | int) -> Iterator[None]:
    """Let layers built inside draw their first weights from a named stream.

    PyTorch's layers draw from the global generator alone; its state is put back afterwards.
    """
    import torch  # noqa: PLC0415 - the researcher's install has no torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, *name))
        yield
