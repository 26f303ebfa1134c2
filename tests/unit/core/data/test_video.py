"""A video is read as gray frames at equal times, or refused; nothing else passes."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrael.core.data import video
from vitrael.core.data.planar import Clip
from vitrael.core.data.video import read_video, write_video
from vitrael.core.errors import ScanError
from vitrael.core.rng import stream

SECRET = "Amendoeira"


def smooth_frames(count: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """Return a slanted wave from 0 to 255 that walks to the right."""
    row, column = np.indices((height, width))
    wave = [127.5 + 127.5 * np.sin((column + row / 2 - 3 * t) / 9) for t in range(count)]
    return np.rint(wave).astype(np.uint8)


def encode(
    frames: np.ndarray,
    *,
    codec: str = "mjpeg",
    pixels: str = "yuvj420p",
    container: str = "avi",
    ticks: Sequence[int] | None = None,
    unit: Fraction = Fraction(1, 25),
    aspect: Fraction | None = None,
) -> bytes:
    """Return a video file with a title; ``ticks`` are the times of the frames in units."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        output.metadata["title"] = SECRET
        output_stream = output.add_stream(codec, rate=1 / unit)
        output_stream.height, output_stream.width = frames.shape[1:]
        output_stream.pix_fmt = pixels
        output_stream.time_base = output_stream.codec_context.time_base = unit
        if aspect:
            output_stream.codec_context.sample_aspect_ratio = aspect
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="gray").reformat(format=pixels)
            picture.pts, picture.time_base = (ticks[index] if ticks else index), unit
            output.mux(output_stream.encode(picture))
        output.mux(output_stream.encode(None))
    return file.getvalue()


def read_bytes(data: bytes, folder: Path, suffix: str = ".avi") -> Clip:
    path = folder / f"{SECRET}{suffix}"
    path.write_bytes(data)
    return read_video(path)


