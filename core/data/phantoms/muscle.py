"""A procedural sweep of a linear probe along the thigh: the rectus femoris in cross-section.

A patient has a leg; a session images it again with other speckle, other settings and, later on,
less muscle. The position of the probe runs from 0 (near the knee) to 1 (near the hip) and changes
axis ratio, depth and bone smoothly, so that a picture tells its position. The plane's coordinates
are millimetres: x to the right from the middle of the probe, y downward from the skin. Axes: T
frames, H rows, W columns, R samples in depth, A beams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vitrael.core.data.phantoms.sector import Sector, convert_scan, make_linear
from vitrael.core.data.phantoms.speckle import (
    CELL_STEPS,
    PointSpread,
    attached_scale,
    compress,
    draw_noise,
    draw_scatterers,
    envelope,
    find_scatterers,
    mix_scatterers,
)
from vitrael.core.data.planar import Clip
from vitrael.core.errors import DataError

WIDTH_MM, DEPTH_MM = 54.0, 58.0
"""Of the field of view."""
_FRAME_S = 1 / 20
_RANGE_DB, _NOISE = 50.0, 0.0015
_SPREAD_MM = (0.42, 0.55)
_SLICE_MM, _SWEEP_MM = 1.6, 140.0
_SKIN_MM = 1.8
_FIBRES, _FAT, _LINE, _BONE, _SHADOW = 0.05, 0.045, 0.7, 2.2, 0.004


@dataclass(frozen=True, slots=True, repr=False)
class Leg:
    """What makes a patient; lengths in mm, at the first session."""

    fat_mm: float
    half_width_mm: float
    """Of the muscle, halfway up the thigh."""
    half_height_mm: float
    growth: tuple[float, float]
    """Relative change of width and height from position 0 to 1."""
    drift_mm: tuple[float, float]
    """Sideways and downward way of the muscle's centre from position 0 to 1."""
    lean_rad: tuple[float, float]
    """How far the ellipse leans, at position 0 and at 1."""
    bone_mm: tuple[float, float, float]
    """Radius at position 0, its change to 1, and the muscle between the two."""
    tendon: tuple[float, float]
    """Inside the muscle: slant, and the position along the sweep where it shows most."""
    waves: tuple[float, ...]
    """Phases of fascia, fat septa and fibre bundles."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Leg()"


@dataclass(frozen=True, slots=True)
class MuscleSession:
    """What differs from one session to the next."""

    atrophy_frac: float
    """Part of the cross-section lost since the first session."""
    gain_db: float
    tilt_rad: float
    shift_mm: float
    pressure: float
    """Relative height of all that is soft; the probe presses it flat, its areas stay."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SweepTruth:
    """What is known of a sweep because it was asked for."""

    position_T: np.ndarray
    """Of the probe, in [0, 1]."""
    mask_THW: np.ndarray
    """bool: the rectus femoris."""
    area_T_mm2: np.ndarray
    """Its cross-section."""
    atrophy_frac: float
    frame_s: float
    spacing_mm: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Cut:
    """One cross-section: the muscle's ellipse and the bone's circle, in mm and radians."""

    centre_mm: tuple[float, float]
    axes_mm: tuple[float, float]
    lean_rad: float
    bone_centre_mm: tuple[float, float]
    bone_mm: float
    fascia_mm: float


def draw_leg(rng: np.random.Generator) -> Leg:
    """Return a new patient."""
    return Leg(
        fat_mm=float(rng.uniform(4, 13)),
        half_width_mm=float(rng.normal(16.0, 1.3)),
        half_height_mm=float(rng.normal(8.2, 0.9)),
        growth=(float(rng.normal(0.10, 0.04)), float(rng.normal(0.40, 0.05))),
        drift_mm=(float(rng.normal(3.5, 1.0)), float(rng.normal(2.0, 0.7))),
        lean_rad=(float(rng.normal(-0.06, 0.04)), float(rng.normal(0.14, 0.04))),
        bone_mm=(
            float(rng.normal(13.5, 0.8)),
            float(rng.normal(-3.5, 0.5)),
            float(rng.normal(8.5, 1.5)),
        ),
        tendon=(float(rng.normal(0.3, 0.15)), float(rng.uniform(0.6, 0.9))),
        waves=tuple(rng.uniform(0, 2 * np.pi, 4).tolist()),
    )


def draw_session(rng: np.random.Generator, *, first: bool) -> MuscleSession:
    """Return a session; after the first one, 5 to 20 percent of the cross-section is lost."""
    lost, gain, tilt, shift, pressure = rng.uniform(0.05, 0.20), *rng.normal(size=4)
    return MuscleSession(
        atrophy_frac=0.0 if first else float(lost),
        gain_db=float(2.0 * gain),
        tilt_rad=float(0.05 * np.clip(tilt, -2, 2)),
        shift_mm=float(1.5 * np.clip(shift, -2, 2)),
        pressure=float(np.exp(0.03 * np.clip(pressure, -2, 2))),
    )


