"""Randomness as named streams: no global seed, no order dependence.

A stream is named by a study seed and a path of words and numbers, such as
``stream(seed, "split", "north")``. Equal names give equal draws on every machine; different names
give streams that are independent for all practical purposes (SHA-256 seeds PCG64 or Philox).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from vitrael.core.digest import canonical_json

if TYPE_CHECKING:
    import torch

_LARGEST_DRAW: Final = 2**63 - 1


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


@contextmanager
def layers_draw_from(rng: torch.Generator, *, device: torch.device) -> Iterator[None]:
    """Let layers called inside, such as dropout, draw from ``rng`` on the CPU and on ``device``.

    PyTorch's layers draw from the global generators alone. Inside, these begin at one draw of
    ``rng``, so that whoever keeps its state keeps theirs; afterwards, and after an error too, their
    own states are put back. Those of other devices are not touched.
    """
    import torch  # noqa: PLC0415 - the researcher's install has no torch

    seed = int(torch.randint(_LARGEST_DRAW, (1,), generator=rng, device=rng.device))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
