from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.metrics.distribution import coverage, density, frechet_distance, kernel_distance
from vitrael.core.metrics.measured import Measured
from vitrael.core.rng import stream

Metric = Callable[[np.ndarray, np.ndarray], Measured]


def _fid(real: np.ndarray, synthetic: np.ndarray, *, draws: int = 20) -> Measured:
    return frechet_distance(real, synthetic, extractor="none", rng=stream(0, "fid"), draws=draws)


def _kid(real: np.ndarray, synthetic: np.ndarray) -> Measured:
    return kernel_distance(real, synthetic, extractor="none")


def _density(real: np.ndarray, synthetic: np.ndarray) -> Measured:
    return density(real, synthetic, extractor="none")


def _coverage(real: np.ndarray, synthetic: np.ndarray) -> Measured:
    return coverage(real, synthetic, extractor="none")


METRICS: tuple[Metric, ...] = (_fid, _kid, _density, _coverage)


def _with_moments(rng: np.random.Generator, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return rows whose sample mean and covariance are exactly these, on a diagonal."""
    rows = rng.normal(size=(60, len(mean)))
    rows -= rows.mean(axis=0)
    rows = np.linalg.qr(rows)[0] * np.sqrt(59)
    return np.asarray(rows * deviation + mean)


def test_frechet_of_two_gaussians_is_the_closed_form() -> None:
    first = _with_moments(stream(1, "a"), np.array([0.0, 0, 0]), np.array([1.0, 2, 3]))
    second = _with_moments(stream(1, "b"), np.array([1.0, 0, -2]), np.array([2.0, 2, 0.5]))
    assert _fid(first, second).value == pytest.approx(5 + 1 + 0 + 6.25, rel=1e-10)


@pytest.mark.filterwarnings("ignore")  # the peer's square root of a matrix warns
def test_frechet_agrees_with_the_peer() -> None:
    from monai.metrics.fid import FIDMetric

    rng = stream(2, "peer")
    first = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6))
    second = rng.normal(size=(70, 6)) @ rng.normal(size=(6, 6)) + 0.3
    peer = float(FIDMetric()(torch.from_numpy(second), torch.from_numpy(first)))
    assert _fid(first, second).value == pytest.approx(peer, rel=1e-6)


def test_frechet_of_fewer_images_than_features_is_that_of_their_subspace() -> None:
    rng = stream(3, "few")
    first, second = rng.normal(size=(10, 4)), rng.normal(size=(12, 4)) + 1
    turn = np.linalg.qr(rng.normal(size=(30, 4)))[0].T
    wide = _fid(first @ turn, second @ turn)
    assert wide.value == pytest.approx(_fid(first, second).value, rel=1e-9)
    assert "fewer images than features" in wide.method
    assert "fewer images than features" not in _fid(first, second).method


def test_frechet_is_finite_and_zero_for_constant_and_for_equal_features() -> None:
    rows = stream(4, "rows").normal(size=(20, 5)) * np.array([1, 1e-8, 0, 1e8, 1])
    assert _fid(np.ones((9, 5)), np.ones((8, 5))).value == 0
    assert _fid(rows, rows).value <= 1e-6 * np.square(rows).mean()


def test_kernel_distance_is_its_definition() -> None:
    rng = stream(5, "kid")
    x, y = rng.normal(size=(16, 3)), rng.normal(size=(12, 3)) + 1

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    def mmd(x: np.ndarray, y: np.ndarray) -> float:
        within = [np.mean([k(a, b) for a, b in itertools.permutations(s, 2)]) for s in (x, y)]
        return float(sum(within) - 2 * np.mean([k(a, b) for a, b in itertools.product(x, y)]))

    found = _kid(x, y)
    assert found.value == pytest.approx(mmd(x, y))
    left = [
        np.array([mmd(np.delete(x, i, 0), y) for i in range(16)]),
        np.array([mmd(x, np.delete(y, i, 0)) for i in range(12)]),
    ]
    error = np.sqrt(sum((len(v) - 1) * v.var() for v in left))
    assert (found.high - found.value) / 1.6448536 == pytest.approx(error)


def test_kernel_distance_of_equal_distributions_is_zero_on_average() -> None:
    rng = stream(6, "null")
    found = [_kid(rng.normal(size=(30, 8)), rng.normal(size=(30, 8))) for _ in range(200)]
    values = np.array([m.value for m in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(200)
    assert (values < 0).any()
    assert np.mean([m.low <= 0 for m in found]) >= 0.95
    assert np.mean([m.high >= 0 for m in found]) >= 0.95


def test_chunks_do_not_change_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = stream(7, "chunks")
    x, y = rng.normal(size=(23, 4)), rng.normal(size=(19, 4))
    whole = [metric(x, y) for metric in (_kid, _density, _coverage)]
    monkeypatch.setattr("vitrael.core.metrics.distribution._CHUNK", 5)
    for one, other in zip(whole, [m(x, y) for m in (_kid, _density, _coverage)], strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_density_and_coverage_are_their_definitions() -> None:
    rng = stream(8, "prdc")
    x, y = rng.normal(size=(20, 2)) + 50, rng.normal(size=(15, 2)) + 50.3
    distance = np.linalg.norm(x[:, None] - x, axis=2)
    radius = np.sort(distance, axis=1)[:, 5]  # the first one is its own
    inside = np.linalg.norm(x[:, None] - y, axis=2) < radius[:, None]
    assert _density(x, y).value == pytest.approx(inside.sum() / (5 * 15))
    assert _coverage(x, y).value == pytest.approx(inside.any(axis=1).mean())


def test_equal_distributions_are_dense_and_covered() -> None:
    rng = stream(9, "same")
    x, y = rng.normal(size=(400, 6)), rng.normal(size=(400, 6))
    assert _density(x, y).value == pytest.approx(1.0, abs=0.1)
    assert _coverage(x, y).value == pytest.approx(1 - 2**-5, abs=0.03)


def test_outliers_are_neither_dense_nor_cover_anything() -> None:
    x = stream(10, "far").normal(size=(50, 3))
    assert _density(x, x + 100).value == 0
    assert _density(x, x + 100).high > 0
    assert _coverage(x, x + 100).value == 0
    assert _coverage(x, x + 100).high > 0


def test_density_does_not_see_lost_modes_and_coverage_does() -> None:
    rng = stream(11, "modes")
    x = np.concatenate([rng.normal(size=(100, 3)), rng.normal(size=(100, 3)) + 30])
    half, both = rng.normal(size=(200, 3)), rng.permutation(x) + 0.01
    assert not _density(x, both).above(_density(x, half))
    assert _coverage(x, both).above(_coverage(x, half))
    assert _kid(x, half).above(_kid(x, both))
    assert _fid(x, half).above(_fid(x, both))


@pytest.mark.parametrize("metric", METRICS)
def test_a_record_counts_and_names(metric: Metric) -> None:
    rng = stream(12, "record")
    found = metric(rng.normal(size=(20, 3)), rng.normal(size=(15, 3)))
    assert (found.n, found.unit, found.extractor) == (15, "images", "none")
    assert "15 against 20 real of 3 features" in found.method
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("real", "synthetic", "why"),
    [
        (np.ones((9, 3)), np.ones((9, 4)), "different features"),
        (np.ones((3, 3)), np.ones((9, 3)), "cannot be compared"),
        (np.ones(9), np.ones(9), "cannot be compared"),
        (np.ones((9, 3)), np.full((9, 3), np.nan), "not finite"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(
    metric: Metric, real: np.ndarray, synthetic: np.ndarray, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        metric(real, synthetic)


def test_more_neighbors_than_images_are_refused() -> None:
    with pytest.raises(DataError, match="no 5-th neighbor"):
        _coverage(np.eye(5), np.eye(5))