def render_sweep(
    leg: Leg,
    session: MuscleSession,
    *,
    position_T: np.ndarray,
    edge_px: int,
    rng: np.random.Generator,
    frame_s: float = _FRAME_S,
) -> tuple[Clip, SweepTruth]:
    """Return a clip ``[T, edge_px, edge_px]`` of the probe at these positions, and its truth.

    Pixels are a little higher than wide. A probe that rests shows the same speckle again; one that
    moves by more than the thickness of its slice shows other speckle. Raises DataError for
    positions outside [0, 1] and a picture below 16 pixels.
    """
    if not len(position_T) or not ((position_T >= 0) & (position_T <= 1)).all():
        raise DataError("the probe leaves the thigh", fix="positions lie in [0, 1]")
    field = make_linear(edge_px=edge_px, depth_mm=DEPTH_MM, width_mm=WIDTH_MM)
    cuts = [_cut_leg(leg, session, float(position)) for position in position_T]
    shape = field.sector_HW.shape
    inside_T = [_ellipse(cut, _straight(session, field.pixel_2P_mm))[0] > 0 for cut in cuts]
    echo_TRA = _sound(leg, session, field, cuts=cuts, position_T=position_T, rng=rng)
    reference = float(np.percentile(echo_TRA[:, ::3, ::3], 98))
    gray = compress(
        echo_TRA, reference=reference, range_db=_RANGE_DB, gain_db=session.gain_db - 3.0
    )
    frames_THW = np.stack([convert_scan(gray_RA, field) * 255 + 0.5 for gray_RA in gray])
    clip = Clip(frames_THW.astype(np.uint8), frame_s, field.spacing_mm, modality="US")
    truth = SweepTruth(
        position_T=np.array(position_T, dtype=np.float64),
        mask_THW=np.stack([inside.reshape(shape) for inside in inside_T]),
        area_T_mm2=np.array([math.pi * cut.axes_mm[0] * cut.axes_mm[1] for cut in cuts]),
        atrophy_frac=session.atrophy_frac,
        frame_s=frame_s,
        spacing_mm=field.spacing_mm,
    )
    return clip, truth


def _cut_leg(leg: Leg, session: MuscleSession, position: float) -> _Cut:
    middle = position - 0.5
    thin = math.sqrt(1 - session.atrophy_frac)
    height = leg.half_height_mm * (1 + leg.growth[1] * middle) * thin * session.pressure
    width = leg.half_width_mm * (1 + leg.growth[0] * middle) * thin / session.pressure
    fascia = _SKIN_MM + leg.fat_mm * session.pressure
    centre = (leg.drift_mm[0] * middle, fascia + 1.6 + height + leg.drift_mm[1] * position)
    bone = leg.bone_mm[0] + leg.bone_mm[1] * position
    bone_top = centre[1] + height + leg.bone_mm[2] * session.pressure
    return _Cut(
        centre_mm=centre,
        axes_mm=(width, height),
        lean_rad=leg.lean_rad[0] + (leg.lean_rad[1] - leg.lean_rad[0]) * position,
        bone_centre_mm=(-0.5 * leg.drift_mm[0] + 3.0 * middle, bone_top + bone),
        bone_mm=bone,
        fascia_mm=fascia,
    )


def _straight(session: MuscleSession, plane_2N_mm: np.ndarray) -> np.ndarray:
    """Return the points of the picture in the leg's own plane."""
    x, y = plane_2N_mm.reshape(2, -1)
    c, s = math.cos(session.tilt_rad), math.sin(session.tilt_rad)
    return np.stack([x * c + y * s + session.shift_mm, y * c - x * s]).astype(np.float32)


