"""Where the arithmetic happens: device, threads, and whether bfloat16 pays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from vitrael.core.errors import ConfigError

_CAPABILITY: Final = (8, 0)
"""The first generation of CUDA devices with bfloat16 in its matrix units."""


@dataclass(frozen=True, slots=True)
class Compute:
    """A device that is there, and the precision of its autocast."""

    device: str
    bf16: bool


def prepare_compute(
    *, device: str, threads: int, bf16: str, vram_frac: float | None = None
) -> Compute:
    """Set torch's threads and return the device; bfloat16 only where it is faster.

    ``vram_frac`` is the share of the GPU's memory that this process may take from now on, None all
    of it: what asks for more fails with torch's own error instead of taking it from who else uses
    the GPU. Raises ConfigError when ``cuda`` is asked for and absent.
    """
    torch.set_num_threads(threads)
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                'the device "cuda" cannot be used',
                why="torch finds no CUDA device here",
                fix='set performance.device = "cpu", or give --device cpu to a command that has '
                "this option, or install a CUDA build of torch",
            )
        # Set in any case: a share sticks to the process, which may have served another study.
        torch.cuda.set_per_process_memory_fraction(1.0 if vram_frac is None else vram_frac)
    return Compute(device, bf16=bf16 == "auto" and computes_in_bfloat16(torch.device(device)))


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is faster than float32 on a device.

    CUDA is from compute capability 8, a CPU with matrix units (AMX). One with avx512_bf16 alone is
    not: its instruction takes two cycles, and training was a third slower than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _CAPABILITY
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))