def tone() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as output:
        audio = output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        output.mux(audio.encode(frame))
        output.mux(audio.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("frame_s", [0.04, 1 / 30, 1001 / 30000, 0.0321, 1 / 7])
def test_lossless_file_gives_back_every_pixel_and_the_time(tmp_path: Path, frame_s: float) -> None:
    clip = Clip(smooth_frames(height=49, width=63), frame_s, None, "US")
    write_video(clip, tmp_path / "clip.avi")
    again = read_video(tmp_path / "clip.avi")
    assert np.array_equal(again.frames_THW, clip.frames_THW)
    assert again.frame_s == pytest.approx(frame_s, rel=1e-6)


def test_mp4_is_close_and_keeps_black_and_white(tmp_path: Path) -> None:
    clip = Clip(smooth_frames(), 1 / 30, None, "US")
    write_video(clip, tmp_path / "clip.mp4")
    again = read_video(tmp_path / "clip.mp4")
    assert again.frames_THW.shape == clip.frames_THW.shape
    assert again.frame_s == pytest.approx(1 / 30, rel=1e-6)
    assert np.abs(again.frames_THW.astype(int) - clip.frames_THW).mean() < 2
    assert again.frames_THW.min() < 4
    assert again.frames_THW.max() > 251


def test_mp4_repeats_an_odd_edge_once(tmp_path: Path) -> None:
    write_video(Clip(smooth_frames(3, 49, 63), 0.04, None, "US"), tmp_path / "clip.mp4")
    assert read_video(tmp_path / "clip.mp4").frames_THW.shape == (3, 50, 64)


@pytest.mark.parametrize("ending", [".mp4", ".avi"])
def test_written_file_is_the_same_every_time_and_holds_no_remark(
    tmp_path: Path, ending: str
) -> None:
    clip = Clip(smooth_frames(), 1 / 30, None, "US")
    for name in ("one", "two"):
        write_video(clip, tmp_path / f"{name}{ending}")
    data = (tmp_path / f"one{ending}").read_bytes()
    assert data == (tmp_path / f"two{ending}").read_bytes()
    assert not [word for word in (b"Lavf", b"Lavc", b"x264", b"encoder") if word in data]
    with av.open(io.BytesIO(data)) as container:
        kept = {"major_brand", "minor_version", "compatible_brands"}
        assert set(container.metadata) <= kept
        assert set(container.streams.video[0].metadata) <= {"language", "handler_name"}
    if ending == ".mp4":  # the index first, so that a player can begin at once
        assert data.find(b"moov") < data.find(b"mdat")


def test_mpeg4_is_written_where_there_is_no_h264(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "_H264", ("no-such-codec",))
    write_video(Clip(smooth_frames(), 1 / 30, None, "US"), tmp_path / "clip.mp4")
    assert len(read_video(tmp_path / "clip.mp4").frames_THW) == 12


def test_unknown_ending_is_refused_when_writing(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="format is unknown"):
        write_video(Clip(smooth_frames(), 0.04, None, "US"), tmp_path / "clip.gif")


def test_motion_jpeg_is_read(tmp_path: Path) -> None:
    frames = smooth_frames()
    clip = read_bytes(encode(frames), tmp_path)
    assert clip.frames_THW.shape == frames.shape
    assert np.abs(clip.frames_THW.astype(int) - frames).mean() < 3
    assert (clip.frame_s, clip.spacing_mm, clip.modality) == (pytest.approx(0.04), None, "US")
    assert clip.frames_THW.min() < 8  # full range stays full range
    assert clip.frames_THW.max() > 247


def test_limited_range_becomes_full_range(tmp_path: Path) -> None:
    data = encode(smooth_frames(), codec="mpeg4", pixels="yuv420p", container="mp4")
    clip = read_bytes(data, tmp_path, ".mp4")
    assert clip.frames_THW.min() < 8
    assert clip.frames_THW.max() > 247


UPRIGHT = (1, 0, 0, 1)
TURNED = {
    "a quarter": (0, 1, -1, 0),
    "a half": (-1, 0, 0, -1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
}


@pytest.mark.parametrize("turn", TURNED)
def test_video_that_is_to_be_shown_turned_is_refused(tmp_path: Path, turn: str) -> None:
    data = encode(smooth_frames(), codec="mpeg4", pixels="yuv420p", container="mp4")
    place = data.find(b"tkhd") + 44  # of version 0: the matrix of the track

    def shown(matrix: tuple[int, ...]) -> bytes:
        a, b, c, d = (value << 16 for value in matrix)
        return (
            data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]
        )

    assert shown(UPRIGHT) == data
    assert len(read_bytes(shown(UPRIGHT), tmp_path, ".mp4").frames_THW) == 12
    with pytest.raises(ScanError, match="stored turned"):
        read_bytes(shown(TURNED[turn]), tmp_path, ".mp4")


def test_memory_that_is_missing_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise av.error.MemoryError(12, "Cannot allocate memory")

    monkeypatch.setattr(video, "_decode", decode)
    with pytest.raises(MemoryError):
        read_bytes(encode(smooth_frames()), tmp_path)


def test_still_has_no_frame_time(tmp_path: Path) -> None:
    write_video(Clip(smooth_frames(1), None, None, "US"), tmp_path / "clip.avi")
    assert read_video(tmp_path / "clip.avi").frame_s is None


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    clip = read_bytes(
        encode(smooth_frames(), container="mov", aspect=Fraction(2)), tmp_path, ".mov"
    )
    assert clip.frames_THW.shape == (12, 48, 128)


def test_varying_frame_rate_is_refused_and_rounded_times_are_not(tmp_path: Path) -> None:
    millisecond = Fraction(1, 1000)
    rounded = [round(index * 1000 / 30) for index in range(12)]
    data = encode(smooth_frames(), container="matroska", ticks=rounded, unit=millisecond)
    assert read_bytes(data, tmp_path, ".mkv").frame_s == pytest.approx(1 / 30, rel=0.01)
    dropped = [*rounded[:6], *(tick + 33 for tick in rounded[6:])]
    data = encode(smooth_frames(), container="matroska", ticks=dropped, unit=millisecond)
    with pytest.raises(ScanError, match="the frame rate varies"):
        read_bytes(data, tmp_path, ".mkv")


def test_empty_file_and_file_without_video_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="holds no video"):
        read_bytes(tone(), tmp_path, ".mov")
    with pytest.raises(ScanError, match="is empty"):
        read_bytes(b"", tmp_path)
    with pytest.raises(ScanError, match="not a whole video"):
        read_bytes(b"no video " * 400, tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(
    ("codec", "pixels", "container"),
    [("mjpeg", "yuvj420p", "avi"), ("mpeg4", "yuv420p", "mp4"), ("mpeg2video", "yuv420p", "mpeg")],
)
def test_file_cut_short_is_refused(
    tmp_path: Path, codec: str, pixels: str, container: str, share: float
) -> None:
    noise = stream(1, "noise").integers(0, 256, (30, 48, 64)).astype(np.uint8)
    data = encode(noise, codec=codec, pixels=pixels, container=container)
    assert len(read_bytes(data, tmp_path, f".{container}").frames_THW) >= 29
    with pytest.raises(ScanError):
        read_bytes(data[: int(share * len(data))], tmp_path, f".{container}")


def test_too_many_frames_and_pixels_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(smooth_frames(12))

    def decode(*_: object) -> None:
        raise AssertionError("a frame was decoded")

    with monkeypatch.context() as patch:
        patch.setattr(video, "_decode", decode)
        for name, value, told in (
            ("MOST_FRAMES", 4, "too long"),
            ("MOST_PIXELS", 5 * 48 * 64, "too long"),
            ("MOST_FRAME_PIXELS", 48 * 64 - 1, "absurdly large"),
            ("MOST_BYTES", len(data) - 1, "far too large"),
        ):
            with patch.context() as one:
                one.setattr(video, name, value)
                with pytest.raises(ScanError, match=told):
                    read_bytes(data, tmp_path)
        with pytest.raises(AssertionError):  # control: without a limit it goes on
            read_bytes(data, tmp_path)
    monkeypatch.setattr(video, "MOST_FRAMES", 11)  # a header that tells too few
    with pytest.raises(ScanError, match="too long"):
        read_bytes(data, tmp_path)


def test_list_that_names_another_file_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.avi").write_bytes(encode(smooth_frames()))
    lists = (
        b"ffconcat version 1.0\nfile other.avi\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.avi\n#EXT-X-ENDLIST\n",
        b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    )
    for text in lists:
        for suffix in (".avi", ".m3u8", ".ffconcat"):
            with pytest.raises(ScanError, match="not a whole video"):
                read_bytes(text, tmp_path, suffix)


def test_title_and_path_are_told_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(smooth_frames())
    assert SECRET.encode() in data  # control: the file does hold it
    clip = read_bytes(data, tmp_path)
    write_video(clip, tmp_path / "clip.avi")
    write_video(clip, tmp_path / "clip.mp4")
    for ending in ("avi", "mp4"):
        assert SECRET.encode() not in (tmp_path / f"clip.{ending}").read_bytes()
    with pytest.raises(ScanError) as caught:
        read_bytes(data[:900], tmp_path)
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__}"
    assert capfd.readouterr() == ("", "")


