from __future__ import annotations

import math

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.bootstrap import bootstrap, centered_interval, jackknife_error
from vitrael.core.rng import stream


def test_bootstrap_of_a_mean_has_its_standard_error() -> None:
    rows = stream(1, "rows").normal(size=400)
    draws = bootstrap(lambda i: float(rows[i].mean()), (400,), rng=stream(1, "b"), draws=2000)
    assert draws.std() == pytest.approx(rows.std() / 20, rel=0.06)


def test_equal_streams_give_equal_draws() -> None:
    rows = np.arange(9.0)
    first, second, other = (
        bootstrap(lambda i: float(rows[i].sum()), (9,), rng=stream(seed, "b"), draws=5)
        for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_groups_are_resampled_apart() -> None:
    sizes = bootstrap(lambda i, j: float(len(i) * 100 + len(j)), (3, 7), rng=stream(1, "b"))
    assert (sizes == 307).all()


def test_shifted_draws_move_no_bound() -> None:
    draws = stream(2, "draws").normal(size=1000)
    assert centered_interval(0.0, draws) == pytest.approx(centered_interval(0.0, draws + 5))


def test_bounds_are_cut_but_keep_the_value() -> None:
    draws = stream(2, "draws").normal(size=1000)
    low, high = centered_interval(0.1, draws, within=(0.0, math.inf))
    assert low == 0.0
    assert high > 1.0
    assert centered_interval(-1.0, draws, within=(0.0, math.inf)).low == -1.0


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    rows = stream(3, "rows").normal(size=50)
    without = (rows.sum() - rows) / 49
    assert jackknife_error(without) == pytest.approx(rows.std(ddof=1) / math.sqrt(50))
    assert jackknife_error(without, without) == pytest.approx(
        math.sqrt(2) * rows.std(ddof=1) / 50**0.5
    )


def test_one_row_says_nothing_of_its_spread() -> None:
    assert jackknife_error(np.ones(1)) == math.inf


@pytest.mark.parametrize(("sizes", "draws"), [((0,), 10), ((5,), 1)])
def test_nothing_to_resample_is_refused(sizes: tuple[int, ...], draws: int) -> None:
    with pytest.raises(DataError, match="nothing to resample"):
        bootstrap(lambda _: 0.0, sizes, rng=stream(1, "b"), draws=draws)
