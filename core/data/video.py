"""Videos in and out: any usual file to a gray Clip, a Clip to MP4 or to lossless AVI.

Only containers of one local file are opened, never a playlist that names others. What a file says
beside its frames (dates, names, comments, sound) is not read and never written. No message holds a
path or a value. Axes: T frames, H rows, W columns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.sidedata.sidedata import Type

from vitrael.core.data.files import open_file
from vitrael.core.data.planar import MOST_PIXELS, Clip
from vitrael.core.digest import write_atomically
from vitrael.core.errors import ScanError

MOST_FRAMES = 2000
MOST_FRAME_PIXELS = 1 << 24
MOST_BYTES = 1 << 31
JITTER_FRAC = 0.1
"""Share of the frame time by which a single one may differ."""

_OPENED = {
    # Neither hls nor concat: such a file could make us open others.
    "format_whitelist": "avi,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,mpegts,mpegvideo,asf,wmv",
    "protocol_whitelist": "",
}
_SHARPEST_ASPECT = 4
_COVERED_FRAC = 0.9
_TIME_UNIT = 65_535
"""Largest denominator of a frame time that every codec used here can write."""
_H264 = ("libx264", "libopenh264")
_QUALITY = {"crf": "16", "preset": "medium", "x264-params": "mbtree=0"}
"""With its macroblock tree x264 gives other bytes for equal frames now and then."""
_EXACT = {"flags": "+bitexact"}
_NO_REMARKS = "filter_units=remove_types=6"
"""x264 writes its version and settings as supplementary information (NAL type 6)."""
_FULL_RANGE = 2
_DAMAGE = (
    av.FFmpegError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    ZeroDivisionError,
    RuntimeError,
)


def read_video(path: Path, *, modality: str = "US") -> Clip:
    """Return the first video stream of a file as gray frames at equal intervals; no spacing.

    AVI (such as MJPEG), MP4, MOV, Matroska, MPEG and ASF are read. Color becomes luma, 0 to 255;
    pixels that are not square are made so along the rows. The frame time is the mean over the
    file, from its time stamps; a video of one frame has none.

    Raises ScanError when the file is empty, no video, damaged or cut short; when it has no
    video stream or no frame; when a time stamp is missing or a frame time differs from the median
    by more than 10 % and one tick of the clock; when frames differ in size or are stored turned;
    and for more than 2000 frames, 2^24 pixels a frame or half a gigabyte in all, as far as the
    header tells before anything is decoded. Raises OSError when the system cannot read the file,
    and MemoryError, which a few damaged headers bring about too.
    """
    with open_file(path) as (file, size_bytes):
        if size_bytes > MOST_BYTES:
            raise ScanError("the video is far too large", fix="export one short clip a file")
        try:
            return _read(file, modality=modality)
        except MemoryError:  # one of the library's errors: perhaps no fault of the file
            raise
        except _DAMAGE:
            raise ScanError(
                "the file is not a whole video", why="it is damaged or of another kind",
                fix="export it again as AVI or MP4",
            ) from None  # fmt: skip


def write_video(clip: Clip, path: Path) -> None:
    """Write a clip, atomically, without metadata; equal clips give equal bytes on one machine.

    ``.mp4``: H.264 at high quality (MPEG-4 where the library has no H.264), the index first, an
    odd edge repeated once, as the format needs even ones. ``.avi``: FFV1, every pixel kept. Raises
    ScanError for another ending.
    """
    if path.suffix not in {".mp4", ".avi"}:
        raise ScanError("the video format is unknown", fix="write .mp4, or .avi to lose nothing")
    with tempfile.TemporaryDirectory() as folder:
        # The index can be moved to the front only in a file that is opened by name.
        target = Path(folder) / f"clip{path.suffix}"
        if path.suffix == ".avi":
            _encode(clip, target, codec="ffv1", pixels="gray", options=_EXACT)
        elif codec := next((name for name in _H264 if _can_write(name)), None):
            options = {**_EXACT, **(_QUALITY if codec == "libx264" else {})}
            _encode(clip, target, codec=codec, pixels="yuv420p", options=options)
        else:
            _encode(clip, target, codec="mpeg4", pixels="yuv420p", options=_EXACT)
        write_atomically(path, target.read_bytes())


class _QuietFile:
    """A file in which a place that does not exist is an answer: PyAV prints what seek raises."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.tell = file.tell
        self._seek = file.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def _read(file: BinaryIO, *, modality: str) -> Clip:
    with av.open(
        _QuietFile(file),
        "r",
        container_options=_OPENED,
        metadata_encoding="latin-1",
        metadata_errors="ignore",
    ) as container:
        if not container.streams.video:
            raise ScanError("the file holds no video", fix="give video files")
        stream = container.streams.video[0]
        _check_header(stream)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"max_pixels": str(MOST_FRAME_PIXELS)}
        frames, times_s = [], []
        for frame in _decode(container, stream):
            frames.append(_gray(frame, stream))
            if frame.pts is None or frame.time_base is None:
                raise ScanError("the video does not tell its times", fix="export it again")
            times_s.append(float(frame.pts * frame.time_base))
            if len(frames) > MOST_FRAMES or len(frames) * frames[0].size > MOST_PIXELS:
                raise _too_long()
        tick_s = float(stream.time_base or 0)
        length_s = _length_told(stream)
    if not frames:
        raise ScanError("the video holds no frame", fix="export it again")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise ScanError("the frames of the video differ in size", fix="export it again")
    frame_s = _frame_time(np.array(times_s), tick_s=tick_s)
    if frame_s is not None and len(frames) * frame_s < _COVERED_FRAC * length_s - frame_s:
        raise ScanError("the video is cut short", fix="copy it again")
    return Clip(np.stack(frames), frame_s, None, modality)


