"""A procedural echocardiogram with its truth: one heart, one exam, one view, some frames.

Three streams of randomness stay apart: anatomy (``draw_heart``), acquisition (``draw_exam``) and
speckle (``render_echo``), so that one heart can be imaged twice, and one exam with other speckle.
Labels, landmarks and volumes come from the same 3D heart for all views. Axes: T frames, H rows, W
columns, K landmarks, R samples in depth, A beams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from vitrael.core.data.phantoms.cues import Cue, draw_cues
from vitrael.core.data.phantoms.echo_styles import EchoStyle
from vitrael.core.data.phantoms.echo_tissue import MUSCLE, reflect
from vitrael.core.data.phantoms.echo_views import (
    VIEWS,
    Pose,
    aim,
    find_landmarks,
    least_depth_mm,
    to_heart,
)
from vitrael.core.data.phantoms.heart import Heart, HeartState, shape_heart
from vitrael.core.data.phantoms.heart_field import (
    OUTSIDE,
    label_points,
    measure_points,
    trace_tissue,
)
from vitrael.core.data.phantoms.sector import Sector, convert_scan, make_sector, to_pixels
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

_BEATS = 16
_CLUTTER_MM = 14.0
_PIVOT_MM = 65.0
_BRIGHT_PERCENTILE = 99.0


@dataclass(frozen=True, slots=True)
class EchoExam:
    """What differs from one recording of a heart to the next at one site."""

    style: EchoStyle
    gap_mm: float
    """Between the face of the probe and the heart."""
    depth_mm: float
    tilt_rad: float
    steer_rad: float
    turn_rad: float
    shift_mm: tuple[float, float]
    gain_db: float
    """On top of the style's."""
    tgc_db: float
    side_db: float
    """What the outermost beams lack."""
    shadow: tuple[float, float, float]
    """A hidden side: where it begins in parts of half the sector (negative: left), width, dB."""
    start_phase: float
    """Of the first frame; 0 is the R wave."""
    beats: tuple[float, ...]
    """Duration of each beat relative to the mean; they repeat."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class EchoTruth:
    """What is known of a clip because it was asked for."""

    ef_frac: float
    """Of the heart: ``1 - esv_ml / edv_ml``."""
    edv_ml: float
    esv_ml: float
    volume_T_ml: np.ndarray
    """Of the cavity in 3D at each frame; between two beats the clip may miss the extremes."""
    labels_THW: np.ndarray
    """uint8: 0 outside the cone, 1 cavity of the left ventricle, 2 background in the cone, 3 its
    myocardium, 4 left atrium, 5 right ventricle, 6 right atrium, 7 aorta."""
    sector_HW: np.ndarray
    """bool: the cone."""
    landmarks_TK2: np.ndarray
    """Row and column, float32 px, in the order of ``echo_views.LANDMARKS``; they may lie outside
    the picture. K is 7, or 0 for a short axis."""
    view: str
    ed_frame: int
    es_frame: int
    """Frames of largest and smallest volume."""
    phase_T: np.ndarray
    """In [0, 1): 0 end-diastole, 0.38 end-systole."""
    frame_s: float
    spacing_mm: tuple[float, float]
    cue_HW: np.ndarray
    """bool: pixels of burned-in marks, all outside the cone."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Scene:
    heart: Heart
    exam: EchoExam
    view: str
    pose: Pose
    sector: Sector
    phase_T: np.ndarray
    frame_s: float
    states: tuple[HeartState, ...]


