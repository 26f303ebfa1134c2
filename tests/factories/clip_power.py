"""A phantom hospital of echocardiograms with a calibrated filter."""

from __future__ import annotations

import numpy as np

from vitrael.core.data.phantoms.echo import draw_exam, render_echo
from vitrael.core.data.phantoms.echo_styles import STYLES
from vitrael.core.data.phantoms.heart import draw_heart, revisit_heart
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream

FRAMES, EDGE_PX, FRAME_S = 16, 32, 0.05
"""About one beat."""
_SITE, _VIEW = "clinic", "A4C"


def draw_clip(name: str, patient: int, visit: int, *, seed: int = 7) -> np.ndarray:
    """Return ``[1, T, H, W]`` in [0, 1]: another recording of the heart at every visit."""
    style = STYLES[_SITE]
    heart = draw_heart(stream(seed, "heart", name, patient), population=style.population)
    if visit:
        heart = revisit_heart(heart, stream(seed, "revisit", name, patient, visit))
    clip, _ = render_echo(
        heart,
        draw_exam(stream(seed, "exam", name, patient, visit), style),
        view=_VIEW,
        frames=FRAMES,
        edge_px=EDGE_PX,
        rng=stream(seed, "speckle", name, patient, visit),
        frame_s=FRAME_S,
    )
    return clip.frames_THW[None].astype(np.float32) / 255


def draw_clips(name: str, count: int, *, visits: int = 1, seed: int = 7) -> PatientImages:
    """Return the clips of phantom patients."""
    clips = [
        draw_clip(name, patient, visit, seed=seed)
        for patient in range(count)
        for visit in range(visits)
    ]
    return PatientImages(
        np.stack(clips),
        np.zeros((len(clips), 4), np.float32),
        np.repeat(np.arange(count), visits),
        np.tile(np.arange(visits), count),
    )
