from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.metrics.features import (
    Extractor,
    anatomy_extractor,
    extract_features,
    halve,
    random_conv_extractor,
    standardize_volumes,
)
from vitrael.core.rng import torch_stream

EXTRACTORS = (random_conv_extractor(0), anatomy_extractor())
SHAPES = ((5, 1, 32, 32), (3, 1, 16, 24, 20))


def _images(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch_stream(1, "images"))


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=lambda e: e.name)
@pytest.mark.parametrize("shape", SHAPES)
def test_features_are_the_same_in_any_batch(extractor: Extractor, shape: tuple[int, ...]) -> None:
    images = _images(shape)
    whole, singly = (extract_features(extractor, images, batch=b) for b in (16, 1))
    assert whole.dtype == np.float64
    assert whole.shape[0] == shape[0]
    np.testing.assert_allclose(whole, singly, rtol=1e-4, atol=1e-5)
    assert (whole.std(axis=0) > 0).sum() > 20


def test_a_seed_is_a_name_and_a_name_a_function() -> None:
    images = _images(SHAPES[0])
    first, again, other = (
        extract_features(random_conv_extractor(seed), images) for seed in (0, 0, 1)
    )
    assert (random_conv_extractor(0).name, random_conv_extractor(1).name) == (
        "random-conv-0",
        "random-conv-1",
    )
    assert (first == again).all()
    assert not np.allclose(first, other)


def test_random_conv_ignores_gain_and_offset_and_anatomy_does_not() -> None:
    images = _images(SHAPES[0])
    conv, anatomy = (
        np.abs(extract_features(e, images) - extract_features(e, 0.5 * images + 0.1)).max()
        for e in EXTRACTORS
    )
    assert conv < 1e-4
    assert anatomy > 0.1


def test_anatomy_sees_where_things_stand() -> None:
    images = torch.zeros(1, 1, 32, 32)
    images[..., 4:8, 4:8] = 1
    turned = images.flip(2)
    moved = extract_features(anatomy_extractor(), images) - extract_features(
        anatomy_extractor(), turned
    )
    assert np.abs(moved[0, :16]).max() == 0
    assert np.abs(moved[0, 16:36]).max() > 0.1


def test_halving_is_a_mean_over_pairs() -> None:
    assert halve(torch.arange(16.0).reshape(1, 1, 4, 4)).flatten().tolist() == [
        2.5,
        4.5,
        10.5,
        12.5,
    ]
    assert halve(torch.zeros(1, 1, 9, 8, 8)).shape == (1, 1, 4, 4, 4)


def test_a_constant_image_is_standardized_to_zero() -> None:
    images = torch.cat([torch.full((1, 1, 8, 8), 0.4), _images((1, 1, 8, 8))])
    standard = standardize_volumes(images)
    assert standard[0].abs().max() < 0.2
    assert standard[1].mean().item() == pytest.approx(0, abs=1e-5)
    assert standard[1].std().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 3, 32, 32), (2, 1, 7, 32)])
def test_images_of_another_kind_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="no features"):
        extract_features(anatomy_extractor(), torch.zeros(shape))


def test_images_that_are_not_finite_are_refused() -> None:
    images = _images(SHAPES[0])
    images[1, 0, 2, 3] = torch.nan
    with pytest.raises(DataError, match="images hold values"):
        extract_features(anatomy_extractor(), images)


def test_features_that_are_not_finite_are_refused() -> None:
    broken = Extractor("broken", lambda x: x.flatten(1) / 0)
    with pytest.raises(DataError, match="broken gave values"):
        extract_features(broken, _images(SHAPES[0]))
