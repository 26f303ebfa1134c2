"""Diagrams as coordinates: where lines, points and ticks lie. The templates draw them as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vitrael.privacy.gates import Finding
from vitrael.server.report.data import Curve


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis of a diagram, from ``start_px`` for ``low`` to ``end_px`` for ``high``."""

    low: float
    high: float
    start_px: float
    end_px: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return the coordinate of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start_px + share * (self.end_px - self.start_px), 2)


@dataclass(frozen=True, slots=True)
class Line:
    """A named line as the ``points`` of an SVG polyline."""

    name: str
    points: str


@dataclass(frozen=True, slots=True)
class Lines:
    """A line diagram."""

    curve: Curve
    x: Axis
    y: Axis
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Scatter:
    """Points against a diagonal on two equal axes."""

    x: Axis
    y: Axis
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """A measurement with its bounds against the threshold of a gate; coordinates in pixels."""

    value_px: float
    low_px: float
    high_px: float
    threshold_px: float
    allowed_px: tuple[float, float]
    """From and to of the side on which the gate is open."""


def choose_ticks(low: float, high: float, *, about: int = 5) -> tuple[float, ...]:
    """Return round numbers, about that many, whose ends enclose ``low`` and ``high``.

    Ends that are equal but for rounding are widened, so that an axis always has a length.
    """
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):
        margin = abs(low) / 2 if abs(low) > 1e-9 else 1.0  # noqa: PLR2004 - nothing, to a float
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def draw_lines(curve: Curve, *, width_px: int = 340, height_px: int = 200) -> Lines | None:
    """Return a line diagram, or None without any point; a Curve holds finite points alone."""
    every = [point for points in curve.series.values() for point in points]
    if not every:
        return None
    x = _axis((x for x, _ in every), start_px=48, end_px=width_px - 10)
    y = _axis((y for _, y in every), start_px=height_px - 34, end_px=18)
    lines = tuple(
        Line(name, " ".join(f"{x.place(a)},{y.place(b)}" for a, b in points))
        for name, points in curve.series.items()
        if points
    )
    return Lines(curve, x, y, lines)


def draw_scatter(asked: Sequence[float], measured: Sequence[float]) -> Scatter | None:
    """Return a square scatter diagram with equal axes, or None without any point."""
    pairs = [p for p in zip(asked, measured, strict=True) if all(map(math.isfinite, p))]
    if not pairs:
        return None
    values = [value for pair in pairs for value in pair]
    x = _axis(values, start_px=48, end_px=386)
    y = _axis(values, start_px=356, end_px=18)
    return Scatter(x, y, tuple((x.place(a), y.place(b)) for a, b in pairs))


def draw_interval(finding: Finding, *, width_px: int = 120) -> Interval | None:
    """Return a finding's interval beside its threshold, or None when nothing was measured."""
    measured = finding.measurement
    if measured is None or measured.value is None:
        return None
    value, threshold = measured.value, finding.gate.threshold
    low = value if measured.low is None else measured.low
    high = value if measured.high is None else measured.high
    ends = (min(low, threshold), max(high, threshold))
    margin = (ends[1] - ends[0]) * 0.15 or 0.1
    axis = Axis(ends[0] - margin, ends[1] + margin, 2, width_px - 2, ())
    at = axis.place(threshold)
    above = finding.gate.bound.endswith("at_least")
    return Interval(
        value_px=axis.place(value),
        low_px=axis.place(low),
        high_px=axis.place(high),
        threshold_px=at,
        allowed_px=(at, width_px - 2) if above else (2, at),
    )


def _axis(values: Iterable[float], *, start_px: float, end_px: float) -> Axis:
    known = list(values)
    ticks = choose_ticks(min(known), max(known))
    return Axis(ticks[0], ticks[-1], start_px, end_px, ticks)
