"""How sites differ: the machine, the way it is set, and the patients who come.

A style is one frozen value. Its machine and its population vary independently:
``replace(style, population=...)`` is the same scanner with other patients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitrael.core.data.phantoms.cues import Cue
from vitrael.core.data.phantoms.heart import Population


@dataclass(frozen=True, slots=True)
class EchoStyle:
    """What the pictures of one site have in common."""

    name: str
    population: Population
    view_mix: tuple[tuple[str, float], ...]
    """Views and their weights; the site knows no other label."""
    angle_rad: float
    """Of the whole sector."""
    tilt_rad: float
    """How far the sector leans to the right."""
    depth_mm: float
    """Of an apical view; others are shallower."""
    face_mm: float
    """From where the beams meet to the face of the probe."""
    fill_frac: float
    """Share of the picture's height that the sector takes."""
    aspect: float
    """Width of a pixel over its height."""
    frame_rate_hz: float
    depth_spread_mm: float
    """Standard deviation of the point spread along the beam."""
    beam_spread_rad: float
    """The same across."""
    range_db: float
    gain_db: float
    tgc_db: float
    """What the time gain compensation lacks at the greatest depth."""
    noise_db: float
    """Of the receiver, beside bright tissue."""
    clutter_db: float
    """Of the haze close to the probe, beside bright tissue."""
    smooth_px: float
    """Standard deviation of the smoothing of the gray picture, in samples."""
    persistence_frac: float
    """Share of the previous frame in a frame."""
    gray_gamma: float
    gray_contrast: float
    """0 is straight; 1 bends the gray curve fully to an S."""
    aim_rad: float
    """Standard deviation of the probe's tilt, rotation and steering."""
    shadow_frac: float
    """How often a rib or the lung hides a side."""
    overlay: tuple[Cue, ...] = ()
    """Marks that the machine burns into every picture."""

    @property
    def label_set(self) -> tuple[str, ...]:
        """The views that the site tells apart."""
        return tuple(view for view, _ in self.view_mix)


STYLES: Mapping[str, EchoStyle] = {
    "clinic": EchoStyle(
        name="clinic",
        population=Population(ef_mean=0.60, ef_sd=0.07, dilated_frac=0.03, hypertrophic_frac=0.08),
        view_mix=(("A4C", 0.6), ("A2C", 0.4)),
        angle_rad=math.radians(78),
        tilt_rad=0.0,
        depth_mm=168.0,
        face_mm=7.0,
        fill_frac=0.92,
        aspect=1.0,
        frame_rate_hz=50.0,
        depth_spread_mm=0.75,
        beam_spread_rad=0.013,
        range_db=58.0,
        gain_db=-8.0,
        tgc_db=4.0,
        noise_db=-54.0,
        clutter_db=-20.0,
        smooth_px=0.45,
        persistence_frac=0.15,
        gray_gamma=1.15,
        gray_contrast=0.35,
        aim_rad=0.03,
        shadow_frac=0.1,
        overlay=(Cue("ruler", "top-right"),),
    ),
    "bedside": EchoStyle(
        name="bedside",
        population=Population(ef_mean=0.50, ef_sd=0.12, dilated_frac=0.15, hypertrophic_frac=0.10),
        view_mix=(("A4C", 0.4), ("PSAX", 0.35), ("A2C", 0.25)),
        angle_rad=math.radians(88),
        tilt_rad=0.0,
        depth_mm=182.0,
        face_mm=12.0,
        fill_frac=0.84,
        aspect=1.08,
        frame_rate_hz=30.0,
        depth_spread_mm=1.15,
        beam_spread_rad=0.022,
        range_db=46.0,
        gain_db=-7.0,
        tgc_db=10.0,
        noise_db=-40.0,
        clutter_db=-9.0,
        smooth_px=0.8,
        persistence_frac=0.4,
        gray_gamma=1.0,
        gray_contrast=0.0,
        aim_rad=0.07,
        shadow_frac=0.4,
        overlay=(Cue("bar", "bottom-right"),),
    ),
    "tertiary": EchoStyle(
        name="tertiary",
        population=Population(ef_mean=0.43, ef_sd=0.12, dilated_frac=0.35, hypertrophic_frac=0.15),
        view_mix=(("PLAX", 0.5), ("PSAX", 0.5)),
        angle_rad=math.radians(70),
        tilt_rad=0.06,
        depth_mm=160.0,
        face_mm=5.0,
        fill_frac=0.97,
        aspect=0.95,
        frame_rate_hz=60.0,
        depth_spread_mm=0.6,
        beam_spread_rad=0.010,
        range_db=64.0,
        gain_db=-12.0,
        tgc_db=-3.0,
        noise_db=-60.0,
        clutter_db=-26.0,
        smooth_px=0.3,
        persistence_frac=0.0,
        gray_gamma=1.25,
        gray_contrast=0.1,
        aim_rad=0.03,
        shadow_frac=0.1,
        overlay=(Cue("trace", "bottom-left"),),
    ),
    "legacy": EchoStyle(
        name="legacy",
        population=Population(ef_mean=0.55, ef_sd=0.10, dilated_frac=0.12, hypertrophic_frac=0.12),
        view_mix=(("A4C", 0.3), ("A2C", 0.2), ("A3C", 0.1), ("PLAX", 0.2), ("PSAX", 0.2)),
        angle_rad=math.radians(84),
        tilt_rad=-0.05,
        depth_mm=175.0,
        face_mm=9.0,
        fill_frac=0.88,
        aspect=1.0,
        frame_rate_hz=25.0,
        depth_spread_mm=1.0,
        beam_spread_rad=0.017,
        range_db=40.0,
        gain_db=-3.0,
        tgc_db=6.0,
        noise_db=-46.0,
        clutter_db=-13.0,
        smooth_px=1.1,
        persistence_frac=0.55,
        gray_gamma=1.35,
        gray_contrast=0.8,
        aim_rad=0.05,
        shadow_frac=0.2,
        overlay=(Cue("logo", "top-left", variant=3),),
    ),
}
"""Four sites: a clinic's cart, a portable machine, a heart centre's newest, and an old one."""


def draw_view(rng: np.random.Generator, style: EchoStyle) -> str:
    """Return the name of a view as often as the site records it."""
    weight = np.array([weight for _, weight in style.view_mix])
    return style.label_set[int(rng.choice(len(weight), p=weight / weight.sum()))]