WHOLE = {
    ".avi": encode(smooth_frames(4, 16, 24)),
    ".mp4": encode(smooth_frames(4, 16, 32), codec="mpeg4", pixels="yuv420p", container="mp4"),
    ".mkv": encode(smooth_frames(4, 16, 32), codec="ffv1", pixels="gray", container="matroska"),
}


@settings(max_examples=250, derandomize=True, deadline=None)
@given(
    suffix=st.sampled_from(sorted(WHOLE)),
    keep=st.floats(0, 1),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
)
def test_damaged_file_is_read_or_refused(
    suffix: str, keep: float, edits: list[tuple[float, int]]
) -> None:
    data = bytearray(WHOLE[suffix])
    for place, value in edits:
        data[int(place * (len(data) - 1))] = value
    if keep > 0.3:  # else it keeps its length
        data = data[: int(keep * len(data))]
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        try:
            clip = read_video(Path(file.name))
        except ScanError:
            return
        assert clip.frames_THW.dtype == np.uint8


def test_damaged_file_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = stream(7, "damage")
    # Of these files some make the library seek before their beginning.
    whole = encode(smooth_frames(4, 16, 32), codec="wmv2", pixels="yuv420p", container="asf")
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 6):
            data[place] = int(rng.integers(256))
        try:
            read_bytes(bytes(data), tmp_path)
        except ScanError:
            refused += 1
    assert refused > 50
    assert capfd.readouterr() == ("", "")


def test_real_clips_are_read(real_scans: Path) -> None:
    folder = real_scans.parent / "us_lung/video"
    for name in (
        "pat003_Reg_pat2Image_133952.mpeg",
        "pat004_Reg_Image_182106_crop.mp4",
        "pat118_Reg_recommendations_alines_mov1.mov",
    ):
        clip = read_video(folder / name)
        assert len(clip.frames_THW) > 100
        assert 0.02 < (clip.frame_s or 0) < 0.06
