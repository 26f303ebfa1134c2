"""Every metric that is advertised must fail a blurred set and one that lost its modes.

And must not fail a second real set. What a metric cannot see stands here as a test too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from vitrael.core.metrics.distribution import coverage, density, frechet_distance, kernel_distance
from vitrael.core.metrics.features import (
    anatomy_extractor,
    extract_features,
    random_conv_extractor,
)
from vitrael.core.metrics.measured import Measured
from vitrael.core.rng import stream

Sets = Mapping[str, torch.Tensor]
Features = Mapping[str, Mapping[str, np.ndarray]]
Metric = Callable[[np.ndarray, np.ndarray, str], Measured]
EXTRACTORS = (random_conv_extractor(0), random_conv_extractor(1), anatomy_extractor())
NAMES = [extractor.name for extractor in EXTRACTORS]


def _fid(real: np.ndarray, synthetic: np.ndarray, extractor: str) -> Measured:
    rng = stream(0, "controls")
    return frechet_distance(real, synthetic, extractor=extractor, rng=rng, draws=60)


def _kid(real: np.ndarray, synthetic: np.ndarray, extractor: str) -> Measured:
    return kernel_distance(real, synthetic, extractor=extractor)


def _coverage(real: np.ndarray, synthetic: np.ndarray, extractor: str) -> Measured:
    return coverage(real, synthetic, extractor=extractor)


def _density(real: np.ndarray, synthetic: np.ndarray, extractor: str) -> Measured:
    return density(real, synthetic, extractor=extractor)


@pytest.fixture(scope="session")
def slice_features(slice_sets: Sets) -> Features:
    """Return by extractor and set what was extracted from slices."""
    return _extract(slice_sets)


@pytest.fixture(scope="session")
def volume_features(volume_sets: Sets) -> Features:
    return _extract(volume_sets)


def _extract(sets: Sets) -> Features:
    return {
        extractor.name: {name: extract_features(extractor, x) for name, x in sets.items()}
        for extractor in EXTRACTORS
    }


def _measure(metric: Metric, features: Features, extractor: str) -> dict[str, Measured]:
    sets = features[extractor]
    return {
        name: metric(sets["real"], found, extractor)
        for name, found in sets.items()
        if name != "real"
    }


def _check(metric: Metric, features: Features, extractor: str) -> None:
    found = _measure(metric, features, extractor)
    fresh = [found[name] for name in ("fresh", "second")]
    for one, other in itertools.permutations(fresh, 2):
        assert not one.above(other)
    worse = ("blurred", "quarter") if metric is _kid else ("blurred", "quarter", "repeated")
    for name, one in itertools.product(worse, fresh):
        smaller, larger = (one, found[name])[:: -1 if metric is _coverage else 1]
        assert larger.above(smaller), name
    if metric is _kid:  # whose value for equal distributions is known
        assert all(one.low <= 0 <= one.high for one in fresh)


@pytest.mark.parametrize("extractor", NAMES)
@pytest.mark.parametrize("metric", [_fid, _kid, _coverage])
def test_blur_and_lost_modes_are_worse_and_a_second_real_set_is_not(
    slice_features: Features, metric: Metric, extractor: str
) -> None:
    _check(metric, slice_features, extractor)


@pytest.mark.slow
@pytest.mark.parametrize("extractor", NAMES)
@pytest.mark.parametrize("metric", [_fid, _kid, _coverage])
def test_blur_and_lost_modes_are_worse_in_volumes_too(
    volume_features: Features, metric: Metric, extractor: str
) -> None:
    _check(metric, volume_features, extractor)


@pytest.mark.parametrize("extractor", NAMES)
def test_coverage_sees_repeated_images_that_kid_does_not(
    slice_features: Features, extractor: str
) -> None:
    sets = slice_features[extractor]
    second = sets["second"]
    repeated = np.tile(second[: len(second) // 4], (4, 1))
    features = {extractor: {**sets, "repeated": repeated}}
    kid, covered = (_measure(metric, features, extractor) for metric in (_kid, _coverage))
    assert not kid["repeated"].above(kid["fresh"])
    assert covered["fresh"].above(covered["repeated"])


@pytest.mark.parametrize("extractor", NAMES)
def test_density_sees_blur_and_no_lost_modes(slice_features: Features, extractor: str) -> None:
    found = _measure(_density, slice_features, extractor)
    assert found["fresh"].above(found["blurred"])
    assert not found["fresh"].above(found["repeated"])
    assert not found["fresh"].above(found["quarter"])
