from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vitrael.core.errors import DataError
from vitrael.core.metrics.volumes import VolumeDistance, compare_volumes
from vitrael.core.rng import stream


def _compare(real: np.ndarray, synthetic: np.ndarray, *, draws: int = 200) -> VolumeDistance:
    return compare_volumes(
        real,
        synthetic,
        structure="ventricle_ml",
        measurer="hand",
        rng=stream(0, "volumes"),
        draws=draws,
    )


def test_distances_are_those_of_the_peer() -> None:
    rng = stream(1, "peer")
    real, synthetic = rng.gamma(3, size=40), rng.gamma(4, size=55)
    found, peer = _compare(real, synthetic), stats.ks_2samp(real, synthetic)
    assert found.kolmogorov_smirnov.value == pytest.approx(peer.statistic)
    assert found.p == pytest.approx(peer.pvalue)
    assert found.wasserstein.value == pytest.approx(stats.wasserstein_distance(real, synthetic))


def test_a_shift_is_its_own_wasserstein_distance() -> None:
    real = stream(2, "shift").gamma(3, size=50)
    found = _compare(real, real + 7)
    assert found.wasserstein.value == pytest.approx(7)
    assert found.wasserstein.low <= 7 <= found.wasserstein.high


def test_lost_modes_are_seen_and_a_second_real_set_is_none() -> None:
    rng = stream(3, "modes")
    real, fresh, second = (rng.gamma(3, 10, size=150) for _ in range(3))
    half = np.sort(rng.gamma(3, 10, size=300))[150:]
    same, again, lost = (_compare(real, x) for x in (fresh, second, half))
    assert lost.kolmogorov_smirnov.above(same.kolmogorov_smirnov)
    assert lost.wasserstein.above(same.wasserstein)
    assert lost.p < 1e-6
    assert same.p > 0.01
    assert not again.kolmogorov_smirnov.above(same.kolmogorov_smirnov)
    assert not again.wasserstein.above(same.wasserstein)


def test_equal_volumes_are_at_zero_and_apart_ones_at_one() -> None:
    real = np.arange(20.0)
    assert _compare(real, real).kolmogorov_smirnov.value == 0
    assert _compare(real, real).wasserstein.low == 0
    assert _compare(real, real + 100).kolmogorov_smirnov.interval == (1, 1)


@pytest.mark.parametrize(
    ("real", "synthetic", "why"),
    [
        (np.ones(3), np.ones(9), "at least 4"),
        (np.ones((5, 2)), np.ones(9), "cannot be compared"),
        (np.ones(5), np.array([1, 2, 3, np.inf]), "synthetic holds values"),
    ],
)
def test_volumes_that_cannot_be_compared_are_refused(
    real: np.ndarray, synthetic: np.ndarray, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        _compare(real, synthetic)
