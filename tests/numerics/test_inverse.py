"""Inversion where the answer is known: a fixed decoder and a normal prior over its latents.

The decoder lays 16 small blobs, of about a pixel, into a picture of 16 by 16; cubic interpolation
of thick slices cannot see them, who knows the decoder can. Latents are ``N(A c, s^2)`` given the
condition, so the best denoiser has a closed form.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from vitrael.core.sampling.inverse import (
    Inversion,
    InversionSettings,
    Prior,
    invert_latent,
    invert_noise,
)
from vitrael.core.sampling.operators import SliceMask, ThickSlices
from vitrael.core.sampling.schedules import sampling_sigmas, scaled_linear_sigmas

ROWS, GRID, LATENT = 8, 16, (4, 2, 2)
SIGMAS = sampling_sigmas(scaled_linear_sigmas(1_000, beta_start=0.0015, beta_end=0.0205), 15)
STD = 0.5
THICK = ThickSlices(axis=0, factor=4)


def blobs(seed: int) -> torch.Tensor:
    """Return ``[16, GRID, GRID]``: one blob in each of 4 by 4 fields, anywhere within it."""
    rng = torch.Generator().manual_seed(seed)
    corner = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) * 4
    center = corner + 3.6 * torch.rand(16, 2, generator=rng) - 0.3
    place = torch.arange(float(GRID))
    away = [(place[None] - center[:, [axis]]) ** 2 for axis in (0, 1)]
    return torch.exp(-(away[0][:, :, None] + away[1][:, None, :]) / (2 * 0.7**2))


class Decoder:
    """Maps latents to pictures: blobs of unit height, bent a little by a logistic."""

    def __init__(self, seed: int) -> None:
        self.blobs = blobs(seed)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        drawn = torch.tensordot(z.flatten(1), self.blobs, dims=1)
        return torch.sigmoid(drawn)[:, None]


KNOWN, OTHER = Decoder(seed=1), Decoder(seed=2)
SLOPE = torch.randn(2, 16, generator=torch.Generator().manual_seed(3))


def denoise(x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Return the best estimate for ``z_0 ~ N(A (2c - 1), STD^2)``."""
    mean = ((2 * condition - 1) @ SLOPE).reshape(x_t.shape)
    share = STD**2 / (STD**2 + sigma**2)
    return mean + share.reshape(-1, 1, 1, 1) * (x_t - mean)