def _check_header(stream: av.VideoStream) -> None:
    """Judge what the header tells before a frame is decoded."""
    if getattr(stream, "codec_context", None) is None:  # its annotation leaves this out
        raise ScanError("the video is of an unknown kind", fix="export it again as AVI or MP4")
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > MOST_FRAME_PIXELS:
        raise ScanError(
            "the frames of the video are absurdly large",
            why=f"at most {MOST_FRAME_PIXELS:,} pixels are read",
            fix="export it again",
        )
    frames = _length_told(stream) * float(stream.average_rate or 0)
    if frames > 2 * MOST_FRAMES or frames * pixels > 2 * MOST_PIXELS:  # estimates can be wrong
        raise _too_long()


def _length_told(stream: av.VideoStream) -> float:
    """Return the seconds that the header tells; 0 where it does not.

    Of an AVI that is cut short the duration is an estimate; the number of frames still is not.
    """
    by_time = float((stream.duration or 0) * (stream.time_base or 0))
    by_count = float(stream.frames / stream.average_rate) if stream.average_rate else 0.0
    return max(by_time, by_count)


def _too_long() -> ScanError:
    return ScanError(
        "the video is too long",
        why=f"at most {MOST_FRAMES} frames and {MOST_PIXELS >> 20} megapixels in all are read",
        fix="export one short clip a file",
    )


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise ScanError("the video is damaged or cut short", fix="copy it again")
        if _is_turned(frame):
            raise ScanError("the video is stored turned", fix="export it upright")
        yield frame


def _is_turned(frame: av.VideoFrame) -> bool:
    """Return whether a frame is to be shown turned or mirrored."""
    beside: Any = frame.side_data  # its annotations differ from what it does
    stored = beside.get(Type.DISPLAYMATRIX)
    if stored is None:
        return False
    a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5]
    return not (a > 0 and d > 0 and b == c == 0)


def _gray(frame: av.VideoFrame, stream: av.VideoStream) -> np.ndarray:
    """Return luma of full range with square pixels, ``[H, W]`` uint8."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / _SHARPEST_ASPECT <= aspect <= _SHARPEST_ASPECT:
        raise ScanError("the video gives an absurd shape of its pixels", fix="export it again")
    width = max(1, round(frame.width * aspect))
    return np.asarray(frame.to_ndarray(format="gray", width=width, height=frame.height))


def _frame_time(times_s: np.ndarray, *, tick_s: float) -> float | None:
    if len(times_s) < 2:  # noqa: PLR2004 - a still
        return None
    steps_s = np.diff(times_s)
    usual_s = float(np.median(steps_s))
    if usual_s <= 0 or np.abs(steps_s - usual_s).max() > JITTER_FRAC * usual_s + tick_s:
        raise ScanError(
            "the frame rate varies",
            why=f"frame times differ by more than {JITTER_FRAC:.0%}",
            fix="export the clip with a constant frame rate",
        )
    return float(times_s[-1] - times_s[0]) / len(steps_s)


def _can_write(codec: str) -> bool:
    try:
        return av.Codec(codec, "w").is_encoder
    except ValueError:
        return False


def _encode(clip: Clip, target: Path, *, codec: str, pixels: str, options: dict[str, str]) -> None:
    tick = Fraction(clip.frame_s or 1.0).limit_denominator(_TIME_UNIT)
    frames_THW = clip.frames_THW
    if pixels != "gray":
        odd = [(0, size % 2) for size in frames_THW.shape[1:]]
        frames_THW = np.pad(frames_THW, [(0, 0), *odd], mode="edge")
    container_options = {"fflags": "+bitexact"}
    if target.suffix == ".mp4":
        container_options["movflags"] = "+faststart"
    with av.open(str(target), "w", container_options=container_options) as container:
        stream: Any = container.add_stream(codec, rate=1 / tick)  # its type depends on the codec
        stream.height, stream.width = frames_THW.shape[1:]
        stream.pix_fmt = pixels
        stream.options = options
        stream.codec_context.thread_count = 1
        stream.time_base = stream.codec_context.time_base = tick
        if pixels != "gray":
            stream.codec_context.color_range = _FULL_RANGE
        clean = BitStreamFilterContext(_NO_REMARKS, stream) if codec in _H264 else None
        for index, frame_HW in enumerate([*frames_THW, None]):
            frame = None
            if frame_HW is not None:
                gray = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW), format="gray")
                frame = gray.reformat(format=pixels, dst_color_range=_FULL_RANGE)
                frame.pts, frame.time_base = index, tick
            for packet in stream.encode(frame):
                for kept in [packet] if clean is None else clean.filter(packet):
                    container.mux(kept)
        for kept in [] if clean is None else clean.filter(None):
            container.mux(kept)
