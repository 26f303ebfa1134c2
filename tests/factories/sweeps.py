"""Sweeps of made-up legs at two visits, cut into clips; what is true of them is known.

Axes: N clips, T frames, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vitrael.core.data.phantoms.muscle import (
    MuscleSession,
    SweepTruth,
    draw_leg,
    draw_session,
    render_sweep,
)
from vitrael.core.rng import stream

EDGE_PX, FRAMES = 64, 83
CLIP_FRAMES, CLIP_STEP = 5, 2


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """One sweep of a patient, seen whole; positions never reach a training."""

    patient: int
    frames_THW: np.ndarray
    truth: SweepTruth

    @property
    def starts(self) -> np.ndarray:
        return np.arange(0, len(self.frames_THW) - CLIP_FRAMES + 1, CLIP_STEP)

    @property
    def clips(self) -> np.ndarray:
        clips = [self.frames_THW[start : start + CLIP_FRAMES] for start in self.starts]
        return np.stack(clips)[:, None].astype(np.float32) / 255

    @property
    def middles(self) -> np.ndarray:
        """Return the frame in the middle of each clip."""
        return self.starts + CLIP_FRAMES // 2

    @property
    def positions(self) -> np.ndarray:
        return self.truth.position_T[self.middles]


def draw_positions(rng: np.random.Generator, frames: int = FRAMES) -> np.ndarray:
    """Return the way of a hand from knee to hip, now slower and now faster, ``[T]``."""
    speed = np.exp(0.35 * np.interp(np.linspace(0, 5, frames), np.arange(6), rng.normal(size=6)))
    way = np.concatenate([[0.0], np.cumsum(speed[:-1])])
    first, last = rng.uniform(0, 0.03), rng.uniform(0.97, 1)
    return np.clip(first + (last - first) * way / way[-1], 0, 1)


def draw_visits(seed: int, patients: range, *, visits: int = 2) -> list[Visit]:
    """Return the visits of these patients; the first of each comes before any atrophy."""
    found = []
    for patient in patients:
        leg = draw_leg(stream(seed, "leg", patient))
        for number in range(visits):
            rng = stream(seed, "visit", patient, number)
            session: MuscleSession = draw_session(rng, first=number == 0)
            clip, truth = render_sweep(
                leg, session, position_T=draw_positions(rng), edge_px=EDGE_PX, rng=rng
            )
            found.append(Visit(patient, clip.frames_THW, truth))
    return found


def shift_site(visit: Visit, rng: np.random.Generator) -> Visit:
    """Return the visit as another hospital's machine shows it: gain, gamma, smoothing, noise."""
    frames = ndimage.gaussian_filter(visit.frames_THW.astype(np.float32) / 255, (0, 0.7, 0.7))
    frames = np.clip(0.9 * frames**0.75 + 0.06, 0, 1)
    frames += rng.normal(0, 0.03, frames.shape).astype(np.float32)
    return Visit(visit.patient, (np.clip(frames, 0, 1) * 255 + 0.5).astype(np.uint8), visit.truth)
