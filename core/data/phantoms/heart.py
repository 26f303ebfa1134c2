"""One heart: a patient's anatomy, and a beat whose ejection fraction is exact.

The heart frame is in millimetres: z runs from the epicardial apex (0) along the long axis of the
left ventricle to the atria; x points to the septum and y to the anterior side, a right-handed frame
as RAS+ is. Angles about z count from x towards y: the septum lies around 30 degrees, the anterior
wall at 120, the lateral wall at 180, the inferior wall at 300. The apex stays, the base descends.
``heart_field`` holds the shapes.

The cavity is ``q^2 / R^2 + |tau|^n < 1`` below the mitral plane, where q is the radius in an
elliptic cut and tau the height from the belly; its volume is ``pi C R^2 L`` with a constant C. A
volume factor k is split as ``L k^a`` and ``R k^((1 - a) / 2)``, so that ``V = k V_ED`` exactly. The
wall keeps its volume: it thickens. No published source: the shapes are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

END_SYSTOLE = 0.38
"""Phase of the smallest volume; a beat runs from 0 to 1 and starts at the largest."""
_LONG_SHARE = 0.30
_FILLED_EARLY, _EARLY_ENDS, _KICK_STARTS = 0.78, 0.62, 0.86
APEX_WALL_FRAC = 0.75
"""Thickness of the wall at the apex over that at the belly."""


@dataclass(frozen=True, slots=True)
class Population:
    """Whom a site sees: ejection fractions, and how many hearts are dilated or hypertrophic."""

    ef_mean: float = 0.58
    ef_sd: float = 0.08
    dilated_frac: float = 0.1
    hypertrophic_frac: float = 0.1


@dataclass(frozen=True, slots=True, repr=False)
class Heart:
    """What makes a patient: volumes, proportions, and where the chambers lie. Sizes in mm."""

    ef_frac: float
    edv_ml: float
    heart_rate_bpm: float
    elongation: float
    """Length of the cavity over its greatest radius, at end-diastole."""
    belly_frac: float
    """Height of the greatest radius, as a part of the length."""
    roundness: float
    """Exponent n of the apex: 2 is an ellipsoid, more is blunter."""
    oval: float
    """Square root of the ratio of the semi-axes of a short-axis cut."""
    oval_rad: float
    bend_frac: tuple[float, float]
    """Sideways bow of the long axis, in parts of the radius."""
    wall_mm: float
    """At end-diastole, where the cavity is widest."""
    twist_rad: float
    """Of the apex against the base at end-systole."""
    right_mm: tuple[float, float, float]
    """Right ventricle: width beside the septum, distance of its apex from the left one's, and of
    the tricuspid from the mitral plane."""
    atria_mm: tuple[float, float, float, float]
    """Radius and length of the left atrium, then of the right one."""
    root_mm: tuple[float, float]
    """Aortic root: radius, and distance of its centre from the long axis."""
    root_lean: float
    """Sideways way of the aorta for each millimetre along z."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Heart()"


@dataclass(frozen=True, slots=True)
class HeartState:
    """A heart at one phase of its beat; lengths in mm."""

    heart: Heart
    contraction: float
    """s: 0 at end-diastole, 1 at end-systole."""
    volume_ml: float
    radius_mm: float
    length_mm: float
    wall_mm: float
    rest_radius_mm: float
    rest_length_mm: float
    rest_wall_mm: float

    @property
    def apex_mm(self) -> float:
        """Height of the endocardial apex."""
        return APEX_WALL_FRAC * self.wall_mm

    @property
    def base_mm(self) -> float:
        """Height of the mitral plane."""
        return self.apex_mm + self.length_mm

    @property
    def rest_base_mm(self) -> float:
        """Height of the mitral plane at end-diastole."""
        return APEX_WALL_FRAC * self.rest_wall_mm + self.rest_length_mm

    @property
    def tricuspid_mm(self) -> float:
        """Height of the tricuspid plane."""
        descent = self.rest_base_mm - self.base_mm
        return self.rest_base_mm - self.heart.right_mm[2] - 0.8 * descent

    @property
    def annulus_mm(self) -> float:
        """Mean radius of the mitral ring."""
        heart = self.heart
        tau = (1 - heart.belly_frac) / heart.belly_frac
        return self.radius_mm * math.sqrt(1 - tau**heart.roundness)