def draw_exam(rng: np.random.Generator, style: EchoStyle) -> EchoExam:
    """Return the circumstances of one recording at a site: how the probe is held, the settings."""
    hidden = rng.uniform() < style.shadow_frac
    side = -1.0 if rng.uniform() < 0.5 else 1.0  # noqa: PLR2004 - one side or the other
    begins, width, lost_db = rng.uniform([0.45, 0.15, 8.0], [0.75, 0.5, 18.0])
    tilt, steer, turn = style.aim_rad * np.clip(rng.normal(size=3), -2, 2)
    # The probe turns about the middle of the heart: the examiner keeps it in view.
    shift = rng.normal(0, [4.0, 25 * style.aim_rad]) - _PIVOT_MM * np.array([1.5 * steer, tilt])
    return EchoExam(
        style=style,
        gap_mm=float(rng.uniform(8, 15)),
        depth_mm=float(style.depth_mm * (1 + 0.03 * np.clip(rng.normal(), -2, 2))),
        tilt_rad=float(tilt),
        steer_rad=float(1.5 * steer),
        turn_rad=float(2 * turn),
        shift_mm=(float(shift[0]), float(shift[1])),
        gain_db=float(rng.normal(0, 2.0)),
        tgc_db=float(style.tgc_db + rng.normal(0, 1.5)),
        side_db=float(rng.uniform(5, 16)),
        shadow=(float(side * begins), float(width), float(lost_db) if hidden else 0.0),
        start_phase=float(rng.normal(0, 0.02)),
        beats=tuple(np.exp(rng.normal(0, 0.03, _BEATS)).tolist()),
    )


def steady_exam(exam: EchoExam) -> EchoExam:
    """Return the same exam with the plane on the long axis and beats of one length from the R wave.

    Nothing is foreshortened. The probe may still lean and shift within the plane.
    """
    held = replace(exam, tilt_rad=0.0, turn_rad=0.0, shift_mm=(exam.shift_mm[0], 0.0))
    return replace(held, start_phase=0.0, beats=(1.0,))


def label_echo(
    heart: Heart,
    exam: EchoExam,
    *,
    view: str,
    frames: int,
    edge_px: int,
    frame_s: float | None = None,
    cues: Sequence[Cue] = (),
) -> EchoTruth:
    """Return the truth of the clip that ``render_echo`` would draw, without drawing it."""
    scene = _set_scene(heart, exam, view=view, frames=frames, edge_px=edge_px, frame_s=frame_s)
    return _tell_truth(scene, _mark(scene, cues)[1])


def render_echo(
    heart: Heart,
    exam: EchoExam,
    *,
    view: str,
    frames: int,
    edge_px: int,
    rng: np.random.Generator,
    frame_s: float | None = None,
    cues: Sequence[Cue] = (),
) -> tuple[Clip, EchoTruth]:
    """Return a clip ``[T, edge_px, edge_px]`` and its truth.

    ``frame_s`` replaces the frame time of the style. ``cues`` are burned in beside those of the
    style. The picture reaches deep enough to show the whole ventricle. Raises DataError for an
    unknown view, less than one frame, and a picture below 16 pixels.
    """
    scene = _set_scene(heart, exam, view=view, frames=frames, edge_px=edge_px, frame_s=frame_s)
    marks_HW, cue_HW = _mark(scene, cues)
    gray_TRA = _draw_beams(scene, rng)
    style = exam.style
    frames_THW = np.empty((frames, edge_px, edge_px), np.uint8)
    for t in range(frames):
        if t and style.persistence_frac:
            gray_TRA[t] += style.persistence_frac * (gray_TRA[t - 1] - gray_TRA[t])
        picture = np.clip(convert_scan(gray_TRA[t], scene.sector), 0, 1) ** style.gray_gamma
        bent = picture * picture * (3 - 2 * picture)
        picture += style.gray_contrast * (bent - picture)
        frames_THW[t] = np.maximum((picture * 255 + 0.5).astype(np.uint8), marks_HW)
    clip = Clip(frames_THW, scene.frame_s, scene.sector.spacing_mm, modality="US")
    return clip, _tell_truth(scene, cue_HW)


