"""Videos and pictures that cannot be used.

Axes: T frames, H rows, W columns.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from PIL import Image

from vitrael.core.data.phantoms.mess_ground import Ground

_TICKS_PER_S = 1000
_UNEVEN_MS = (20, 45)
_LEAST_FRAMES = 3
"""Two frames have one time between them, which is equal to itself."""
_GRAY = 60
_EXACT = {"fflags": "+bitexact"}
"""No version of a library stands in the file."""


def plant_no_frames(ground: Ground, rng: np.random.Generator) -> int:
    """Give a stranger a video of no frame."""
    with av.open(ground.stranger(rng), "w", container_options=_EXACT) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return 1


def plant_variable_rate(ground: Ground, rng: np.random.Generator) -> int:
    """Give a stranger a video whose frames are at unequal times."""
    with av.open(ground.pick(rng)) as container:
        frames_THW = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    if len(frames_THW) < _LEAST_FRAMES:
        return 0
    with av.open(ground.stranger(rng), "w", container_options=_EXACT) as container:
        stream = container.add_stream("mpeg4", rate=_TICKS_PER_S)
        stream.height, stream.width = frames_THW[0].shape
        stream.pix_fmt = "yuv420p"
        stream.options = {"flags": "+bitexact"}
        stream.codec_context.thread_count = 1
        stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)
        moment = 0
        for number, frame_HW in enumerate(frames_THW):
            frame = av.VideoFrame.from_ndarray(frame_HW, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = moment, stream.time_base
            moment += _UNEVEN_MS[number % 2]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return 1


def plant_constant_picture(ground: Ground, rng: np.random.Generator) -> int:
    """Give a stranger a picture of one gray."""
    with Image.open(ground.pick(rng)) as picture:
        Image.new("L", picture.size, _GRAY).save(ground.stranger(rng))
    return 1
