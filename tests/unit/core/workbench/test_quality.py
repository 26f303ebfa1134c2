"""What is told with a model is the audit of its samples, and nothing where there is too little."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.metrics.conditioning import audit_condition
from vitrael.core.rng import stream
from vitrael.core.workbench.quality import audit_volumes


def told(asked: np.ndarray, found: np.ndarray) -> dict[str, float | None]:
    return audit_volumes(asked, found, measurer="hand", rng=stream(1, "told"))


def test_what_is_told_is_the_audit() -> None:
    rng = stream(1, "volumes")
    asked = rng.uniform(10, 90, 40)
    found = asked + rng.normal(0, 5, 40)
    audit = audit_condition(
        asked, found, condition="ventricle_ml", measurer="hand", rng=stream(1, "told")
    )
    report = told(asked, found)
    assert (report["r"], report["r_low"], report["r_high"]) == (
        audit.r.value,
        audit.r.low,
        audit.r.high,
    )
    assert report["mae_ml"] == audit.mae.value
    assert report["shuffled_r"] == audit.permuted_r.value
    assert report["shuffled_r_high"] == audit.permuted_r.high
    assert report["n"] == 40
    assert report["r_low"] > report["shuffled_r_high"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [([30.0], [32.0]), ([30.0, 40, 50], [32.0, 42, 52]), ([1.0, 2, 3, 4], [4.5, 4.5, 4.5, 4.5])],
)
def test_few_scans_and_equal_volumes_have_no_correlation(
    asked: list[float], found: list[float]
) -> None:
    report = told(np.array(asked), np.array(found))
    assert all(report[key] is None for key in ("r", "r_low", "r_high", "shuffled_r"))
    assert report["mae_ml"] == pytest.approx(2.0)
    assert report["n"] == len(asked)