def _ellipse(cut: _Cut, point_2N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distance to the muscle's border, positive inside, and its own coordinates."""
    c, s = math.cos(cut.lean_rad), math.sin(cut.lean_rad)
    dx, dy = point_2N[0] - cut.centre_mm[0], point_2N[1] - cut.centre_mm[1]
    p, q = (dx * c + dy * s) / cut.axes_mm[0], (dy * c - dx * s) / cut.axes_mm[1]
    gradient = 2 * np.sqrt((p / cut.axes_mm[0]) ** 2 + (q / cut.axes_mm[1]) ** 2)
    level = 1 - p * p - q * q
    return level / np.maximum(gradient, np.float32(1 / cut.axes_mm[1])), p, q


def _sound(
    leg: Leg,
    session: MuscleSession,
    field: Sector,
    *,
    cuts: list[_Cut],
    position_T: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the envelope on the grid of the beams, ``[T, R, A]``."""
    shape = (len(field.depth_R_mm), len(field.beam_A))
    gap_mm = float(field.beam_gap_mm[0])
    spread = PointSpread(_SPREAD_MM[0] / field.depth_step_mm, _SPREAD_MM[1] / gap_mm)
    spread = PointSpread(max(spread.depth_px, 0.6), max(spread.beam_px, 0.6))
    cell_mm = CELL_STEPS * field.depth_step_mm
    scale_R = attached_scale(
        field.beam_gap_mm, depth_step_mm=field.depth_step_mm, cell_mm=cell_mm, spread=spread
    )
    table = draw_scatterers(rng)
    point_2N = _straight(session, field.sample_2RA_mm)
    loss_R1 = np.exp(-1.1 * field.depth_R_mm / DEPTH_MM).astype(np.float32)[:, None]
    echo_TRA = np.empty((len(cuts), *shape), np.float32)
    for t, (cut, position) in enumerate(zip(cuts, position_T, strict=True)):
        slice_mm = np.float32(position * _SWEEP_MM * cell_mm / _SLICE_MM)
        tissue = (point_2N[0], point_2N[1], np.full_like(point_2N[0], slice_mm))
        attached = find_scatterers(table, tissue, cell_mm=cell_mm).reshape(shape)
        fresh = draw_noise(rng, shape)
        echo = mix_scatterers(attached, fresh, scale_R=scale_R, spread=spread)
        echo *= _reflect(leg, cut, point_2N, float(position)).reshape(shape) * loss_R1
        echo_TRA[t] = envelope(echo + np.float32(_NOISE) * fresh, spread)
    return echo_TRA


def _reflect(leg: Leg, cut: _Cut, point_2N: np.ndarray, position: float) -> np.ndarray:
    x, y = point_2N
    inside, p, q = _ellipse(cut, point_2N)
    fascia = cut.fascia_mm + 0.4 * np.sin(x * 0.16 + leg.waves[0])
    bundles = _stripes(y * 0.75 + 1.6 * np.sin(x * 0.13 + leg.waves[1]) + leg.waves[2])
    amplitude = np.float32(_FIBRES) * (0.9 + 1.1 * bundles)  # the vasti around
    septa = _stripes(y * 0.8 + 0.9 * np.sin(x * 0.14 + leg.waves[3]))
    amplitude = np.where(y < fascia, np.float32(_FAT) * (0.6 + 5.0 * septa), amplitude)
    fibres = _stripes(7.0 * q + 1.2 * np.sin(2.2 * p + leg.waves[1]) + leg.waves[2])
    grain = _stripes(9.0 * p + 3.0 * q + leg.waves[3])
    own = np.float32(_FIBRES) * (0.35 + 0.9 * fibres + 0.5 * grain)
    shows = math.exp(-(((position - leg.tendon[1]) / 0.35) ** 2))
    tendon = _ridge((q - 0.25 + leg.tendon[0] * p) * cut.axes_mm[1], 0.7) * np.maximum(1 - p * p, 0)
    own = own + np.float32(0.8 * shows) * tendon
    amplitude = np.where(inside > 0, own, amplitude)
    amplitude += _LINE * _ridge(inside, 0.6) * (0.25 + 0.75 * np.minimum(q * q, 1))
    amplitude += _LINE * _ridge(y - fascia, 0.5)
    amplitude = np.where(y < _SKIN_MM, np.float32(0.5), amplitude)
    dx, dy = x - cut.bone_centre_mm[0], y - cut.bone_centre_mm[1]
    off = np.sqrt(dx * dx + dy * dy)
    facing = np.clip(-dy / np.maximum(off, 1), 0, 1)
    top = cut.bone_centre_mm[1] - np.sqrt(np.maximum(cut.bone_mm**2 - dx * dx, 0))
    hidden = (np.abs(dx) < cut.bone_mm) & (y > top)
    amplitude = np.where(hidden, np.float32(_SHADOW), amplitude)
    shine = _ridge(off - cut.bone_mm, 0.8) * facing**3
    return np.asarray(amplitude + np.float32(_BONE) * shine)


def _ridge(distance: np.ndarray, width_mm: float) -> np.ndarray:
    relative = distance * np.float32(1 / width_mm)
    bell = 1 / (1 + relative * relative)
    return np.asarray(bell * bell)


def _stripes(turns: np.ndarray) -> np.ndarray:
    """Return thin bright lines, one for each full turn."""
    wave = 0.5 + 0.5 * np.cos(turns)
    return np.asarray(wave**4)
