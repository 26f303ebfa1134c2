"""Gradients in bfloat16 are those of float32 up to rounding, also of maps thinner than a kernel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitrael.core.training.precision import autocast

CPU = torch.device("cpu")


def slopes(depth: int, *, bf16: bool, dtypes: list[torch.dtype] | None = None) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        layer = nn.Conv3d(16, 16, 3, padding=1)
        x, weight = torch.randn(2, 16, depth, 4, 4), torch.randn(2, 16, depth, 4, 4)
    model = nn.Sequential(layer)
    with autocast([model], CPU, bf16=bf16):
        y = model(x)
        if dtypes is not None:
            dtypes.append(y.dtype)
        assert torch.is_autocast_enabled("cpu") == bf16
    assert not torch.is_autocast_enabled("cpu")
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks
    (y.float() * weight).sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_gradient_of_weights_is_right_at_every_depth(depth: int) -> None:
    exact, found = slopes(depth, bf16=False), slopes(depth, bf16=True)
    assert ((found - exact).norm() / exact.norm()).item() < 0.02


def test_only_maps_thinner_than_the_kernel_are_left_out() -> None:
    dtypes: list[torch.dtype] = []
    for depth in (1, 2, 3, 4):
        slopes(depth, bf16=True, dtypes=dtypes)
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]


def test_layer_that_fails_leaves_nothing_behind() -> None:
    layer = nn.Conv3d(16, 16, 3, padding=1)
    with pytest.raises(RuntimeError), autocast([layer], CPU, bf16=True):
        layer(torch.zeros(1, 3, 2, 4, 4))
    assert not torch.is_autocast_enabled("cpu")
    assert not layer._forward_hooks
