from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.metrics.structure import four_component_r, ms_ssim, scales_of
from vitrael.core.rng import torch_stream

Similarity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
BOTH: tuple[Similarity, ...] = (ms_ssim, four_component_r)
SHAPES = ((3, 1, 40, 36), (2, 1, 24, 22, 20), (2, 1, 9, 9))


def _noise(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch_stream(1, name), dtype=torch.float64)


@pytest.mark.parametrize("similarity", BOTH)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_is_like_itself_and_pairs_may_be_swapped(
    similarity: Similarity, shape: tuple[int, ...]
) -> None:
    x, y = _noise("x", shape), _noise("y", shape)
    torch.testing.assert_close(similarity(x, x), torch.ones(len(x), dtype=torch.float64))
    torch.testing.assert_close(similarity(x, y), similarity(y, x))
    assert (similarity(x, y) < 0.7).all()


@pytest.mark.parametrize("similarity", BOTH)
def test_mirrored_pairs_are_as_alike(similarity: Similarity) -> None:
    x, y = _noise("x", (2, 1, 32, 32)), _noise("y", (2, 1, 32, 32))
    torch.testing.assert_close(similarity(x, y), similarity(x.flip(2), y.flip(2)))
    torch.testing.assert_close(similarity(x, y), similarity(x.mT, y.mT))


@pytest.mark.parametrize(
    ("side", "scales"), [(9, 1), (24, 2), (32, 2), (41, 3), (160, 4), (161, 5)]
)
def test_scales_have_room_for_the_window(side: int, scales: int) -> None:
    assert scales_of(side) == scales


@pytest.mark.parametrize("shape", [(2, 1, 32, 48), (2, 1, 24, 32, 24)])
def test_ms_ssim_agrees_with_the_peer(shape: tuple[int, ...]) -> None:
    from monai.metrics.regression import MultiScaleSSIMMetric

    x = _noise("x", shape).float()
    y = (x + 0.3 * _noise("y", shape).float()) / 1.3
    weights = torch.tensor([0.0448, 0.2856])
    peer = MultiScaleSSIMMetric(
        spatial_dims=len(shape) - 2, weights=(weights / weights.sum()).tolist(), reduction="none"
    )
    torch.testing.assert_close(ms_ssim(x, y), peer(x, y)[:, 0], atol=1e-4, rtol=0)


def test_ms_ssim_falls_with_noise_and_blur(slice_sets: Mapping[str, torch.Tensor]) -> None:
    x, blurred = slice_sets["second"][:8], slice_sets["blurred"][:8]
    little, much = (x + s * (_noise("n", tuple(x.shape)).float() - 0.5) for s in (0.1, 0.4))
    assert (ms_ssim(x, little) > ms_ssim(x, much)).all()
    assert (ms_ssim(x, blurred) < 0.999).all()


def test_four_components_ignore_scale_and_offset_and_ms_ssim_does_not(
    slice_sets: Mapping[str, torch.Tensor],
) -> None:
    x, y = slice_sets["real"][:6].double(), slice_sets["fresh"][:6].double()
    torch.testing.assert_close(four_component_r(x, y), four_component_r(0.3 * x + 0.2, -2 * y))
    assert (ms_ssim(x, y) - ms_ssim(0.3 * x + 0.2, y)).abs().min() > 0.1


def test_unrelated_textures_have_hardly_any_structure_in_common() -> None:
    x, y = _noise("x", (4, 1, 96, 96)), _noise("y", (4, 1, 96, 96))
    assert four_component_r(x, y).abs().max() < 0.15
    assert (four_component_r(x, x + 0.05 * y) > 0.8).all()


def test_common_air_counts_as_alike_and_one_sided_air_does_not() -> None:
    x, y = _noise("x", (1, 1, 64, 64)), _noise("y", (1, 1, 64, 64))
    x[..., 32:], y[..., 32:] = 0, 0
    lone = _noise("z", (1, 1, 64, 64))
    smooth_and_rest = four_component_r(x, y)
    assert smooth_and_rest > 0.2
    assert four_component_r(x, lone) < 0.15


def test_rounding_in_the_air_is_not_compared(slice_sets: Mapping[str, torch.Tensor]) -> None:
    x, y = slice_sets["real"][:6], slice_sets["fresh"][:6]
    assert x.dtype == torch.float32
    dust = 1e-6 * _noise("dust", tuple(x.shape)).float()
    torch.testing.assert_close(
        four_component_r(x, y), four_component_r(x + dust, y), atol=0.01, rtol=0
    )


def test_two_flat_images_are_alike() -> None:
    flat = torch.full((1, 1, 32, 32), 0.5)
    assert four_component_r(flat, flat * 2).item() == 1.0
    assert ms_ssim(flat, flat).item() == pytest.approx(1.0)


@pytest.mark.parametrize("similarity", BOTH)
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 32, 32), (3, 1, 32, 32)])
def test_batches_that_do_not_pair_are_refused(
    similarity: Similarity, shape: tuple[int, ...]
) -> None:
    with pytest.raises(DataError, match="pair by pair"):
        similarity(torch.zeros(shape), torch.zeros((2, 1, 32, 32)))
