"""Diagrams place numbers where they belong, also the awkward ones."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrael.privacy.gates import POLICIES
from vitrael.server.report.charts import choose_ticks, draw_interval, draw_lines, draw_scatter
from vitrael.server.report.data import Curve, ReportData

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(finite, finite)
def test_ticks_enclose_the_values_and_are_few(a: float, b: float) -> None:
    low, high = sorted((a, b))
    ticks = choose_ticks(low, high)
    slack = 1e-6 * max(1.0, abs(low), abs(high), high - low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 9
    assert list(ticks) == sorted(set(ticks))


def test_ticks_of_a_single_value_are_wide() -> None:
    assert choose_ticks(0, 0) == (-1.0, -0.5, 0.0, 0.5, 1.0)


def test_scatter_has_equal_axes_and_leaves_out_what_is_not_finite() -> None:
    drawn = draw_scatter([0.0, 50.0, 100.0], [10.0, math.nan, 120.0])
    assert drawn is not None
    assert (drawn.x.low, drawn.x.high) == (drawn.y.low, drawn.y.high)
    assert len(drawn.points) == 2
    assert draw_scatter([], []) is None
    assert draw_scatter([1.0], [math.nan]) is None


def test_higher_values_lie_higher() -> None:
    curve = Curve(title="t", x_label="x", y_label="y", series={"a": ((0, 1), (2, 3))})
    drawn = draw_lines(curve)
    assert drawn is not None
    (line,) = drawn.lines
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.points.split())
    assert x0 < x1
    assert y0 > y1


@pytest.mark.parametrize("finding", range(len(POLICIES["rehearsal"].gates)))
def test_interval_touches_the_open_side_exactly_when_it_should(
    good: ReportData, finding: int
) -> None:
    shown = good.verdict.findings[finding]
    interval = draw_interval(shown)
    assert interval is not None
    side = shown.gate.bound.split("_")[0]
    decides = {"upper": interval.high_px, "lower": interval.low_px, "value": interval.value_px}
    low, high = interval.allowed_px
    assert (low <= decides[side] <= high) == shown.passed
    assert interval.low_px <= interval.value_px <= interval.high_px


def test_interval_of_a_refusal_lies_outside(bad: ReportData) -> None:
    refused = next(f for f in bad.verdict.findings if f.outcome == "refused")
    interval = draw_interval(refused)
    assert interval is not None
    assert interval.low_px > interval.allowed_px[1]
    unknown = next(f for f in bad.verdict.findings if f.outcome == "not estimable")
    assert draw_interval(unknown) is None
