"""What the perceptual term sees and what it does not; each kind says its name."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.training.perceptual import FeaturePerceptual, GradientPerceptual

SHAPES = [(2, 1, 32, 32), (2, 1, 32, 16, 16)]


def pictures(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def smooth(image: torch.Tensor) -> torch.Tensor:
    pool = functional.avg_pool2d if image.ndim == 4 else functional.avg_pool3d
    return pool(image, 3, stride=1, padding=1)


def stages(x: torch.Tensor) -> list[torch.Tensor]:
    """Stand for a network: the image beside its square, and both at half resolution."""
    fine = torch.cat([x, x**2], 1)
    return [fine, functional.avg_pool3d(fine, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_images_are_at_no_distance_and_blurred_ones_are(shape: tuple[int, ...]) -> None:
    image = pictures(shape)
    distance = GradientPerceptual()
    assert distance(image, image).item() == 0
    assert distance(smooth(image), image).item() > 0.05


def test_level_is_not_seen_but_an_edge_is() -> None:
    image, distance = pictures((1, 1, 32, 32)), GradientPerceptual()
    assert distance(image + 0.3, image).item() == pytest.approx(0, abs=1e-6)
    edge = image.clone()
    edge[..., 16:] += 0.3
    assert distance(edge, image).item() > 1e-3


def test_gradients_are_compared_over_scales() -> None:
    # A coarse pattern weighs as much as a fine one, of which one scale alone sees more.
    distance, flat = GradientPerceptual(), torch.zeros(1, 1, 32, 32)
    line = torch.arange(32)
    fine = ((line // 1) % 2).float().expand(1, 1, 32, 32)
    coarse = ((line // 4) % 2).float().expand(1, 1, 32, 32)
    single = [(p.diff(dim=3).abs().mean() / 2).item() for p in (fine, coarse)]
    found = [distance(p, flat).item() for p in (fine, coarse)]
    assert found[1] / found[0] > 2 * single[1] / single[0]


def test_image_of_a_single_scale_is_compared() -> None:
    image = pictures((2, 1, 8, 8))
    by_hand = sum((smooth(image) - image).diff(dim=axis).abs().mean() for axis in (2, 3)) / 2
    torch.testing.assert_close(GradientPerceptual()(smooth(image), image), by_hand)


def test_features_are_compared_at_unit_length_of_standardized_images() -> None:
    image = pictures((2, 1, 8, 8, 8))
    distance = FeaturePerceptual(stages, name="a stand-in")
    assert distance(image, image).item() == 0
    assert distance(3 * image + 1, image).item() == pytest.approx(0, abs=1e-5)
    assert distance(smooth(image), image).item() > 0.05


def test_gradient_reaches_the_image_and_not_its_target() -> None:
    for distance in (GradientPerceptual(), FeaturePerceptual(stages, name="a stand-in")):
        image = pictures((2, 1, 8, 8, 8)).requires_grad_()
        target = smooth(image.detach()).requires_grad_()
        distance(image, target.detach()).backward()
        assert image.grad is not None
        assert image.grad.isfinite().all()
        assert image.grad.abs().sum() > 0


def test_flat_image_gives_finite_gradients() -> None:
    image = torch.zeros(1, 1, 8, 8, 8, requires_grad=True)
    FeaturePerceptual(stages, name="a stand-in")(image, pictures((1, 1, 8, 8, 8))).backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_each_kind_says_its_name() -> None:
    assert GradientPerceptual().name == "gradients"
    assert FeaturePerceptual(stages, name="medicalnet 10").name == "medicalnet 10"


def test_slices_are_refused_by_a_network_of_volumes() -> None:
    image = pictures((2, 1, 8, 8))
    with pytest.raises(DataError, match="medicalnet 10") as caught:
        FeaturePerceptual(stages, name="medicalnet 10")(image, image)
    assert "gradients" in caught.value.fix
