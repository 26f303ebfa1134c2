"""Corruption is linear, its adjoint is the adjoint, and what it left can be put back."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vitrael.core.errors import DataError, UsageError
from vitrael.core.sampling.operators import (
    Downsample,
    Identity,
    Operator,
    SliceMask,
    ThickSlices,
    VoxelMask,
)


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


PLANE, VOLUME = (2, 1, 8, 12), (2, 1, 8, 4, 12)
SPECKLE = draw(8, 12, seed=5) > 0.3
SPECKLE_3D = draw(8, 4, 12, seed=5) > 0.3

CASES: list[tuple[Operator, tuple[int, ...]]] = [
    (Identity(), PLANE),
    (SliceMask(0, 4), PLANE),
    (SliceMask(1, 3, first=2), PLANE),
    (SliceMask(2, 5, first=1), VOLUME),
    (VoxelMask(SPECKLE), PLANE),
    (VoxelMask(SPECKLE_3D), VOLUME),
    (ThickSlices(0, 4), PLANE),
    (ThickSlices(1, 3), PLANE),
    (ThickSlices(2, 4), VOLUME),
    (Downsample(2), PLANE),
    (Downsample(4), PLANE),
    (Downsample(2), VOLUME),
    (Downsample(1), VOLUME),
]
every_operator = pytest.mark.parametrize(
    ("operator", "shape"), CASES, ids=[f"{type(o).__name__}-{i}" for i, (o, _) in enumerate(CASES)]
)


def gap(operator: Operator, image: torch.Tensor, low: torch.Tensor, *, error: float = 0) -> float:
    """Return the distance between the two inner products; ``error`` spoils the adjoint."""
    back = operator.adjoint(low) * (1 + error)
    return abs(((operator(image) * low).sum() - (image * back).sum()).item())


@every_operator
def test_adjoint_is_the_adjoint(operator: Operator, shape: tuple[int, ...]) -> None:
    image = draw(*shape)
    low = draw(*operator(image).shape, seed=4)
    assert operator.adjoint(low).shape == image.shape
    assert gap(operator, image, low) < 1e-12
    assert gap(operator, image, low, error=1e-3) > 1e-6  # the control


@every_operator
def test_operator_is_linear(operator: Operator, shape: tuple[int, ...]) -> None:
    one, two = draw(*shape), draw(*shape, seed=4)
    torch.testing.assert_close(operator(2 * one - two), 2 * operator(one) - operator(two))


@every_operator
def test_projection_agrees_with_the_measurement_and_never_leads_away(
    operator: Operator, shape: tuple[int, ...]
) -> None:
    truth, image = draw(*shape), draw(*shape, seed=4)
    low = operator(truth)
    projected = operator.project(image, low)
    torch.testing.assert_close(operator(projected), low)
    assert (projected - truth).norm() <= (image - truth).norm()
    again = operator.project(projected, low)
    torch.testing.assert_close(again, projected)
    assert not torch.allclose(operator(image), low)  # the control: before, it did not agree


@every_operator
def test_constant_stays_constant_where_it_is_seen(
    operator: Operator, shape: tuple[int, ...]
) -> None:
    image = torch.full(shape, 0.7, dtype=torch.float64)
    low = operator(image)
    seen = operator.observed(low).to(torch.bool).expand_as(low)
    torch.testing.assert_close(low[seen], torch.full_like(low[seen], 0.7))
    torch.testing.assert_close(operator.upsample(low), image)


@every_operator
def test_dtype_and_gradient_pass_through(operator: Operator, shape: tuple[int, ...]) -> None:
    image = draw(*shape).float().requires_grad_()
    low = operator(image)
    assert low.dtype == torch.float32
    weight = draw(*low.shape, seed=6).float()
    (low * weight).sum().backward()
    torch.testing.assert_close(image.grad, operator.adjoint(weight), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("operator", [SliceMask(0, 3), VoxelMask(SPECKLE)])
def test_acquired_voxels_come_back_bit_for_bit(operator: Operator) -> None:
    truth, image = draw(*PLANE).float(), draw(*PLANE, seed=4).float()
    low = operator(truth)
    seen = operator.observed(low).to(torch.bool).expand_as(low)
    projected = operator.project(image, low)
    assert torch.equal(projected[seen], truth[seen])
    assert torch.equal(projected[~seen], image[~seen])
    assert torch.equal(operator.upsample(low)[seen], truth[seen])
    assert not torch.equal(image[seen], truth[seen])  # the control


def test_thick_slice_is_the_mean_of_its_thin_ones() -> None:
    image = draw(*VOLUME)
    low = ThickSlices(0, 4)(image)
    torch.testing.assert_close(low[:, :, 1], image[:, :, 4:8].mean(dim=2))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_downsample_is_trilinear_resizing(factor: int) -> None:
    image = draw(*VOLUME)
    expected = functional.interpolate(image, scale_factor=1 / factor, mode="trilinear")
    torch.testing.assert_close(Downsample(factor)(image), expected)


@pytest.mark.parametrize("operator", [ThickSlices(0, 4), Downsample(4), SliceMask(0, 4)])
def test_cubic_interpolation_follows_a_parabola(operator: Operator) -> None:
    """Keys 1981, section III: the error is of third order; a mean of thick slices adds a constant.

    The interior alone is looked at: at the edges the last voxel is repeated.
    """
    place = torch.arange(32, dtype=torch.float64)
    image = ((place - 9) ** 2)[None, None, :, None].expand(1, 1, 32, 32)
    away = (operator.upsample(operator(image)) - image)[:, :, 8:20, 12]
    assert away.std() < 1e-9
    rough = operator.upsample(operator(image.sqrt()))[:, :, 8:20, 12] - image.sqrt()[:, :, 8:20, 12]
    assert rough.std() > 1e-3  # the control: a corner is not a parabola


def test_every_hidden_voxel_is_filled_from_its_neighbors() -> None:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[0, 0] = mask[7, 11] = True
    low = VoxelMask(mask)(1 + draw(*PLANE).abs())
    filled = VoxelMask(mask).upsample(low)
    assert (filled >= low[low > 0].min() - 1e-9).all()
    assert (filled <= low.max() + 1e-9).all()
    assert (low == 0).any()  # the control


@pytest.mark.parametrize(
    ("operator", "shape", "what"),
    [
        (SliceMask(0, 12, first=9), PLANE, "hides everything"),
        (VoxelMask(SPECKLE), (2, 1, 8, 8), "does not fit"),
        (ThickSlices(0, 3), PLANE, "do not divide"),
        (Downsample(8), PLANE, "do not divide"),
        (ThickSlices(2, 4), PLANE, "axes of space"),
        (ThickSlices(-1, 4), PLANE, "axes of space"),
        (ThickSlices(0, 4), (8, 8), "number of axes"),
    ],
    ids=[str(case) for case in range(7)],
)
def test_image_that_does_not_fit_is_refused(
    operator: Operator, shape: tuple[int, ...], what: str
) -> None:
    with pytest.raises(DataError, match=what):
        operator(draw(*shape))


def test_mask_that_hides_everything_is_refused() -> None:
    with pytest.raises(DataError, match="hides everything"):
        VoxelMask(torch.zeros(4, 4, dtype=torch.bool))
    VoxelMask(torch.eye(4, dtype=torch.bool))  # the control


def test_mask_of_numbers_is_refused() -> None:
    with pytest.raises(DataError, match="truth values"):
        VoxelMask(torch.ones(4, 4))
    with pytest.raises(DataError, match="truth values"):
        VoxelMask(torch.ones(4, dtype=torch.bool))


def test_operator_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="factor"):
        ThickSlices(0, 0)
    with pytest.raises(UsageError, match="factor"):
        Downsample(-2)
    with pytest.raises(UsageError, match="first slice"):
        SliceMask(0, 4, first=4)