def draw_heart(rng: np.random.Generator, *, population: Population | None = None) -> Heart:
    """Return a new patient of a population; every heart takes the same number of draws."""
    who = population or Population()
    kind, volume, size = rng.uniform(), rng.normal(), rng.normal(1, 0.05)
    dilated = kind < who.dilated_frac
    thick = not dilated and kind < who.dilated_frac + who.hypertrophic_frac
    edv_ml = 112 * math.exp(0.18 * volume) * (1.7 if dilated else 0.88 if thick else 1.0)
    ef_frac = rng.normal(who.ef_mean - (0.2 if dilated else 0), who.ef_sd)
    elongation = rng.normal(3.05 if dilated else 3.55, 0.15)
    wall_mm = rng.normal(8.8, 0.7) * (1.5 if thick else 1.0)
    return Heart(
        ef_frac=float(np.clip(ef_frac, 0.15, 0.80)),
        edv_ml=float(np.clip(edv_ml, 55, 260)),
        heart_rate_bpm=float(np.clip(rng.normal(70, 10), 48, 105)),
        elongation=float(np.clip(elongation, 2.7, 4.0)),
        belly_frac=float(rng.uniform(0.60, 0.70)),
        roundness=float(rng.uniform(1.9, 2.5)),
        oval=float(np.exp(rng.normal(0, 0.035))),
        oval_rad=float(rng.uniform(0, np.pi)),
        bend_frac=(float(rng.normal(0, 0.05)), float(rng.normal(0, 0.05))),
        wall_mm=float(wall_mm),
        twist_rad=float(rng.normal(0.20, 0.05)),
        right_mm=(
            float(rng.normal(35, 3)),
            float(rng.normal(22, 5)),
            float(rng.normal(5, 1.5)),
        ),
        atria_mm=(
            float(size * rng.normal(23, 1.8)),
            float(size * rng.normal(46, 4)),
            float(size * rng.normal(24, 2)),
            float(size * rng.normal(42, 4)),
        ),
        root_mm=(float(size * rng.normal(13.5, 1.0)), float(rng.normal(20.5, 1.0))),
        root_lean=float(rng.normal(0.22, 0.05)),
    )


def revisit_heart(heart: Heart, rng: np.random.Generator) -> Heart:
    """Return the same patient at another visit: all but a few percent of the pump stays."""
    return replace(
        heart,
        ef_frac=float(np.clip(heart.ef_frac + rng.normal(0, 0.02), 0.10, 0.85)),
        edv_ml=heart.edv_ml * float(np.exp(rng.normal(0, 0.03))),
        heart_rate_bpm=float(np.clip(heart.heart_rate_bpm + rng.normal(0, 6), 45, 110)),
        wall_mm=heart.wall_mm * float(np.exp(rng.normal(0, 0.02))),
    )


def contraction_at(phase: float) -> float:
    """Return s in [0, 1] at a phase in [0, 1): ejection, early filling, rest, the atrial kick."""
    if phase < END_SYSTOLE:
        return 0.5 - 0.5 * math.cos(math.pi * phase / END_SYSTOLE)
    late = 1 - _FILLED_EARLY
    if phase < _EARLY_ENDS:
        way = (phase - END_SYSTOLE) / (_EARLY_ENDS - END_SYSTOLE)
        return late + _FILLED_EARLY * (0.5 + 0.5 * math.cos(math.pi * way))
    if phase < _KICK_STARTS:
        return late
    way = (phase - _KICK_STARTS) / (1 - _KICK_STARTS)
    return late * (0.5 + 0.5 * math.cos(math.pi * way))


def shape_heart(heart: Heart, phase: float) -> HeartState:
    """Return the heart at a phase; its cavity holds ``edv_ml (1 - ef_frac s)`` exactly."""
    contraction = contraction_at(phase % 1.0)
    k = 1 - heart.ef_frac * contraction
    factor = math.pi * _fullness(heart)
    rest_radius = (heart.edv_ml * 1000 / (factor * heart.elongation)) ** (1 / 3)
    rest_length = rest_radius * heart.elongation
    radius = rest_radius * k ** ((1 - _LONG_SHARE) / 2)
    length = rest_length * k**_LONG_SHARE
    outer = (rest_radius + heart.wall_mm) ** 2 * (rest_length + APEX_WALL_FRAC * heart.wall_mm)
    tissue = outer - rest_radius**2 * rest_length
    return HeartState(
        heart=heart,
        contraction=contraction,
        volume_ml=heart.edv_ml * k,
        radius_mm=radius,
        length_mm=length,
        wall_mm=_wall_for(tissue, radius=radius, length=length, start=heart.wall_mm),
        rest_radius_mm=rest_radius,
        rest_length_mm=rest_length,
        rest_wall_mm=heart.wall_mm,
    )


def _fullness(heart: Heart) -> float:
    """Return C: the mean of the squared relative radius over the length."""
    b, n = heart.belly_frac, heart.roundness
    return float(b * (1 - 1 / (n + 1)) + (1 - b) - (1 - b) ** (n + 1) / ((n + 1) * b**n))


def _wall_for(tissue: float, *, radius: float, length: float, start: float) -> float:
    """Return w with ``(R + w)^2 (L + a w) - R^2 L = tissue``, by Newton's method."""
    w, a = start, APEX_WALL_FRAC
    for _ in range(12):
        outer, height = radius + w, length + a * w
        gap = outer**2 * height - radius**2 * length - tissue
        w -= gap / (2 * outer * height + a * outer**2)
    return w
