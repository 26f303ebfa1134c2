from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.conditioning import ConditionAudit, audit_condition
from vitrael.core.metrics.intervals import pearson_interval, pearson_r, permuted_r
from vitrael.core.rng import stream


def _audit(asked: np.ndarray, measured: np.ndarray, *, permutations: int = 300) -> ConditionAudit:
    return audit_condition(
        asked,
        measured,
        condition="ventricle",
        measurer="hand",
        rng=stream(0, "audit"),
        permutations=permutations,
    )


def test_what_was_asked_and_drawn_is_found() -> None:
    asked = stream(1, "asked").uniform(size=64)
    measured = asked + stream(1, "error").normal(0, 0.05, 64)
    audit = _audit(asked, measured, permutations=1000)
    assert audit.r.value == pytest.approx(pearson_r(asked, measured))
    assert audit.r.interval == pearson_interval(audit.r.value, 64)
    assert audit.r.low > 0.9
    assert audit.p == pytest.approx(1 / 1001)
    assert audit.permuted_r.high < 0.3
    assert audit.permuted_r.n == 1000
    assert audit.mae.value == pytest.approx(np.abs(asked - measured).mean())
    assert audit.mae.low < audit.mae.value < audit.mae.high < audit.permuted_mae
    assert audit.r.n == audit.mae.n == 64
    assert "hand" in audit.r.method


def test_the_control_is_the_one_of_the_audit_of_sites() -> None:
    rng = stream(6, "one control")
    asked, measured = rng.uniform(size=24), rng.uniform(size=24)
    audit = _audit(asked, measured)
    control = permuted_r(asked, measured, rng=stream(0, "audit"), draws=300)
    bounds = (audit.permuted_r.low, audit.permuted_r.value, audit.permuted_r.high)
    assert bounds == (control.low, control.mean, control.high)
    assert audit.p == (sum(control.values_P >= abs(audit.r.value)) + 1) / 301
    pairs = np.abs(asked[:, None] - measured)
    assert audit.permuted_mae == pytest.approx(pairs.mean())


def test_a_generator_that_does_not_listen_is_found_out() -> None:
    rng = stream(2, "deaf")
    audits = [
        _audit(rng.uniform(size=32), rng.uniform(size=32), permutations=99) for _ in range(60)
    ]
    p = np.array([audit.p for audit in audits])
    assert np.mean(p <= 0.05) <= 0.15
    assert 0.3 < p.mean() < 0.7
    assert np.mean([a.r.low <= a.permuted_r.high for a in audits]) > 0.9


def test_a_constant_shift_is_error_and_no_lack_of_correlation() -> None:
    asked = stream(3, "asked").uniform(size=40)
    audit = _audit(asked, asked + 2)
    assert audit.r.value == pytest.approx(1)
    assert audit.mae.value == pytest.approx(2)


def test_the_wrong_way_round_is_no_chance_and_no_success() -> None:
    asked = stream(4, "asked").uniform(size=40)
    audit = _audit(asked, -asked)
    assert audit.r.high < -0.9
    assert audit.p < 0.01


def test_equal_streams_give_equal_audits() -> None:
    rng = stream(5, "again")
    asked, measured = rng.uniform(size=20), rng.uniform(size=20)
    assert _audit(asked, measured) == _audit(asked, measured)


@pytest.mark.parametrize(
    ("asked", "measured", "why"),
    [
        (np.arange(5.0), np.arange(6.0), r"\[5\] were asked and \[6\] measured"),
        (np.arange(3.0), np.arange(3.0), "at least 4"),
        (np.ones(5), np.arange(5.0), "asked is the same"),
        (np.arange(5.0), np.ones(5), "measured is the same"),
        (np.arange(5.0), np.array([0, 1, 2, 3, np.nan]), "measured holds values"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    asked: np.ndarray, measured: np.ndarray, why: str
) -> None:
    with pytest.raises(DataError, match=why):
        _audit(asked, measured)
