"""bfloat16 where it is right: autocast that leaves out what one processor library gets wrong.

On a CPU, the gradient of a 3D convolution's weights comes out as garbage in bfloat16, without any
error, where the first axis of space is longer than one voxel and shorter than the kernel (seen with
oneDNN as in torch 2.13, on AVX-512; a kernel of 3 on maps of depth 2). Maps so thin are found at
the bottom of a U-Net and cost nothing, so they are computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def autocast(modules: Iterable[nn.Module], device: torch.device, *, bf16: bool) -> Iterator[None]:
    """Compute inside in bfloat16 where it pays, if ``bf16``, and thin 3D maps in float32."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16))
        if bf16 and device.type == "cpu":
            for module in modules:
                for layer in module.modules():
                    if isinstance(layer, nn.Conv3d):
                        stack.enter_context(_thin_in_float32(layer))
        yield


@contextmanager
def _thin_in_float32(layer: nn.Conv3d) -> Iterator[None]:
    around = ExitStack()

    def begin(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        (x,) = args
        if not 1 < x.shape[2] < layer.kernel_size[0]:
            return None
        around.enter_context(torch.autocast(x.device.type, enabled=False))
        return (x.float(),)

    def end(_layer: nn.Module, _args: tuple[Any, ...], _result: object) -> None:
        around.close()

    handles = [
        layer.register_forward_pre_hook(begin),
        layer.register_forward_hook(end, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
