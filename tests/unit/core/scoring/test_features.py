"""Errors vanish for equal images; signed metrics tell in which direction images differ."""

from __future__ import annotations

import pytest
import torch

from vitrael.core.rng import torch_stream
from vitrael.core.scoring.features import compare_images, gradient_error, mean_square


def image(edges: int = 2) -> torch.Tensor:
    return torch.rand(3, 1, *[16] * edges, generator=torch_stream(1, "image"))


@pytest.mark.parametrize("edges", [2, 3])
def test_equal_images_differ_in_nothing(edges: int) -> None:
    x = image(edges)
    for value in compare_images(x, x.clone()).values():
        torch.testing.assert_close(value, torch.zeros(3))


def test_signed_metrics_have_the_sign_of_the_change() -> None:
    x = image()
    flatter, brighter = compare_images(0.8 * x + 0.1, x), compare_images(x + 0.2, x)
    assert (flatter["contrast"] < -0.15).all()
    assert (flatter["sharpness"] < -0.15).all()
    assert (compare_images(x, 0.8 * x + 0.1)["contrast"] > 0.15).all()
    torch.testing.assert_close(brighter["offset"], torch.full((3,), 0.2))
    torch.testing.assert_close(brighter["contrast"], torch.zeros(3), atol=1e-5, rtol=0)
    assert (brighter["square"] > 0.039).all()


def test_gradient_error_ignores_a_constant_and_sees_an_edge() -> None:
    error = torch.zeros(2, 1, 16, 16)
    error[0] = 0.3
    error[1, :, :, 8:] = 0.3
    constant, edge = gradient_error(error).tolist()
    assert constant == pytest.approx(0, abs=1e-12)
    assert edge > 1e-3
    assert mean_square(error)[0] > mean_square(error)[1]  # the control: level alone says otherwise


def test_gradient_error_is_the_sum_over_axes_and_mean_over_scales() -> None:
    error = image()
    fine = sum(error.diff(dim=axis).square().flatten(1).mean(1) for axis in (2, 3))
    half = error.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    coarse = sum(half.diff(dim=axis).square().flatten(1).mean(1) for axis in (2, 3))
    torch.testing.assert_close(gradient_error(error), (fine + coarse) / 2)
    small = error[:, :, :9, :9]  # too small to be halved
    fine = sum(small.diff(dim=axis).square().flatten(1).mean(1) for axis in (2, 3))
    torch.testing.assert_close(gradient_error(small), fine)


def test_flat_images_have_finite_features() -> None:
    flat = torch.full((2, 1, 16, 16), 0.4)
    for value in compare_images(flat, image()[:2]).values():
        assert torch.isfinite(value).all()
