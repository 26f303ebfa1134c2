"""Moments gathered from slabs are those of the whole, and a norm with them is a group norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own pages use
from torch import nn

from vitrael.core.models.nets.moments import GatheredNorm, Moments
from vitrael.core.rng import torch_stream

CUTS = (1, 4, 2)


def activation(*, mean: float = 0.0) -> torch.Tensor:
    """Return ``[1, 8, 7, 5, 3]`` whose rows and channels differ."""
    x = torch.randn((1, 8, sum(CUTS), 5, 3), generator=torch_stream(1, "x"))
    rows = torch.linspace(0.2, 3, sum(CUTS)).reshape(-1, 1, 1)
    return mean + x * rows + torch.arange(8).reshape(1, 8, 1, 1, 1)


def gather(x: torch.Tensor) -> Moments:
    moments = Moments()
    for rows in x.split(CUTS, dim=2):
        moments.add(rows)
    return moments


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_moments_of_slabs_are_those_of_the_whole(mean: float) -> None:
    x = activation(mean=mean)
    moments = gather(x)
    variance, expected = torch.var_mean(x.double(), (0, 2, 3, 4), correction=0)
    torch.testing.assert_close(moments.mean, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moments.squares / moments.count, variance, rtol=1e-4, atol=0)
    last = torch.var_mean(x[:, :, -2:].double(), (0, 2, 3, 4), correction=0)[0]
    assert not torch.allclose(last, variance, rtol=0.1)  # the control: one slab is not the whole


def test_moments_of_bfloat16_rows_are_not_rounded() -> None:
    x = activation(mean=30.0).bfloat16()
    expected = x.double().mean((0, 2, 3, 4))
    assert float((gather(x).mean - expected).abs().max()) < 1e-5
    rounded = expected.bfloat16().double()
    assert float((rounded - expected).abs().max()) > 1e-3  # the control


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_gathered_norm_is_the_group_norm(groups: int) -> None:
    x, norm = activation(), nn.GroupNorm(groups, 8)
    rng = torch_stream(1, "norm")
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(8, generator=rng))
        found = GatheredNorm.of(norm, gather(x)).apply(x, torch.float32)
        torch.testing.assert_close(found, norm(x), rtol=1e-4, atol=1e-5)
        one_slab = F.group_norm(x[:, :, :1], groups, norm.weight, norm.bias)
    assert not torch.allclose(one_slab, found[:, :, :1], atol=0.1)  # the control