def truth() -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents ``[B, 4, 2, 2]`` and the conditions that they were drawn under."""
    rng = torch.Generator().manual_seed(4)
    condition = 0.1 + 0.8 * torch.rand(ROWS, 2, generator=rng)
    mean = (2 * condition - 1) @ SLOPE
    z_0 = mean + STD * torch.randn(ROWS, 16, generator=rng)
    return z_0.reshape(ROWS, *LATENT), condition


def psnr(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -10 * (image - target).square().flatten(1).mean(1).log10()


def prior(condition: torch.Tensor | None = None) -> Prior:
    return Prior(denoise, SIGMAS, torch.full((2,), 0.5) if condition is None else condition)


def by_latent(decoder: Decoder, low: torch.Tensor) -> Inversion:
    settings = InversionSettings(prior_weight=0, iterations=150)
    return invert_latent(decoder, THICK, low, torch.zeros(ROWS, *LATENT), settings=settings)


def by_noise(decoder: Decoder, low: torch.Tensor, *, start: Prior | None = None) -> Inversion:
    settings = InversionSettings(prior_weight=0, iterations=100)
    return invert_noise(
        start or prior(), decoder, THICK, low, latent_shape=LATENT, settings=settings
    )


@pytest.mark.parametrize("search", [by_latent, by_noise], ids=["latent", "noise"])
def test_thin_slices_are_found_behind_thick_ones(search: object) -> None:
    assert callable(search)
    z_0, _ = truth()
    image = KNOWN(z_0)
    low = THICK(image)
    cubic = psnr(THICK.upsample(low), image)
    found = psnr(search(KNOWN, low).image, image)
    assert (found > cubic + 10).all()
    control = psnr(search(OTHER, low).image, image)  # blobs elsewhere: nothing to gain
    assert (control < cubic + 0.5).all()


def test_latent_is_recovered() -> None:
    z_0, _ = truth()
    found = by_latent(KNOWN, THICK(KNOWN(z_0))).latent
    assert (found - z_0).square().mean() < 0.01 * z_0.square().mean()


def test_condition_is_recovered_where_the_prior_depends_on_it() -> None:
    z_0, condition = truth()
    low = THICK(KNOWN(z_0))
    found = by_noise(KNOWN, low).condition
    assert found is not None
    for entry in range(2):
        assert correlation(found[:, entry], condition[:, entry]) > 0.8
    blind = replace(prior(), denoiser=lambda x, s, c: denoise(x, s, 0.5 + 0 * c))
    unmoved = by_noise(KNOWN, low, start=blind).condition
    assert unmoved is not None
    torch.testing.assert_close(unmoved, torch.full_like(unmoved, 0.5))  # the control


def correlation(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one, two]))[0, 1])


def test_masked_slices_are_found_and_acquired_ones_kept() -> None:
    z_0, _ = truth()
    image = KNOWN(z_0)
    mask = SliceMask(axis=0, every=2)
    low = mask(image)
    settings = InversionSettings(prior_weight=0, iterations=150, consistent=True)
    found = invert_latent(KNOWN, mask, low, torch.zeros(ROWS, *LATENT), settings=settings).image
    seen = mask.observed(low).bool().expand_as(low)
    assert torch.equal(found[seen], image[seen])
    assert (psnr(found, image) > psnr(mask.upsample(low), image) + 10).all()


def test_restarts_spread_where_they_are_wrong() -> None:
    """Two blobs within one thick voxel cannot be told apart: there the restarts disagree."""
    z_0, _ = truth()
    image = KNOWN(z_0)
    coarse = ThickSlices(axis=0, factor=16)
    settings = InversionSettings(prior_weight=0, iterations=80, restarts=5)
    found = invert_latent(
        KNOWN, coarse, coarse(image), torch.zeros(ROWS, *LATENT), settings=settings
    )
    assert found.spread is not None
    error = (found.image - image).abs()
    assert correlation(found.spread.flatten(), error.flatten()) > 0.4
    told = invert_latent(KNOWN, THICK, THICK(image), torch.zeros(ROWS, *LATENT), settings=settings)
    assert told.spread is not None
    assert told.spread.mean() < 0.3 * found.spread.mean()  # the control: here all is told


class Net(nn.Module):
    """A denoiser with something inside that a gradient must remember."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(7)
        self.first = torch.randn(16, 64, generator=rng) / 4
        self.second = torch.randn(64, 16, generator=rng) / 8
        self.calls = 0

    def forward(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        self.calls += 1
        scale = (1 + sigma**2).rsqrt()[:, None]
        hidden = torch.tanh(x_t.flatten(1) * scale @ self.first + condition.sum(1, keepdim=True))
        return (hidden @ self.second).reshape(x_t.shape)


def test_checkpointed_search_is_the_plain_one() -> None:
    z_0, _ = truth()
    low = THICK(KNOWN(z_0))
    found, calls = [], []
    for checkpointed in (False, True):
        net = Net()
        settings = InversionSettings(prior_weight=0, iterations=6, checkpointed=checkpointed)
        start = replace(prior(), denoiser=net)
        found.append(invert_noise(start, KNOWN, THICK, low, latent_shape=LATENT, settings=settings))
        calls.append(net.calls)
    torch.testing.assert_close(found[0].image, found[1].image)
    torch.testing.assert_close(found[0].condition, found[1].condition)
    assert calls == [6 * 15 + 15, 2 * 6 * 15 + 15]  # each step is computed twice


def kept_numbers(steps: int, *, checkpointed: bool) -> int:
    """Return how many numbers the graph of one iteration keeps for its gradient."""
    kept: list[torch.Tensor] = []  # held, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    z_0, _ = truth()
    low = THICK(KNOWN(z_0))
    start = replace(prior(), denoiser=Net(), sigmas=spaced(steps))
    settings = InversionSettings(prior_weight=0, iterations=1, checkpointed=checkpointed)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        invert_noise(start, KNOWN, THICK, low, latent_shape=LATENT, settings=settings)
    return sum({tensor.data_ptr(): tensor.numel() for tensor in kept}.values())


def spaced(steps: int) -> torch.Tensor:
    levels = scaled_linear_sigmas(1_000, beta_start=0.0015, beta_end=0.0205)
    return sampling_sigmas(levels, steps)


def test_memory_of_the_network_does_not_grow_with_the_steps() -> None:
    state = ROWS * math.prod(LATENT)
    lean = [kept_numbers(steps, checkpointed=True) for steps in (5, 20)]
    assert lean[1] - lean[0] <= 15 * (state + ROWS)  # one state and its level a step
    plain = [kept_numbers(steps, checkpointed=False) for steps in (5, 20)]
    assert plain[1] - plain[0] > 15 * ROWS * 64  # the control: the hidden layer of every step