def _set_scene(
    heart: Heart, exam: EchoExam, *, view: str, frames: int, edge_px: int, frame_s: float | None
) -> _Scene:
    if view not in VIEWS:
        raise DataError("there is no such view", fix="use one of " + ", ".join(VIEWS))
    if frames < 1:
        raise DataError("a clip has at least one frame")
    style, rest = exam.style, shape_heart(heart, 0.0)
    pose = VIEWS[view].place(rest, style.face_mm + exam.gap_mm)
    pose = aim(
        pose,
        tilt_rad=exam.tilt_rad,
        steer_rad=exam.steer_rad,
        turn_rad=exam.turn_rad,
        shift_mm=exam.shift_mm,
    )
    depth_mm = max(exam.depth_mm * VIEWS[view].depth_frac, least_depth_mm(pose, rest))
    sector = make_sector(
        edge_px=edge_px,
        angle_rad=style.angle_rad,
        reach_mm=(style.face_mm, depth_mm),
        tilt_rad=style.tilt_rad,
        fill_frac=style.fill_frac,
        aspect=style.aspect,
    )
    step_s = 1 / style.frame_rate_hz if frame_s is None else frame_s
    phase_T = _phases(np.arange(frames) * step_s * heart.heart_rate_bpm / 60, exam)
    states = tuple(shape_heart(heart, float(phase)) for phase in phase_T)
    return _Scene(heart, exam, view, pose, sector, phase_T, step_s, states)


def _phases(elapsed_T: np.ndarray, exam: EchoExam) -> np.ndarray:
    """Return the phases at times counted in mean beats, beats being longer and shorter."""
    ends = np.cumsum(np.resize(exam.beats, int(elapsed_T[-1] * 2) + _BEATS))
    starts = np.concatenate([[0.0], ends])
    first = exam.start_phase % 1.0
    place = np.interp(elapsed_T + first * starts[1], starts, np.arange(len(starts)))
    return np.asarray(place % 1.0)


def _mark(scene: _Scene, cues: Sequence[Cue]) -> tuple[np.ndarray, np.ndarray]:
    """Return the gray and the pixels of all marks: the machine's own and the given ones."""
    sector = scene.sector
    every = (*scene.exam.style.overlay, *cues)
    return draw_cues(every, sector_HW=sector.sector_HW, spacing_mm=sector.spacing_mm)


def _tell_truth(scene: _Scene, cue_HW: np.ndarray) -> EchoTruth:
    sector, heart = scene.sector, scene.heart
    points_3P = to_heart(scene.pose, sector.pixel_2P_mm)
    labels_THW = np.full((len(scene.states), *sector.sector_HW.shape), OUTSIDE, np.uint8)
    for labels_HW, state in zip(labels_THW, scene.states, strict=True):
        labels_HW[sector.sector_HW] = label_points(measure_points(state, points_3P))
    landmarks = np.zeros((len(scene.states), 0, 2), np.float32)
    if VIEWS[scene.view].long_axis:
        found = [to_pixels(find_landmarks(s, scene.pose), sector) for s in scene.states]
        landmarks = np.stack(found).astype(np.float32)
    volume_T_ml = np.array([state.volume_ml for state in scene.states])
    return EchoTruth(
        ef_frac=heart.ef_frac,
        edv_ml=heart.edv_ml,
        esv_ml=heart.edv_ml * (1 - heart.ef_frac),
        volume_T_ml=volume_T_ml,
        labels_THW=labels_THW,
        sector_HW=sector.sector_HW,
        landmarks_TK2=landmarks,
        view=scene.view,
        ed_frame=int(volume_T_ml.argmax()),
        es_frame=int(volume_T_ml.argmin()),
        phase_T=scene.phase_T,
        frame_s=scene.frame_s,
        spacing_mm=sector.spacing_mm,
        cue_HW=cue_HW,
    )


