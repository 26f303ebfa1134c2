"""The attack suite for clips of echo: what is done to time, and what of volumes fits a clip.

A still that a video generator animates has no maker until there is one: the class cannot be
estimated, so that a release of video is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import numpy as np

from vitrael.privacy.audit.plants import frames, geometry, intensity, rows
from vitrael.privacy.audit.plants.classes import PlantClass, always, drawn, mixed
from vitrael.privacy.audit.plants.sources import Means, Sources

GROUP_IMAGES: Final = 20
MOST_GROUPS: Final = 60

_PICTURE: Final = (3, 4)
_COLUMNS: Final = 4
_SPECKLE: Final = 0.2
_GROUP_NOISE: Final = 0.02


def _pictures() -> list[PlantClass]:
    cropped = [
        PlantClass(
            f"crop_{percent}", f"every picture cut to {percent} % of its edges", 0.95,
            drawn(partial(frames.crop_picture, share=percent / 100)),
        )
        for percent in (90, 80, 70)
    ]  # fmt: skip
    return [
        PlantClass(
            "speckle", "multiplied by noise of 20 %", 0.95,
            drawn(partial(intensity.add_speckle, sigma=_SPECKLE)),
        ),
        PlantClass(
            "flip_x", "mirrored left to right", 0.98,
            always(partial(geometry.mirror, axis=_COLUMNS)), must=True,
        ),
        PlantClass("depth", "at 0.8 or 1.25 of the depth", 0.95, drawn(frames.change_depth)),
        PlantClass("sector", "in a narrower sector", 0.95, always(frames.narrow_sector)),
        *cropped,
        PlantClass(
            "h264_30", "H.264 at rate factor 30", 0.95,
            always(partial(frames.compress_h264, crf=30)), must=True,
        ),
    ]  # fmt: skip


def _times() -> list[PlantClass]:
    return [
        PlantClass("reversed", "all frames, backward", 0.98, always(frames.reverse_frames)),
        PlantClass("phase_shift", "begun at another frame", 0.98, drawn(frames.shift_phase)),
        PlantClass(
            "speed_half", "at half the speed", 0.98,
            always(partial(frames.change_speed, factor=0.5)),
        ),
        PlantClass(
            "speed_double", "at twice the speed", 0.98,
            always(partial(frames.change_speed, factor=2.0)),
        ),
        PlantClass("every_second", "every second frame", 0.98, always(frames.hold_frames)),
        PlantClass("loop", "half of it, forward and backward", 0.98, drawn(frames.stitch_loop)),
    ]  # fmt: skip


def _among_strangers() -> list[PlantClass]:
    return [
        PlantClass(
            name, says, demanded, mixed(partial(frames.set_frames, share=share)),
            needs=("stranger",),
        )
        for name, says, demanded, share in (
            ("frames_50", "half of the frames among a stranger's", 0.95, 0.5),
            ("frames_10", "a tenth of the frames among a stranger's", 0.85, 0.1),
            ("frame_1", "one frame among a stranger's", 0.85, None),
        )
    ]  # fmt: skip


def _near_copies(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    """Return 20 clips of each patient, each begun elsewhere, at another gain and noisy."""
    del means
    several = np.repeat(sources.image_PCDHW[:MOST_GROUPS], GROUP_IMAGES, axis=0)
    shifted = frames.shift_phase(several, rng=rng)
    gained = intensity.change_brightness(shifted, share=0.1, rng=rng)
    return intensity.add_gaussian(gained, sigma=_GROUP_NOISE, rng=rng)


_ROWS: Final = (
    *rows.copies(),
    *rows.noises(),
    *_pictures(),
    *rows.grays(),
    *rows.losses(axes=_PICTURE, plane=_PICTURE),
    *rows.of_models(),
    *rows.blends(),
    *_times(),
    *_among_strangers(),
    *rows.other_scans(sequence="view"),
    PlantClass(
        "group_20", "20 near-copies of one patient, scattered: at least one is caught", 1.0,
        _near_copies, must=True, group_images=GROUP_IMAGES,
    ),
    PlantClass(
        "animated_still", "one frame, animated by a video generator", 0.95, None, must=True,
        needs=("video_generator",),
    ),
)  # fmt: skip

CLIP_PLANTS: Final[Mapping[str, PlantClass]] = MappingProxyType(
    {plant.name: plant for plant in _ROWS}
)
"""By name."""
