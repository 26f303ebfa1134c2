"""The attack suite for clips of echo: what is done to time, and what of volumes fits a clip.

A still that a video generator animates has no maker until there is one: the class cannot be
estimated, so that a release of video is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np

from vitrael.privacy.audit.plants import frames, geometry, intensity, rows
from vitrael.privacy.audit.plants.classes import PlantClass, Way, always, drawn, join_table, mixed
from vitrael.privacy.audit.plants.sources import Means, Sources
from vitrael.privacy.suite import CLIP_SUITE, GROUP_IMAGES, MOST_GROUPS

_PICTURE: Final = (3, 4)
_COLUMNS: Final = 4
_SPECKLE: Final = 0.2
_GROUP_NOISE: Final = 0.02


def _pictures() -> dict[str, Way]:
    cropped = {
        f"crop_{percent}": Way(drawn(partial(frames.crop_picture, share=percent / 100)))
        for percent in (90, 80, 70)
    }
    return {
        "speckle": Way(drawn(partial(intensity.add_speckle, sigma=_SPECKLE))),
        "flip_x": Way(always(partial(geometry.mirror, axis=_COLUMNS))),
        "depth": Way(drawn(frames.change_depth)),
        "sector": Way(always(frames.narrow_sector)),
        **cropped,
        "h264_30": Way(always(partial(frames.compress_h264, crf=30))),
    }


def _times() -> dict[str, Way]:
    return {
        "reversed": Way(always(frames.reverse_frames)),
        "phase_shift": Way(drawn(frames.shift_phase)),
        "speed_half": Way(always(partial(frames.change_speed, factor=0.5))),
        "speed_double": Way(always(partial(frames.change_speed, factor=2.0))),
        "every_second": Way(always(frames.hold_frames)),
        "loop": Way(drawn(frames.stitch_loop)),
    }


def _among_strangers() -> dict[str, Way]:
    shares = {"frames_50": 0.5, "frames_10": 0.1, "frame_1": None}
    return {
        name: Way(mixed(partial(frames.set_frames, share=share)), needs=("stranger",))
        for name, share in shares.items()
    }


def _near_copies(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    """Return 20 clips of each patient, each begun elsewhere, at another gain and noisy."""
    del means
    several = np.repeat(sources.image_PCDHW[:MOST_GROUPS], GROUP_IMAGES, axis=0)
    shifted = frames.shift_phase(several, rng=rng)
    gained = intensity.change_brightness(shifted, share=0.1, rng=rng)
    return intensity.add_gaussian(gained, sigma=_GROUP_NOISE, rng=rng)


CLIP_PLANTS: Final[Mapping[str, PlantClass]] = join_table(
    CLIP_SUITE,
    {
        **rows.copies(),
        **rows.noises(),
        **_pictures(),
        **rows.grays(),
        **rows.losses(axes=_PICTURE, plane=_PICTURE),
        **rows.of_models(),
        **rows.blends(),
        **_times(),
        **_among_strangers(),
        **rows.other_scans(sequence="view"),
        "group_20": Way(_near_copies),
        "animated_still": Way(None, needs=("video_generator",)),
    },
)
"""By name."""