def _draw_beams(scene: _Scene, rng: np.random.Generator) -> np.ndarray:
    """Return gray in [0, 1] on the grid of the beams, ``[T, R, A]`` float32."""
    sector, style = scene.sector, scene.exam.style
    shape = (len(sector.depth_R_mm), len(sector.beam_A))
    points_3N = to_heart(scene.pose, sector.sample_2RA_mm)
    step_mm = sector.depth_step_mm
    beam_step = float(sector.beam_A[1] - sector.beam_A[0])
    spread = PointSpread(style.depth_spread_mm / step_mm, style.beam_spread_rad / beam_step)
    cell_mm = CELL_STEPS * step_mm
    scale_R = attached_scale(
        sector.beam_gap_mm, depth_step_mm=step_mm, cell_mm=cell_mm, spread=spread
    )
    table = draw_scatterers(rng)
    around_N = _uneven(rng, shape).ravel()
    loss_RA, haze_RA = _gains(scene, shape)
    haze_RA = haze_RA * draw_noise(rng, shape)
    echo_TRA = np.empty((len(scene.states), *shape), np.float32)
    for t, (state, phase) in enumerate(zip(scene.states, scene.phase_T, strict=True)):
        signed = measure_points(state, points_3N)
        amplitude_RA = reflect(
            state,
            float(phase),
            points_3N=points_3N,
            signed=signed,
            around_N=around_N,
            shape_RA=shape,
            step_mm=step_mm,
        )
        tissue = trace_tissue(state, points_3N, signed.epicardium)
        attached = find_scatterers(table, tissue, cell_mm=cell_mm).reshape(shape)
        fresh = draw_noise(rng, shape)
        field = mix_scatterers(attached, fresh, scale_R=scale_R, spread=spread)
        field *= amplitude_RA * loss_RA
        field += haze_RA
        field += np.float32(MUSCLE * 10 ** (style.noise_db / 20)) * fresh
        echo_TRA[t] = envelope(field, spread)
    reference = float(np.percentile(echo_TRA[:, ::3, ::3], _BRIGHT_PERCENTILE))
    gain_db = style.gain_db + scene.exam.gain_db
    gray = compress(echo_TRA, reference=reference, range_db=style.range_db, gain_db=gain_db)
    return _smooth(gray, style.smooth_px)


def _smooth(gray_TRA: np.ndarray, sigma_px: float) -> np.ndarray:
    smooth = ndimage.gaussian_filter(gray_TRA, (0, sigma_px, sigma_px), truncate=3.0)
    return np.asarray(smooth)


def _uneven(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return the patchy brightness of what lies around a heart: positive, mean near 1."""
    rough = rng.standard_normal(shape, dtype=np.float32)
    soft = ndimage.gaussian_filter(rough, (shape[0] / 22, shape[1] / 14), mode="wrap")
    return np.asarray(np.exp(0.42 * soft / soft.std() - 0.09), dtype=np.float32)


def _gains(scene: _Scene, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the way there and back leaves of an echo, and the haze near the probe."""
    sector, exam, style = scene.sector, scene.exam, scene.exam.style
    depth_R = (sector.depth_R_mm - sector.depth_R_mm[0])[:, None]
    reach = depth_R / depth_R[-1]
    side_A = np.linspace(-1, 1, shape[1])[None, :]
    begins, width, lost_db = exam.shadow
    beyond = (side_A * math.copysign(1, begins) - abs(begins)) / 0.06
    hidden = 1 / (1 + np.exp(-beyond)) / (1 + np.exp(beyond - width / 0.06))
    lost = exam.tgc_db * reach + exam.side_db * np.abs(side_A) ** 3
    lost = lost + lost_db * hidden * np.clip(depth_R / 15, 0, 1)
    haze = MUSCLE * 10 ** (style.clutter_db / 20) * np.exp(-depth_R / _CLUTTER_MM)
    rings = 1 + 2.0 * np.exp(-(((depth_R % 11.0) - 2.0) ** 2) / 1.5)
    return (10 ** (-lost / 20)).astype(np.float32), (haze * rings + 0 * side_A).astype(np.float32)
