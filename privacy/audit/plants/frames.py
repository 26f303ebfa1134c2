"""Disguises of clips: frames in another order or at another speed, frames among a stranger's.

Axes: P clips, C channels, T frames, H rows, W columns. Every clip keeps its number of frames.
"""

from __future__ import annotations

import io
from typing import Any, Final

import av
import numpy as np
from scipy import ndimage

from vitrael.core.errors import DataError
from vitrael.privacy.audit.plants.mixtures import demand_pairs

_LEVELS: Final = 255
_DARK: Final = 0.05
_TIME: Final = 2
_RATE_HZ: Final = 25
_H264: Final = "libx264"
_FULL_RANGE: Final = 2
_DEPTHS: Final = (0.8, 1.25)
_NARROWED: Final = 0.8
_SMOOTH_ROWS: Final = 9


def reverse_frames(clip_PCTHW: np.ndarray) -> np.ndarray:
    """Return the clips played backward."""
    return np.flip(clip_PCTHW, _TIME)


def shift_phase(clip_PCTHW: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return the clips begun at another frame; what was before it follows at the end."""
    frames = clip_PCTHW.shape[_TIME]
    shifts = rng.integers(1, max(2, frames), len(clip_PCTHW))
    return np.stack([np.roll(c, s, _TIME - 1) for c, s in zip(clip_PCTHW, shifts, strict=True)])


def change_speed(clip_PCTHW: np.ndarray, *, factor: float) -> np.ndarray:
    """Return the clips at another speed, frames between two interpolated.

    Slower ones end before the scene does; faster ones go on from the beginning.
    """
    frames = clip_PCTHW.shape[_TIME]
    time = np.mod(np.arange(frames) * factor, max(1, frames - 1))
    before = np.floor(time).astype(int)
    after = np.minimum(before + 1, frames - 1)
    part = (time - before).reshape(-1, 1, 1)
    return np.asarray((1 - part) * clip_PCTHW[:, :, before] + part * clip_PCTHW[:, :, after])


def hold_frames(clip_PCTHW: np.ndarray) -> np.ndarray:
    """Return every second frame, each held for two."""
    frames = clip_PCTHW.shape[_TIME]
    return clip_PCTHW[:, :, np.arange(frames) // 2 * 2]


def stitch_loop(clip_PCTHW: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return a random half of each clip, played forward and backward in turn until it is full."""
    frames = clip_PCTHW.shape[_TIME]
    half = max(1, frames // 2)
    to_and_fro = np.concatenate([np.arange(half), np.arange(half)[::-1]])
    first = rng.integers(0, frames - half + 1, len(clip_PCTHW))
    order = np.resize(to_and_fro, frames)
    return np.stack([c[:, at + order] for c, at in zip(clip_PCTHW, first, strict=True)])


def set_frames(
    clip_PCTHW: np.ndarray,
    other_PCTHW: np.ndarray,
    *,
    share: float | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the others with frames of the clips at their own times.

    ``share`` is of all frames, at least one and each as likely; None is a single one.
    """
    demand_pairs(clip_PCTHW, other_PCTHW)
    frames = clip_PCTHW.shape[_TIME]
    count = 1 if share is None else max(1, round(share * frames))
    composite = other_PCTHW.copy()
    for clip, onto in zip(clip_PCTHW, composite, strict=True):
        chosen = rng.permutation(frames)[:count]
        onto[:, chosen] = clip[:, chosen]
    return composite


def change_depth(clip_PCTHW: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Return the clips at 0.8 or 1.25 of the depth, about the middle of the top row."""
    changed = []
    for clip, depth in zip(clip_PCTHW, rng.choice(_DEPTHS, len(clip_PCTHW)), strict=True):
        middle = (clip.shape[-1] - 1) / 2
        offset = (0, 0, 0, middle * (1 - depth))
        changed.append(ndimage.affine_transform(clip, (1, 1, depth, depth), offset, order=1))
    return np.stack(changed)


def narrow_sector(clip_PCTHW: np.ndarray) -> np.ndarray:
    """Return the clips within a cone of 0.8 of what is seen in each row; beside it is dark.

    What is seen is the largest connected part that is ever brighter than 0.05 in the clip: marks
    that a machine burns in beside it are none of it.
    """
    narrowed = np.zeros_like(clip_PCTHW)
    columns = np.arange(clip_PCTHW.shape[-1])
    for clip, onto in zip(clip_PCTHW, narrowed, strict=True):
        cone_HW = _largest_part((clip > _DARK).any((0, 1)))
        rows = np.flatnonzero(cone_HW.any(1))
        ends_2R = np.array([np.flatnonzero(cone_HW[row])[[0, -1]] for row in rows]).T
        left_R, right_R = ndimage.median_filter(ends_2R, size=(1, _SMOOTH_ROWS), mode="nearest")
        middle_R, reach_R = (left_R + right_R) / 2, (right_R - left_R + 1) / 2
        within_RW = np.abs(columns - middle_R[:, None]) <= _NARROWED * reach_R[:, None]
        onto[:, :, rows] = np.where(within_RW, clip[:, :, rows], 0)
    return narrowed


def crop_picture(clip_PCTHW: np.ndarray, *, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return a part of each picture, ``share`` of both edges, at a random place, magnified."""
    room = (np.array(clip_PCTHW.shape[-2:]) - 1) * (1 - share)
    cut = []
    for clip in clip_PCTHW:
        offset = (0, 0, *(rng.uniform(0, 1, 2) * room))
        cut.append(ndimage.affine_transform(clip, (1, 1, share, share), offset, order=1))
    return np.stack(cut)


def compress_h264(clip_PCTHW: np.ndarray, *, crf: int) -> np.ndarray:
    """Return the clips after H.264 at a constant rate factor, in memory.

    An odd edge is repeated once for the codec, which takes even ones. Raises DataError where the
    library was built without the encoder.
    """
    try:
        av.codec.Codec(_H264, "w")
    except ValueError as error:
        raise DataError(
            "clips cannot be compressed as H.264",
            why=f"the video library has no {_H264}",
            fix="install the wheels of PyAV",
        ) from error
    grays = np.round(np.clip(clip_PCTHW, 0, 1) * _LEVELS).astype(np.uint8)
    read = [[_through_h264(frames, crf=crf) for frames in clip] for clip in grays]
    return np.asarray(read, dtype=np.float32) / _LEVELS


def _largest_part(seen_HW: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask; all of an empty one."""
    labels_HW, count = ndimage.label(seen_HW)
    if not count:
        return np.ones_like(seen_HW)
    return np.asarray(labels_HW == np.bincount(labels_HW.ravel())[1:].argmax() + 1)


def _through_h264(frames_THW: np.ndarray, *, crf: int) -> np.ndarray:
    height, width = frames_THW.shape[1:]
    even_THW = np.pad(frames_THW, [(0, 0), (0, height % 2), (0, width % 2)], mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream: Any = container.add_stream(_H264, rate=_RATE_HZ)  # its type depends on the codec
        stream.height, stream.width = even_THW.shape[1:]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "x264-params": "mbtree=0"}
        stream.codec_context.thread_count = 1
        stream.codec_context.color_range = _FULL_RANGE
        for gray_HW in even_THW:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(gray_HW), format="gray")
            container.mux(
                stream.encode(frame.reformat(format="yuv420p", dst_color_range=_FULL_RANGE))
            )
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as encoded:
        video = encoded.streams.video[0]
        video.codec_context.thread_count = 1
        read = [np.asarray(frame.to_ndarray(format="gray")) for frame in encoded.decode(video)]
    return np.stack(read)[:, :height, :width]
